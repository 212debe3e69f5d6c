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
use smalti_kernels::convolution::{Added, Convolution};

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
    check(&x, &weight, stride, padding);
    let bias = common_bias(bias, &weight);
    let y = <Dispatch as Conv2dOperation>::conv2d(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch(), stride, padding);
    Tensor::from_dispatch(y)
}

/// [`conv2d`] with another bias for each picture, [batch, output_channels].
pub fn conv2d_shifted(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<2>, stride: usize, padding: Padding) -> Tensor<4> {
    let [batch, _, _, channels] = check(&x, &weight, stride, padding);
    assert!(bias.dims() == [batch, channels], "conv2d: a bias for each picture {:?} does not fit x {:?} and weight {:?}", bias.dims(), x.dims(), weight.dims());
    let y = <Dispatch as Conv2dOperation>::conv2d(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch(), stride, padding);
    Tensor::from_dispatch(y)
}

/// residual + [`conv2d`], as one operation: the convolution alone is never in memory.
pub fn conv2d_onto(residual: Tensor<4>, x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, stride: usize, padding: Padding) -> Tensor<4> {
    let shape = check(&x, &weight, stride, padding);
    let bias = common_bias(bias, &weight);
    assert!(residual.dims() == shape, "conv2d: a residual {:?} does not fit the output {shape:?}", residual.dims());
    let (residual, x, weight, bias) = (residual.into_dispatch(), x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Conv2dOperation>::conv2d_onto(residual, x, weight, bias, stride, padding))
}

/// The bias that all pictures share, zeros if there is none.
fn common_bias(bias: Option<Tensor<1>>, weight: &Tensor<4>) -> Tensor<1> {
    let channels = weight.dims()[3];
    let bias = bias.unwrap_or_else(|| Tensor::zeros([channels], &weight.device()));
    assert!(bias.dims() == [channels], "conv2d: bias {:?} does not fit weight {:?}", bias.dims(), weight.dims());
    bias
}

/// -> the output's shape.
fn check(x: &Tensor<4>, weight: &Tensor<4>, stride: usize, padding: Padding) -> [usize; 4] {
    let ([batch, height, width, channels], [kernel_height, kernel_width, input_channels, output_channels]) = (x.dims(), weight.dims());
    assert!(
        channels == input_channels && kernel_height == kernel_width && height.min(width) + padding.before + padding.after >= kernel_height,
        "conv2d: x {:?} with {padding:?} does not fit weight {:?} ([kernel, kernel, input, output])",
        x.dims(),
        weight.dims()
    );
    assert!(stride > 0, "conv2d: expected a stride of at least 1, found 0");
    let outputs = |size: usize| (size + padding.before + padding.after - kernel_height) / stride + 1;
    [batch, outputs(height), outputs(width), output_channels]
}

/// Forward and gradients on one backend; the default bodies are composed of burn primitives. A bias is [output_channels] or [batch, output_channels].
pub trait Conv2dBodies: Backend {
    fn conv2d_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
        stride: usize,
        padding: Padding,
    ) -> FloatTensor<Self> {
        composed_forward::<Self>(x, weight, bias, residual, stride, padding)
    }

    /// -> the wanted gradients of (x, weight, bias)
    fn conv2d_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, dy: FloatTensor<Self>, options: BackwardOptions) -> [Option<FloatTensor<Self>>; 3] {
        composed_backward::<Self>(x, weight, dy, options)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct BackwardOptions {
    pub stride: usize,
    pub padding: Padding,
    /// Whether each picture has a bias of its own.
    pub shifted: bool,
    pub wanted: Wanted,
}

#[backend_extension(Flex, Autodiff, Cube: cfg(feature = "wgpu"))]
pub trait Conv2dOperation: Backend {
    fn conv2d(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, stride: usize, padding: Padding) -> FloatTensor<Self>;

    fn conv2d_onto(
        residual: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: usize,
        padding: Padding,
    ) -> FloatTensor<Self>;
}

on_computing_backends!(Conv2dOperation {
    fn conv2d(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, stride: usize, padding: Padding) -> FloatTensor<Self> {
        Self::conv2d_forward(x, weight, bias, None, stride, padding)
    }

    fn conv2d_onto(
        residual: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: usize,
        padding: Padding,
    ) -> FloatTensor<Self> {
        Self::conv2d_forward(x, weight, bias, Some(residual), stride, padding)
    }
});

#[cfg(feature = "wgpu")]
impl Conv2dBodies for burn::backend::Cube {}

/// Parents are x, weight and bias, and the residual where there is one.
#[derive(Debug)]
struct Conv2d;

#[derive(Clone, Copy, Debug)]
struct Conv2dState {
    x: NodeId,
    weight: NodeId,
    stride: usize,
    padding: Padding,
    shifted: bool,
}

impl<B: Conv2dBodies, const N: usize> Backward<B, N> for Conv2d {
    type State = Conv2dState;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| parent.map(|parent| parent.id));
        let Conv2dState { x, weight, stride, padding, shifted } = ops.state;
        let (x, weight) = (checkpointer.retrieve_node_output(x), checkpointer.retrieve_node_output(weight));
        if let Some(residual) = parents.get(3).copied().flatten() {
            grads.register::<B>(residual, dy.clone());
        }
        let parents = [parents[0], parents[1], parents[2]];
        let gradients = B::conv2d_backward(x, weight, dy, BackwardOptions { stride, padding, shifted, wanted: Wanted::by(&parents) });
        register::<B, 3>(grads, parents, gradients);
    }
}

