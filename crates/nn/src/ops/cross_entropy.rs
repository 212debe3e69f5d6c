//! Cross-entropy of rows of logits against one class each, with label smoothing (Szegedy et al. 2016, section 7).
//!
//! loss = log sum exp(logits) - (1 - smoothing) * logit of the target - smoothing * mean of the logits

use super::flex::{contiguous, filled, on_computing_backends, tensor, values};
use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension, flex::FlexTensor};
use burn::tensor::{IndexingUpdateOp, Int, Tensor};
use smalti_kernels::cross_entropy as kernel;

/// logits [rows, classes], targets [rows], each at least 0 and below classes, smoothing in [0, 1] -> loss of each row [rows].
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>, smoothing: f32) -> Tensor<1> {
    let ([rows, classes], [targets_count]) = (logits.dims(), targets.dims());
    assert!(
        rows == targets_count && classes > 0 && (0.0..=1.0).contains(&smoothing),
        "cross_entropy: logits {:?} do not fit {targets_count} targets, or smoothing {smoothing} is not in [0, 1]",
        logits.dims()
    );
    Tensor::from_dispatch(<Dispatch as CrossEntropyOperation>::cross_entropy(logits.into_dispatch(), targets.into_dispatch(), smoothing))
}

/// Forward and gradient on one backend; the default bodies are composed of burn primitives.
pub trait CrossEntropyBodies: Backend {
    /// -> (losses, logarithm of each row's sum of exponentials), both [rows]
    fn cross_entropy_forward(logits: FloatTensor<Self>, targets: IntTensor<Self>, smoothing: f32) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed_forward::<Self>(logits, targets, smoothing)
    }

    /// -> gradient of the logits
    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        log_sums: FloatTensor<Self>,
        dlosses: FloatTensor<Self>,
        smoothing: f32,
    ) -> FloatTensor<Self> {
        composed_backward::<Self>(logits, targets, log_sums, dlosses, smoothing)
    }
}

#[backend_extension(Flex, Autodiff, Cube: cfg(feature = "wgpu"))]
pub trait CrossEntropyOperation: Backend {
    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>, smoothing: f32) -> FloatTensor<Self>;
}

on_computing_backends!(CrossEntropyOperation {
    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>, smoothing: f32) -> FloatTensor<Self> {
        Self::cross_entropy_forward(logits, targets, smoothing).0
    }
});

#[cfg(feature = "wgpu")]
impl CrossEntropyBodies for burn::backend::Cube {}

impl<B: CrossEntropyBodies, C: CheckpointStrategy> CrossEntropyOperation for Autodiff<B, C> {
    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>, smoothing: f32) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct CrossEntropy;

        impl<B: CrossEntropyBodies> Backward<B, 1> for CrossEntropy {
            type State = (NodeId, IntTensor<B>, FloatTensor<B>, f32);

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
                let dlosses = grads.consume::<B>(&ops.node);
                let [parent] = ops.parents;
                if let Some(parent) = parent {
                    let (logits, targets, log_sums, smoothing) = ops.state;
                    let logits = checkpointer.retrieve_node_output(logits);
                    grads.register::<B>(parent.id, B::cross_entropy_backward(logits, targets, log_sums, dlosses, smoothing));
                }
            }
        }

        match CrossEntropy.prepare::<C>([logits.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let id = prepared.checkpoint(&logits);
                let (losses, log_sums) = B::cross_entropy_forward(logits.into_primitive(), targets.clone(), smoothing);
                prepared.finish((id, targets, log_sums, smoothing), losses)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::cross_entropy_forward(logits.into_primitive(), targets, smoothing).0),
        }
    }
}

impl CrossEntropyBodies for Flex {
    fn cross_entropy_forward(logits: FlexTensor, targets: FlexTensor, smoothing: f32) -> (FlexTensor, FlexTensor) {
        let logits = contiguous(logits);
        let targets = indices(targets);
        let rows = targets.len();
        let mut log_sums = vec![0.0; rows];
        let losses = filled([rows], |losses| kernel::forward(values(&logits), &targets, smoothing, losses, &mut log_sums));
        (losses, tensor(log_sums, [rows]))
    }

    fn cross_entropy_backward(logits: FlexTensor, targets: FlexTensor, log_sums: FlexTensor, dlosses: FlexTensor, smoothing: f32) -> FlexTensor {
        let (logits, dlosses) = (contiguous(logits), contiguous(dlosses));
        let targets = indices(targets);
        filled(logits.shape(), |dlogits| kernel::backward(values(&logits), &targets, smoothing, values(&log_sums), values(&dlosses), dlogits))
    }
}

/// Integers of any width as indices; a negative one becomes too large for any table, which the kernel reports.
fn indices(tensor: FlexTensor) -> Vec<usize> {
    let data = contiguous(tensor).into_data();
    data.iter::<i64>().map(|index| usize::try_from(index).unwrap_or(usize::MAX)).collect()
}

pub(super) fn composed_forward<B: Backend>(logits: FloatTensor<B>, targets: IntTensor<B>, smoothing: f32) -> (FloatTensor<B>, FloatTensor<B>) {
    let rows = logits.shape()[0];
    let largest = B::float_max_dim(logits.clone(), 1);
    let sums = B::float_sum_dim(B::float_exp(B::float_sub(logits.clone(), largest.clone())), 1);
    let log_sums = B::float_add(B::float_log(sums), largest);
    let of_target = B::float_gather(1, logits.clone(), B::int_reshape(targets, [rows, 1].into()));
    let mut losses = B::float_sub(log_sums.clone(), B::float_mul_scalar(of_target, (1.0 - smoothing).into()));
    if smoothing != 0.0 {
        losses = B::float_sub(losses, B::float_mul_scalar(B::float_mean_dim(logits, 1), smoothing.into()));
    }
    (B::float_reshape(losses, [rows].into()), B::float_reshape(log_sums, [rows].into()))
}

pub(super) fn composed_backward<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    log_sums: FloatTensor<B>,
    dlosses: FloatTensor<B>,
    smoothing: f32,
) -> FloatTensor<B> {
    let (rows, classes) = (logits.shape()[0], logits.shape()[1]);
    let column = |values: FloatTensor<B>| B::float_reshape(values, [rows, 1].into());
    let probabilities = B::float_exp(B::float_sub(logits, column(log_sums)));
    let spread = B::float_add_scalar(probabilities, (-smoothing / classes as f32).into());
    let gradient = B::float_mul(spread, column(dlosses.clone()));
    let of_target = B::float_mul_scalar(column(dlosses), (smoothing - 1.0).into());
    B::float_scatter(1, gradient, B::int_reshape(targets, [rows, 1].into()), of_target, IndexingUpdateOp::Add)
}
