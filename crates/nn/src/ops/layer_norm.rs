//! Layer normalisation (Ba, Kiros and Hinton 2016) over the last axis.

use super::flex::{contiguous, filled, on_computing_backends, tensor, values};
use super::gradients::register;
use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension, flex::FlexTensor, tensor::FloatTensor};
use burn::tensor::{Shape, Tensor};
use smalti_kernels::layer_norm as kernel;

/// x [..., channels], scale and bias [channels] -> the shape of x.
pub fn layer_norm<const D: usize>(x: Tensor<D>, scale: Tensor<1>, bias: Option<Tensor<1>>, epsilon: f32) -> Tensor<D> {
    let channels = x.dims()[D - 1];
    let bias = bias.unwrap_or_else(|| Tensor::zeros([channels], &scale.device()));
    assert!(
        scale.dims() == [channels] && bias.dims() == [channels],
        "layer_norm: x {:?} does not fit scale {:?} and bias {:?}",
        x.dims(),
        scale.dims(),
        bias.dims()
    );
    Tensor::from_dispatch(<Dispatch as LayerNormOperation>::layer_norm(x.into_dispatch(), scale.into_dispatch(), bias.into_dispatch(), epsilon))
}

/// What the backward pass needs beside the inputs: mean and 1 / deviation of each row, [..., 1].
pub type Statistics<B> = (FloatTensor<B>, FloatTensor<B>);

/// Forward and gradients on one backend; the default bodies are composed of burn primitives.
pub trait LayerNormBodies: Backend {
    fn layer_norm_forward(x: FloatTensor<Self>, scale: FloatTensor<Self>, bias: FloatTensor<Self>, epsilon: f32) -> (FloatTensor<Self>, Statistics<Self>) {
        composed_forward::<Self>(x, scale, bias, epsilon)
    }

    /// -> gradients of (x, scale, bias)
    fn layer_norm_backward(x: FloatTensor<Self>, scale: FloatTensor<Self>, statistics: Statistics<Self>, dy: FloatTensor<Self>) -> [FloatTensor<Self>; 3] {
        composed_backward::<Self>(x, scale, statistics, dy)
    }
}

#[backend_extension(Flex, Autodiff, Cube: cfg(feature = "wgpu"))]
pub trait LayerNormOperation: Backend {
    fn layer_norm(x: FloatTensor<Self>, scale: FloatTensor<Self>, bias: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
}

on_computing_backends!(LayerNormOperation {
    fn layer_norm(x: FloatTensor<Self>, scale: FloatTensor<Self>, bias: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        Self::layer_norm_forward(x, scale, bias, epsilon).0
    }
});

#[cfg(feature = "wgpu")]
impl LayerNormBodies for burn::backend::Cube {}

impl<B: LayerNormBodies, C: CheckpointStrategy> LayerNormOperation for Autodiff<B, C> {
    fn layer_norm(x: FloatTensor<Self>, scale: FloatTensor<Self>, bias: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LayerNorm;

        impl<B: LayerNormBodies> Backward<B, 3> for LayerNorm {
            type State = (NodeId, NodeId, Statistics<B>);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
                let dy = grads.consume::<B>(&ops.node);
                let parents = ops.parents.map(|parent| parent.map(|parent| parent.id));
                let (x, scale, statistics) = ops.state;
                let (x, scale) = (checkpointer.retrieve_node_output(x), checkpointer.retrieve_node_output(scale));
                register::<B, 3>(grads, parents, B::layer_norm_backward(x, scale, statistics, dy));
            }
        }

        match LayerNorm.prepare::<C>([x.node(), scale.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let (x_id, scale_id) = (prepared.checkpoint(&x), prepared.checkpoint(&scale));
                let (y, statistics) = B::layer_norm_forward(x.into_primitive(), scale.into_primitive(), bias.into_primitive(), epsilon);
                prepared.finish((x_id, scale_id, statistics), y)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::layer_norm_forward(x.into_primitive(), scale.into_primitive(), bias.into_primitive(), epsilon).0)
            }
        }
    }
}

