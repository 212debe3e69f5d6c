//! Nearest-neighbour upsampling by two, channels last.

use super::flex::{contiguous, filled, on_computing_backends, values};
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension, flex::FlexTensor, tensor::FloatTensor};
use burn::tensor::Tensor;
use smalti_kernels::upsample::{self as kernel, Upsample};

/// x [batch, height, width, channels] -> [batch, 2 * height, 2 * width, channels], each pixel repeated in a square of four.
pub fn upsample_nearest(x: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as UpsampleOperation>::upsample_nearest(x.into_dispatch()))
}

/// Forward and gradient on one backend; the default bodies are composed of burn primitives.
pub trait UpsampleBodies: Backend {
    fn upsample_forward(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed_forward::<Self>(x)
    }

    fn upsample_backward(dy: FloatTensor<Self>) -> FloatTensor<Self> {
        composed_backward::<Self>(dy)
    }
}

#[backend_extension(Flex, Autodiff, Cube: cfg(feature = "wgpu"))]
pub trait UpsampleOperation: Backend {
    fn upsample_nearest(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

on_computing_backends!(UpsampleOperation {
    fn upsample_nearest(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::upsample_forward(x)
    }
});

#[cfg(feature = "wgpu")]
impl UpsampleBodies for burn::backend::Cube {}

impl<B: UpsampleBodies, C: CheckpointStrategy> UpsampleOperation for Autodiff<B, C> {
    fn upsample_nearest(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct UpsampleNearest;

        impl<B: UpsampleBodies> Backward<B, 1> for UpsampleNearest {
            type State = ();

            fn backward(self, ops: Ops<(), 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let dy = grads.consume::<B>(&ops.node);
                let [parent] = ops.parents;
                if let Some(parent) = parent {
                    grads.register::<B>(parent.id, B::upsample_backward(dy));
                }
            }
        }

        match UpsampleNearest.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((), B::upsample_forward(x.into_primitive())),
            OpsKind::UnTracked(prepared) => prepared.finish(B::upsample_forward(x.into_primitive())),
        }
    }
}

impl UpsampleBodies for Flex {
    fn upsample_forward(x: FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        let [batch, height, width, channels] = x.shape().dims();
        let shape = Upsample { lines: batch * height, width, channels };
        filled([batch, 2 * height, 2 * width, channels], |y| kernel::forward(values(&x), shape, y))
    }

    fn upsample_backward(dy: FlexTensor) -> FlexTensor {
        let dy = contiguous(dy);
        let [batch, height, width, channels] = dy.shape().dims();
        let shape = Upsample { lines: batch * height / 2, width: width / 2, channels };
        filled([batch, height / 2, width / 2, channels], |dx| kernel::backward(values(&dy), shape, dx))
    }
}

pub(super) fn composed_forward<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [batch, height, width, channels] = x.shape().dims();
    let x = B::float_reshape(x, [batch, height, 1, width, 1, channels].into());
    let x = B::float_expand(x, [batch, height, 2, width, 2, channels].into());
    B::float_reshape(x, [batch, 2 * height, 2 * width, channels].into())
}

pub(super) fn composed_backward<B: Backend>(dy: FloatTensor<B>) -> FloatTensor<B> {
    let [batch, height, width, channels] = dy.shape().dims();
    let dy = B::float_reshape(dy, [batch, height / 2, 2, width / 2, 2, channels].into());
    B::float_reshape(B::float_sum_dims(dy, &[2, 4]), [batch, height / 2, width / 2, channels].into())
}
