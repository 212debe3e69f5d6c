//! Two-dimensional convolution (cross-correlation), channels last.
//!
//! y[b, i, j, o] = bias[o] + sum over u, v, c of weight[u, v, c, o] * x[b, i*s + u - before, j*s + v - before, c]

use super::flex::{contiguous, filled, on_computing_backends, values};
use super::gradients::{Wanted, register};
use super::products::convolution;
use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension, flex::FlexTensor, tensor::FloatTensor};
use burn::tensor::{FloatDType, Slice, Tensor, ops::ConvOptions};
use smalti_kernels::convolution::Convolution;

/// Zeros around the picture, the same on both axes: rows above and columns left, rows below and columns right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    pub before: usize,
    pub after: usize,
}

impl Padding {
    pub const NONE: Self = Self::both(0);

    pub const fn both(size: usize) -> Self {
        Self { before: size, after: size }
    }
}

/// x [batch, height, width, input_channels], weight [kernel, kernel, input_channels, output_channels], bias [output_channels]
/// -> [batch, (height + before + after - kernel) / stride + 1, likewise, output_channels].
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, stride: usize, padding: Padding) -> Tensor<4> {
    let ([_, height, width, channels], [kernel_height, kernel_width, input_channels, output_channels]) = (x.dims(), weight.dims());
    assert!(
        channels == input_channels && kernel_height == kernel_width && height.min(width) + padding.before + padding.after >= kernel_height,
        "conv2d: x {:?} with {padding:?} does not fit weight {:?} ([kernel, kernel, input, output])",
        x.dims(),
        weight.dims()
    );
    assert!(stride > 0, "conv2d: expected a stride of at least 1, found 0");
    let bias = bias.unwrap_or_else(|| Tensor::zeros([output_channels], &weight.device()));
    assert!(bias.dims() == [output_channels], "conv2d: bias {:?} does not fit weight {:?}", bias.dims(), weight.dims());
    let y = <Dispatch as Conv2dOperation>::conv2d(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch(), stride, padding);
    Tensor::from_dispatch(y)
}

/// Forward and gradients on one backend; the default bodies are composed of burn primitives.
pub trait Conv2dBodies: Backend {
    fn conv2d_forward(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, stride: usize, padding: Padding) -> FloatTensor<Self> {
        composed_forward::<Self>(x, weight, bias, stride, padding)
    }

    /// -> the wanted gradients of (x, weight, bias)
    fn conv2d_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        stride: usize,
        padding: Padding,
        wanted: Wanted,
    ) -> [Option<FloatTensor<Self>>; 3] {
        composed_backward::<Self>(x, weight, dy, stride, padding, wanted)
    }
}

#[backend_extension(Flex, Autodiff, Cube: cfg(feature = "wgpu"))]
pub trait Conv2dOperation: Backend {
    fn conv2d(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, stride: usize, padding: Padding) -> FloatTensor<Self>;
}

on_computing_backends!(Conv2dOperation {
    fn conv2d(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, stride: usize, padding: Padding) -> FloatTensor<Self> {
        Self::conv2d_forward(x, weight, bias, stride, padding)
    }
});

#[cfg(feature = "wgpu")]
impl Conv2dBodies for burn::backend::Cube {}

impl<B: Conv2dBodies, C: CheckpointStrategy> Conv2dOperation for Autodiff<B, C> {
    fn conv2d(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, stride: usize, padding: Padding) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Conv2d;

        impl<B: Conv2dBodies> Backward<B, 3> for Conv2d {
            type State = (NodeId, NodeId, usize, Padding);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
                let dy = grads.consume::<B>(&ops.node);
                let parents = ops.parents.map(|parent| parent.map(|parent| parent.id));
                let (x, weight, stride, padding) = ops.state;
                let (x, weight) = (checkpointer.retrieve_node_output(x), checkpointer.retrieve_node_output(weight));
                let wanted = Wanted::by(&parents);
                let gradients = B::conv2d_backward(x, weight, dy, stride, padding, wanted);
                register::<B, 3>(grads, parents, gradients);
            }
        }

        match Conv2d.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = (prepared.checkpoint(&x), prepared.checkpoint(&weight), stride, padding);
                prepared.finish(state, B::conv2d_forward(x.into_primitive(), weight.into_primitive(), bias.into_primitive(), stride, padding))
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::conv2d_forward(x.into_primitive(), weight.into_primitive(), bias.into_primitive(), stride, padding))
            }
        }
    }
}