impl LayerNormBodies for Flex {
    fn layer_norm_forward(x: FlexTensor, scale: FlexTensor, bias: FlexTensor, epsilon: f32) -> (FlexTensor, Statistics<Self>) {
        let (x, scale, bias) = (contiguous(x), contiguous(scale), contiguous(bias));
        let statistics = rows(&x.shape());
        let row_count = statistics.num_elements();
        let (mut mean, mut inverse) = (vec![0.0; row_count], vec![0.0; row_count]);
        let y = filled(x.shape(), |y| kernel::forward(values(&x), values(&scale), Some(values(&bias)), epsilon, y, &mut mean, &mut inverse));
        (y, (tensor(mean, statistics.clone()), tensor(inverse, statistics)))
    }

    fn layer_norm_backward(x: FlexTensor, scale: FlexTensor, (mean, inverse): Statistics<Self>, dy: FlexTensor) -> [FlexTensor; 3] {
        let (x, scale, dy) = (contiguous(x), contiguous(scale), contiguous(dy));
        let channels = scale.shape()[0];
        let (mut dscale, mut dbias) = (vec![0.0; channels], vec![0.0; channels]);
        let dx = filled(x.shape(), |dx| {
            kernel::backward(values(&x), values(&scale), values(&mean), values(&inverse), values(&dy), dx, &mut dscale, Some(&mut dbias));
        });
        [dx, tensor(dscale, [channels]), tensor(dbias, [channels])]
    }
}

/// The shape of one number per row.
fn rows(shape: &Shape) -> Shape {
    let mut rows = shape.clone();
    let last = rows.num_dims() - 1;
    rows[last] = 1;
    rows
}

pub(super) fn composed_forward<B: Backend>(x: FloatTensor<B>, scale: FloatTensor<B>, bias: FloatTensor<B>, epsilon: f32) -> (FloatTensor<B>, Statistics<B>) {
    let rank = x.shape().num_dims();
    let mean = B::float_mean_dim(x.clone(), rank - 1);
    let centred = B::float_sub(x, mean.clone());
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), rank - 1);
    let inverse = B::float_recip(B::float_sqrt(B::float_add_scalar(variance, epsilon.into())));
    let y = B::float_add(B::float_mul(B::float_mul(centred, inverse.clone()), row::<B>(scale, rank)), row::<B>(bias, rank));
    (y, (mean, inverse))
}

pub(super) fn composed_backward<B: Backend>(
    x: FloatTensor<B>,
    scale: FloatTensor<B>,
    (mean, inverse): Statistics<B>,
    dy: FloatTensor<B>,
) -> [FloatTensor<B>; 3] {
    let (rank, channels) = (x.shape().num_dims(), scale.shape()[0]);
    let normalised = B::float_mul(B::float_sub(x, mean), inverse.clone());
    let leading: Vec<usize> = (0..rank - 1).collect();
    let dscale = B::float_reshape(B::float_sum_dims(B::float_mul(dy.clone(), normalised.clone()), &leading), [channels].into());
    let dbias = B::float_reshape(B::float_sum_dims(dy.clone(), &leading), [channels].into());
    let g = B::float_mul(dy, row::<B>(scale, rank));
    let level = B::float_mean_dim(g.clone(), rank - 1);
    let along = B::float_mean_dim(B::float_mul(g.clone(), normalised.clone()), rank - 1);
    let dx = B::float_mul(B::float_sub(B::float_sub(g, level), B::float_mul(normalised, along)), inverse);
    [dx, dscale, dbias]
}

/// A parameter [channels] as [1, ..., 1, channels].
fn row<B: Backend>(parameter: FloatTensor<B>, rank: usize) -> FloatTensor<B> {
    let mut shape = vec![1; rank];
    shape[rank - 1] = parameter.shape()[0];
    B::float_reshape(parameter, Shape::from(shape))
}
