//! Feature maps side by side: the channels of one behind those of the other.

use super::flex::{contiguous, filled, on_computing_backends, values};
use super::gradients::register;
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension, flex::FlexTensor, tensor::FloatTensor};
use burn::tensor::{Slice, Tensor};
use smalti_kernels::concatenate as kernel;

/// a [batch, height, width, channels of a], b [batch, height, width, channels of b] -> [batch, height, width, channels of a + channels of b].
pub fn concatenate(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    assert!(a.dims()[..3] == b.dims()[..3], "concatenate: {:?} and {:?} differ in more than their channels", a.dims(), b.dims());
    Tensor::from_dispatch(<Dispatch as ConcatenateOperation>::concatenate(a.into_dispatch(), b.into_dispatch()))
}

/// Forward and gradients on one backend; the default bodies are composed of burn primitives.
pub trait ConcatenateBodies: Backend {
    fn concatenate_forward(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_cat(vec![a, b], 3)
    }

    /// -> the gradients of (a, b)
    fn concatenate_backward(dy: FloatTensor<Self>, channels: [usize; 2]) -> [FloatTensor<Self>; 2] {
        composed_backward::<Self>(dy, channels)
    }
}

#[backend_extension(Flex, Autodiff, Cube: cfg(feature = "wgpu"))]
pub trait ConcatenateOperation: Backend {
    fn concatenate(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
}

on_computing_backends!(ConcatenateOperation {
    fn concatenate(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::concatenate_forward(a, b)
    }
});

#[cfg(feature = "wgpu")]
impl ConcatenateBodies for burn::backend::Cube {}

impl<B: ConcatenateBodies, C: CheckpointStrategy> ConcatenateOperation for Autodiff<B, C> {
    fn concatenate(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Concatenate;

        impl<B: ConcatenateBodies> Backward<B, 2> for Concatenate {
            type State = [usize; 2];

            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let dy = grads.consume::<B>(&ops.node);
                let parents = ops.parents.map(|parent| parent.map(|parent| parent.id));
                register::<B, 2>(grads, parents, B::concatenate_backward(dy, ops.state));
            }
        }

        let channels = [a.shape()[3], b.shape()[3]];
        match Concatenate.prepare::<C>([a.node(), b.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(channels, B::concatenate_forward(a.into_primitive(), b.into_primitive())),
            OpsKind::UnTracked(prepared) => prepared.finish(B::concatenate_forward(a.into_primitive(), b.into_primitive())),
        }
    }
}

impl ConcatenateBodies for Flex {
    fn concatenate_forward(a: FlexTensor, b: FlexTensor) -> FlexTensor {
        let (a, b) = (contiguous(a), contiguous(b));
        let [batch, height, width, a_channels] = a.shape().dims();
        let b_channels = b.shape()[3];
        filled([batch, height, width, a_channels + b_channels], |y| kernel::forward(values(&a), values(&b), [a_channels, b_channels], y))
    }

    fn concatenate_backward(dy: FlexTensor, channels: [usize; 2]) -> [FlexTensor; 2] {
        let dy = contiguous(dy);
        let [batch, height, width, _] = dy.shape().dims();
        let mut db = None;
        let da = filled([batch, height, width, channels[0]], |da| {
            db = Some(filled([batch, height, width, channels[1]], |db| kernel::backward(values(&dy), channels, da, db)));
        });
        [da, db.expect("filled above")]
    }
}

pub(super) fn composed_backward<B: Backend>(dy: FloatTensor<B>, channels: [usize; 2]) -> [FloatTensor<B>; 2] {
    let part = |from: usize, to: usize| B::float_slice(dy.clone(), &[Slice::full(), Slice::full(), Slice::full(), Slice::from(from..to)]);
    [part(0, channels[0]), part(channels[0], channels[0] + channels[1])]
}