impl<B: Conv2dBodies, C: CheckpointStrategy> Conv2dOperation for Autodiff<B, C> {
    fn conv2d(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, stride: usize, padding: Padding) -> FloatTensor<Self> {
        let shifted = bias.shape().num_dims() == 2;
        match Conv2d.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = Conv2dState { x: prepared.checkpoint(&x), weight: prepared.checkpoint(&weight), stride, padding, shifted };
                prepared.finish(state, B::conv2d_forward(x.into_primitive(), weight.into_primitive(), bias.into_primitive(), None, stride, padding))
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::conv2d_forward(x.into_primitive(), weight.into_primitive(), bias.into_primitive(), None, stride, padding))
            }
        }
    }

    fn conv2d_onto(
        residual: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        stride: usize,
        padding: Padding,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node(), residual.node()];
        let forward = |x: FloatTensor<Self>, weight: FloatTensor<Self>| {
            B::conv2d_forward(x.into_primitive(), weight.into_primitive(), bias.into_primitive(), Some(residual.into_primitive()), stride, padding)
        };
        match Conv2d.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = Conv2dState { x: prepared.checkpoint(&x), weight: prepared.checkpoint(&weight), stride, padding, shifted: false };
                prepared.finish(state, forward(x, weight))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(forward(x, weight)),
        }
    }
}

impl Conv2dBodies for Flex {
    fn conv2d_forward(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, residual: Option<FlexTensor>, stride: usize, padding: Padding) -> FlexTensor {
        let shape = shape(&x, &weight, stride, padding);
        let (x, weight, bias, residual) = (contiguous(x), contiguous(weight), contiguous(bias), residual.map(contiguous));
        let shifted = bias.shape().num_dims() == 2;
        let (bias, residual) = (values(&bias), residual.as_ref().map(values));
        let added = if shifted { Added { bias: None, shifts: Some(bias), residual } } else { Added { bias: Some(bias), shifts: None, residual } };
        filled([shape.batch, shape.output_height(), shape.output_width(), shape.output_channels], |y| {
            convolution::forward(values(&x), &weight, added, shape, y);
        })
    }

    fn conv2d_backward(x: FlexTensor, weight: FlexTensor, dy: FlexTensor, options: BackwardOptions) -> [Option<FlexTensor>; 3] {
        let BackwardOptions { stride, padding, shifted, wanted } = options;
        let shape = shape(&x, &weight, stride, padding);
        let (x, weight, dy) = (contiguous(x), contiguous(weight), contiguous(dy));
        let dx = wanted.x.then(|| filled(x.shape(), |dx| convolution::input_gradient(&weight, values(&dy), shape, dx)));
        if !wanted.weight && !wanted.bias {
            return [dx, None, None];
        }
        if shifted {
            let dweight = wanted.weight.then(|| filled(weight.shape(), |dweight| convolution::weight_gradient(values(&x), values(&dy), shape, dweight, None)));
            let dshifts = wanted.bias.then(|| filled([shape.batch, shape.output_channels], |dshifts| convolution::shift_gradient(values(&dy), shape, dshifts)));
            return [dx, dweight, dshifts];
        }
        let mut dbias = None;
        let dweight = filled(weight.shape(), |dweight| {
            dbias = Some(filled([shape.output_channels], |dbias| convolution::weight_gradient(values(&x), values(&dy), shape, dweight, Some(dbias))));
        });
        [dx, Some(dweight), dbias]
    }
}

fn shape(x: &FlexTensor, weight: &FlexTensor, stride: usize, padding: Padding) -> Convolution {
    let (x, weight) = (x.shape(), weight.shape());
    let Padding { before, after } = padding;
    Convolution { batch: x[0], height: x[1], width: x[2], input_channels: x[3], output_channels: weight[3], kernel_size: weight[0], stride, before, after }
}

pub(super) fn composed_forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    stride: usize,
    padding: Padding,
) -> FloatTensor<B> {
    let weight = B::float_cast(weight, x.dtype().into()); // stored in 16 bits, perhaps
    let (x, options) = pad::<B>(x, stride, padding);
    let (common, shifts) = if bias.shape().num_dims() == 1 { (Some(bias), None) } else { (None, Some(bias)) };
    let y = B::conv2d(B::float_permute(x, &[0, 3, 1, 2]), B::float_permute(weight, &[3, 2, 0, 1]), common, options);
    let mut y = B::float_permute(y, &[0, 2, 3, 1]);
    if let Some(shifts) = shifts {
        let (batch, channels) = (shifts.shape()[0], shifts.shape()[1]);
        y = B::float_add(y, B::float_reshape(shifts, [batch, 1, 1, channels].into()));
    }
    match residual {
        Some(residual) => B::float_add(y, residual),
        None => y,
    }
}

pub(super) fn composed_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    dy: FloatTensor<B>,
    options: BackwardOptions,
) -> [Option<FloatTensor<B>>; 3] {
    let BackwardOptions { stride, padding, shifted, wanted } = options;
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
        let (batch, channels) = (dy.shape()[0], dy.shape()[1]);
        if shifted {
            B::float_reshape(B::float_sum_dims(dy, &[2, 3]), [batch, channels].into())
        } else {
            B::float_reshape(B::float_sum_dims(dy, &[0, 2, 3]), [channels].into())
        }
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
