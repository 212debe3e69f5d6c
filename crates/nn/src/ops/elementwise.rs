//! Activation functions of single elements, forward and backward in one pass each.
//!
//! GELU is the exact one (Hendrycks and Gimpel 2016), with its exact derivative; burn's own derivative is that of the tanh approximation.

use super::flex::{contiguous, filled, on_computing_backends, values};
use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension, flex::FlexTensor, tensor::FloatTensor};
use burn::tensor::Tensor;
use smalti_kernels::elementwise::{self as kernel, Function};

/// x / (1 + e^-x)
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply(x, Function::Silu)
}

/// x P(N(0, 1) < x)
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply(x, Function::Gelu)
}

/// x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, the approximation of GELU in its own paper (Hendrycks and Gimpel 2016), which GPT-2 and T5 1.1 were
/// trained with; up to 5e-4 from [`gelu`]. Composed of burn primitives on every backend.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let inner = (x.clone() * x.clone() * 0.044_715 + 1.0) * x.clone() * (2.0 / std::f32::consts::PI).sqrt();
    x * (inner.tanh() + 1.0) * 0.5
}

/// x / (1 + e^-1.702x), the approximation of GELU in OpenAI's CLIP
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply(x, Function::QuickGelu)
}

/// max(x, 0)
pub fn relu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply(x, Function::Relu)
}

/// x, or x * slope below 0
pub fn leaky_relu<const D: usize>(x: Tensor<D>, slope: f32) -> Tensor<D> {
    apply(x, Function::leaky_relu(slope))
}

fn apply<const D: usize>(x: Tensor<D>, function: Function) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as ElementwiseOperation>::elementwise(x.into_dispatch(), function))
}

/// Forward and gradient on one backend; the default bodies are composed of burn primitives.
pub trait ElementwiseBodies: Backend {
    fn elementwise_forward(x: FloatTensor<Self>, function: Function) -> FloatTensor<Self> {
        composed_forward::<Self>(x, function)
    }

    fn elementwise_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>, function: Function) -> FloatTensor<Self> {
        composed_backward::<Self>(x, dy, function)
    }
}

#[backend_extension(Flex, Autodiff, Cube: cfg(feature = "wgpu"))]
pub trait ElementwiseOperation: Backend {
    fn elementwise(x: FloatTensor<Self>, function: Function) -> FloatTensor<Self>;
}

on_computing_backends!(ElementwiseOperation {
    fn elementwise(x: FloatTensor<Self>, function: Function) -> FloatTensor<Self> {
        Self::elementwise_forward(x, function)
    }
});

#[cfg(feature = "wgpu")]
impl ElementwiseBodies for burn::backend::Cube {}

impl<B: ElementwiseBodies, C: CheckpointStrategy> ElementwiseOperation for Autodiff<B, C> {
    fn elementwise(x: FloatTensor<Self>, function: Function) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Elementwise;

        impl<B: ElementwiseBodies> Backward<B, 1> for Elementwise {
            type State = (NodeId, Function);

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
                let dy = grads.consume::<B>(&ops.node);
                let [parent] = ops.parents;
                if let Some(parent) = parent {
                    let (x, function) = ops.state;
                    let dx = B::elementwise_backward(checkpointer.retrieve_node_output(x), dy, function);
                    grads.register::<B>(parent.id, dx);
                }
            }
        }

        match Elementwise.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = (prepared.checkpoint(&x), function);
                prepared.finish(state, B::elementwise_forward(x.into_primitive(), function))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::elementwise_forward(x.into_primitive(), function)),
        }
    }
}

impl ElementwiseBodies for Flex {
    fn elementwise_forward(x: FlexTensor, function: Function) -> FlexTensor {
        let x = contiguous(x);
        filled(x.shape(), |y| kernel::apply(function, values(&x), y))
    }

    fn elementwise_backward(x: FlexTensor, dy: FlexTensor, function: Function) -> FlexTensor {
        let (x, dy) = (contiguous(x), contiguous(dy));
        filled(x.shape(), |dx| kernel::gradient(function, values(&x), values(&dy), dx))
    }
}

/// The factor of x in QuickGELU.
const QUICK: f32 = 1.702;

pub(super) fn composed_forward<B: Backend>(x: FloatTensor<B>, function: Function) -> FloatTensor<B> {
    match function {
        Function::Silu => B::float_mul(B::sigmoid(x.clone()), x),
        Function::Gelu => B::float_mul(probability::<B>(x.clone()), x),
        Function::QuickGelu => B::float_mul(B::sigmoid(B::float_mul_scalar(x.clone(), QUICK.into())), x),
        Function::Relu => B::relu(x),
        Function::LeakyRelu { slope_bits } => B::leaky_relu(x, f32::from_bits(slope_bits).into()),
    }
}

pub(super) fn composed_backward<B: Backend>(x: FloatTensor<B>, dy: FloatTensor<B>, function: Function) -> FloatTensor<B> {
    // (v sigmoid(v))' = s + v s - v s s
    let silu = |v: FloatTensor<B>| {
        let s = B::sigmoid(v.clone());
        let product = B::float_mul(v, s.clone());
        B::float_add(s.clone(), B::float_sub(product.clone(), B::float_mul(product, s)))
    };
    let below = |x: FloatTensor<B>, slope: f32| {
        // 1 above 0, the slope elsewhere
        let sign = B::relu(B::float_sign(x));
        B::float_add_scalar(B::float_mul_scalar(sign, (1.0 - slope).into()), slope.into())
    };
    let derivative = match function {
        Function::Silu => silu(x),
        Function::Gelu => {
            let density = B::float_exp(B::float_mul_scalar(B::float_mul(x.clone(), x.clone()), (-0.5f32).into()));
            let density = B::float_mul_scalar(density, (1.0 / std::f32::consts::TAU.sqrt()).into());
            B::float_add(probability::<B>(x.clone()), B::float_mul(x, density))
        }
        Function::QuickGelu => silu(B::float_mul_scalar(x, QUICK.into())),
        Function::Relu => below(x, 0.0),
        Function::LeakyRelu { slope_bits } => below(x, f32::from_bits(slope_bits)),
    };
    B::float_mul(dy, derivative)
}

/// P(N(0, 1) < x)
fn probability<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let erf = B::float_erf(B::float_mul_scalar(x, std::f32::consts::FRAC_1_SQRT_2.into()));
    B::float_mul_scalar(B::float_add_scalar(erf, 1.0f32.into()), 0.5f32.into())
}