impl Conv2dBodies for Flex {
    fn conv2d_forward(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, stride: usize, padding: Padding) -> FlexTensor {
        let shape = shape(&x, &weight, stride, padding);
        let (x, weight, bias) = (contiguous(x), contiguous(weight), contiguous(bias));
        filled([shape.batch, shape.output_height(), shape.output_width(), shape.output_channels], |y| {
            convolution::forward(values(&x), &weight, Some(values(&bias)), shape, y);
        })
    }

    fn conv2d_backward(x: FlexTensor, weight: FlexTensor, dy: FlexTensor, stride: usize, padding: Padding, wanted: Wanted) -> [Option<FlexTensor>; 3] {
        let shape = shape(&x, &weight, stride, padding);
        let (x, weight, dy) = (contiguous(x), contiguous(weight), contiguous(dy));
        let dx = wanted.x.then(|| filled(x.shape(), |dx| convolution::input_gradient(&weight, values(&dy), shape, dx)));
        if !wanted.weight && !wanted.bias {
            return [dx, None, None];
        }
        let mut dbias = None;
        let dweight = filled(weight.shape(), |dweight| {
            dbias = Some(filled([shape.output_channels], |dbias| {
                convolution::weight_gradient(values(&x), values(&dy), shape, dweight, Some(dbias));
            }));
        });
        [dx, Some(dweight), dbias]
    }
}

fn shape(x: &FlexTensor, weight: &FlexTensor, stride: usize, padding: Padding) -> Convolution {
    let (x, weight) = (x.shape(), weight.shape());
    let Padding { before, after } = padding;
    Convolution { batch: x[0], height: x[1], width: x[2], input_channels: x[3], output_channels: weight[3], kernel_size: weight[0], stride, before, after }
}

pub(super) fn composed_forward<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, bias: FloatTensor<B>, stride: usize, padding: Padding) -> FloatTensor<B> {
    let weight = B::float_cast(weight, x.dtype().into()); // stored in 16 bits, perhaps
    let (x, options) = pad::<B>(x, stride, padding);
    let y = B::conv2d(B::float_permute(x, &[0, 3, 1, 2]), B::float_permute(weight, &[3, 2, 0, 1]), Some(bias), options);
    B::float_permute(y, &[0, 2, 3, 1])
}

pub(super) fn composed_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    dy: FloatTensor<B>,
    stride: usize,
    padding: Padding,
    wanted: Wanted,
) -> [Option<FloatTensor<B>>; 3] {
    let (height, width) = (x.shape()[1], x.shape()[2]);
    let (x, options) = pad::<B>(x, stride, padding);
    let padded = x.shape()[1] != height;
    let (x, weight, dy) = (B::float_permute(x, &[0, 3, 1, 2]), B::float_permute(weight, &[3, 2, 0, 1]), B::float_permute(dy, &[0, 3, 1, 2]));
    let dx = wanted.x.then(|| {
        let dx = B::float_permute(B::conv2d_x_backward(x.clone(), weight.clone(), dy.clone(), options.clone()), &[0, 2, 3, 1]);
        let inside = |size: usize| Slice::from(padding.before..padding.before + size);
        if padded { B::float_slice(dx, &[Slice::full(), inside(height), inside(width), Slice::full()]) } else { dx }
    });
    let dweight = wanted.weight.then(|| B::float_permute(B::conv2d_weight_backward(x, weight, dy.clone(), options), &[2, 3, 1, 0]));
    let dbias = wanted.bias.then(|| {
        let channels = dy.shape()[1];
        B::float_reshape(B::float_sum_dims(dy, &[0, 2, 3]), [channels].into())
    });
    [dx, dweight, dbias]
}

/// burn's convolution pads both sides alike: other paddings become part of x.
fn pad<B: Backend>(x: FloatTensor<B>, stride: usize, padding: Padding) -> (FloatTensor<B>, ConvOptions<2>) {
    let Padding { before, after } = padding;
    if before == after {
        return (x, ConvOptions::new([stride; 2], [before; 2], [1, 1], 1));
    }
    let [batch, height, width, channels] = x.shape().dims();
    let dtype: FloatDType = x.dtype().into();
    let zeros = B::float_zeros([batch, height + before + after, width + before + after, channels].into(), &x.device(), dtype);
    let inside = |size: usize| Slice::from(before..before + size);
    let x = B::float_slice_assign(zeros, &[Slice::full(), inside(height), inside(width), Slice::full()], x);
    (x, ConvOptions::new([stride; 2], [0; 2], [1, 1], 1))
}
