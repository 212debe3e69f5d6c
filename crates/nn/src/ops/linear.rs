//! Linear map of the last axis.

use super::flex::{contiguous, filled, on_computing_backends, values};
use super::gradients::{Wanted, register};
use super::products::{multiply, multiply_transposed};
use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension, flex::FlexTensor, tensor::FloatTensor};
use burn::tensor::{Shape, Tensor};
use smalti_kernels::product::Sizes;

/// x [..., input], weight [input, output], bias [output] -> [..., output]. A row's result does not depend on the other rows.
/// The weight may be a transposed view (tied embeddings): it is read where it lies.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let [input, output] = weight.dims();
    let bias = bias.unwrap_or_else(|| Tensor::zeros([output], &weight.device()));
    assert!(x.dims()[D - 1] == input && bias.dims() == [output], "linear: x {:?} does not fit weight {:?} and bias {:?}", x.dims(), weight.dims(), bias.dims());
    Tensor::from_dispatch(<Dispatch as LinearOperation>::linear(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()))
}

/// Forward and gradients on one backend; the default bodies are composed of burn primitives.
pub trait LinearBodies: Backend {
    fn linear_forward(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        composed_forward::<Self>(x, weight, bias)
    }

    /// -> the wanted gradients of (x, weight, bias)
    fn linear_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, dy: FloatTensor<Self>, wanted: Wanted) -> [Option<FloatTensor<Self>>; 3] {
        composed_backward::<Self>(x, weight, dy, wanted)
    }
}

#[backend_extension(Flex, Autodiff, Cube: cfg(feature = "wgpu"))]
pub trait LinearOperation: Backend {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
}

on_computing_backends!(LinearOperation {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::linear_forward(x, weight, bias)
    }
});

#[cfg(feature = "wgpu")]
impl LinearBodies for burn::backend::Cube {}

impl<B: LinearBodies, C: CheckpointStrategy> LinearOperation for Autodiff<B, C> {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Linear;

        impl<B: LinearBodies> Backward<B, 3> for Linear {
            type State = (NodeId, NodeId);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
                let dy = grads.consume::<B>(&ops.node);
                let parents = ops.parents.map(|parent| parent.map(|parent| parent.id));
                let (x, weight) = (checkpointer.retrieve_node_output(ops.state.0), checkpointer.retrieve_node_output(ops.state.1));
                let wanted = Wanted::by(&parents);
                register::<B, 3>(grads, parents, B::linear_backward(x, weight, dy, wanted));
            }
        }

        match Linear.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = (prepared.checkpoint(&x), prepared.checkpoint(&weight));
                prepared.finish(state, B::linear_forward(x.into_primitive(), weight.into_primitive(), bias.into_primitive()))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::linear_forward(x.into_primitive(), weight.into_primitive(), bias.into_primitive())),
        }
    }
}

impl LinearBodies for Flex {
    fn linear_forward(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let (x, bias) = (contiguous(x), contiguous(bias));
        let (weight, transposed) = as_it_lies(weight);
        let columns = bias.shape()[0];
        let sizes = sizes(&x, columns);
        filled(with_last(&x.shape(), columns), |y| multiply(values(&x), &weight, transposed, Some(values(&bias)), sizes, y))
    }

    fn linear_backward(x: FlexTensor, weight: FlexTensor, dy: FlexTensor, wanted: Wanted) -> [Option<FlexTensor>; 3] {
        let (x, dy) = (contiguous(x), contiguous(dy));
        let (weight, transposed) = as_it_lies(weight);
        let last = dy.shape().num_dims() - 1;
        let Sizes { rows, depth, columns } = sizes(&x, dy.shape()[last]);
        let dx = wanted.x.then(|| {
            let sizes = Sizes { rows, depth: columns, columns: depth };
            filled(x.shape(), |dx| multiply(values(&dy), &weight, !transposed, None, sizes, dx))
        });
        if !wanted.weight && !wanted.bias {
            return [dx, None, None];
        }
        let mut dbias = None;
        let dweight = filled([depth, columns], |dweight| {
            dbias = Some(filled([columns], |dbias| {
                multiply_transposed(values(&x), values(&dy), Sizes { rows: depth, depth: rows, columns }, dweight, Some(dbias));
            }));
        });
        [dx, Some(dweight), dbias]
    }
}

/// The weight as a contiguous tensor, and whether that is [output, input] (the view was transposed) rather than [input, output].
fn as_it_lies(weight: FlexTensor) -> (FlexTensor, bool) {
    if weight.is_contiguous() {
        return (weight, false);
    }
    let transposed = weight.transpose(0, 1);
    if transposed.is_contiguous() { (transposed, true) } else { (weight.to_contiguous(), false) }
}

fn sizes(x: &FlexTensor, columns: usize) -> Sizes {
    let shape = x.shape();
    let depth = shape[shape.num_dims() - 1];
    let rows = (0..shape.num_dims() - 1).map(|axis| shape[axis]).product();
    Sizes { rows, depth, columns }
}

fn with_last(shape: &Shape, size: usize) -> Shape {
    let mut shape = shape.clone();
    let last = shape.num_dims() - 1;
    shape[last] = size;
    shape
}

pub(super) fn composed_forward<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, bias: FloatTensor<B>) -> FloatTensor<B> {
    let (shape, columns) = (x.shape(), bias.shape()[0]);
    let weight = B::float_cast(weight, x.dtype().into()); // stored in 16 bits, perhaps
    let y = B::float_matmul(flat::<B>(x), weight);
    let y = B::float_add(y, B::float_reshape(bias, [1, columns].into()));
    B::float_reshape(y, with_last(&shape, columns))
}

pub(super) fn composed_backward<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, dy: FloatTensor<B>, wanted: Wanted) -> [Option<FloatTensor<B>>; 3] {
    let shape = x.shape();
    let (x, dy) = (flat::<B>(x), flat::<B>(dy));
    let columns = dy.shape()[1];
    let dx = wanted.x.then(|| B::float_reshape(B::float_matmul(dy.clone(), B::float_transpose(weight)), shape));
    let dweight = wanted.weight.then(|| B::float_matmul(B::float_transpose(x), dy.clone()));
    let dbias = wanted.bias.then(|| B::float_reshape(B::float_sum_dim(dy, 0), [columns].into()));
    [dx, dweight, dbias]
}

/// [rows, last axis]
fn flat<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let last = shape[shape.num_dims() - 1];
    let rows: usize = (0..shape.num_dims() - 1).map(|axis| shape[axis]).product();
    B::float_reshape(x, [rows, last].into())
}
