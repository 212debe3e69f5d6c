//! Group normalisation (Wu and He 2018), channels last, with the activation that follows it fused where the backend can.

use super::flex::{contiguous, filled, on_computing_backends, values};
use super::gradients::register;
use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension, flex::FlexTensor, tensor::FloatTensor};
use burn::tensor::Tensor;
use smalti_kernels::group_norm::{self as kernel, GroupNorm};

/// What is applied to the normalised values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Identity,
    Silu,
}

/// x [batch, height, width, channels], scale and bias [channels] -> the shape of x. Statistics run over height, width and the channels of a group.
pub fn group_norm(x: Tensor<4>, scale: Tensor<1>, bias: Tensor<1>, group_count: usize, epsilon: f32, activation: Activation) -> Tensor<4> {
    let [_, _, _, channels] = x.dims();
    assert!(
        group_count > 0 && channels.is_multiple_of(group_count) && scale.dims() == [channels] && bias.dims() == [channels],
        "group_norm: x {:?} does not fit {group_count} groups, scale {:?}, bias {:?}",
        x.dims(),
        scale.dims(),
        bias.dims()
    );
    let options = Options { group_count, epsilon, activation };
    Tensor::from_dispatch(<Dispatch as GroupNormOperation>::group_norm(x.into_dispatch(), scale.into_dispatch(), bias.into_dispatch(), options))
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub group_count: usize,
    pub epsilon: f32,
    pub activation: Activation,
}

/// What the backward pass needs beside the inputs: mean and 1 / deviation of each group, [batch, 1, groups, 1].
pub type Statistics<B> = (FloatTensor<B>, FloatTensor<B>);

/// Forward and gradients on one backend; the default bodies are composed of burn primitives.
pub trait GroupNormBodies: Backend {
    fn group_norm_forward(x: FloatTensor<Self>, scale: FloatTensor<Self>, bias: FloatTensor<Self>, options: Options) -> (FloatTensor<Self>, Statistics<Self>) {
        composed_forward::<Self>(x, scale, bias, options)
    }

    /// -> gradients of (x, scale, bias)
    fn group_norm_backward(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        statistics: Statistics<Self>,
        dy: FloatTensor<Self>,
        options: Options,
    ) -> [FloatTensor<Self>; 3] {
        composed_backward::<Self>(x, scale, bias, statistics, dy, options)
    }
}

#[backend_extension(Flex, Autodiff, Cube: cfg(feature = "wgpu"))]
pub trait GroupNormOperation: Backend {
    fn group_norm(x: FloatTensor<Self>, scale: FloatTensor<Self>, bias: FloatTensor<Self>, options: Options) -> FloatTensor<Self>;
}

on_computing_backends!(GroupNormOperation {
    fn group_norm(x: FloatTensor<Self>, scale: FloatTensor<Self>, bias: FloatTensor<Self>, options: Options) -> FloatTensor<Self> {
        Self::group_norm_forward(x, scale, bias, options).0
    }
});

#[cfg(feature = "wgpu")]
impl GroupNormBodies for burn::backend::Cube {}

impl<B: GroupNormBodies, C: CheckpointStrategy> GroupNormOperation for Autodiff<B, C> {
    fn group_norm(x: FloatTensor<Self>, scale: FloatTensor<Self>, bias: FloatTensor<Self>, options: Options) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct GroupNorm;

        impl<B: GroupNormBodies> Backward<B, 3> for GroupNorm {
            type State = ([NodeId; 3], Statistics<B>, Options);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
                let dy = grads.consume::<B>(&ops.node);
                let parents = ops.parents.map(|parent| parent.map(|parent| parent.id));
                let (inputs, statistics, options) = ops.state;
                let [x, scale, bias] = inputs.map(|input| checkpointer.retrieve_node_output::<FloatTensor<B>>(input));
                let gradients = B::group_norm_backward(x, scale, bias, statistics, dy, options);
                register::<B, 3>(grads, parents, gradients);
            }
        }

        match GroupNorm.prepare::<C>([x.node(), scale.node(), bias.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let inputs = [prepared.checkpoint(&x), prepared.checkpoint(&scale), prepared.checkpoint(&bias)];
                let (y, statistics) = B::group_norm_forward(x.into_primitive(), scale.into_primitive(), bias.into_primitive(), options);
                prepared.finish((inputs, statistics, options), y)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::group_norm_forward(x.into_primitive(), scale.into_primitive(), bias.into_primitive(), options).0)
            }
        }
    }
}

impl GroupNormBodies for Flex {
    fn group_norm_forward(x: FlexTensor, scale: FlexTensor, bias: FlexTensor, options: Options) -> (FlexTensor, Statistics<Self>) {
        let (x, scale, bias) = (contiguous(x), contiguous(scale), contiguous(bias));
        let shape = shape(&x, options);
        let statistics = [shape.batch, 1, shape.group_count, 1];
        let (mut mean, mut inverse) = (vec![0.0; shape.batch * shape.group_count], vec![0.0; shape.batch * shape.group_count]);
        let y = filled(x.shape(), |y| kernel::forward(values(&x), values(&scale), values(&bias), shape, y, &mut mean, &mut inverse));
        (y, (super::flex::tensor(mean, statistics), super::flex::tensor(inverse, statistics)))
    }

    fn group_norm_backward(
        x: FlexTensor,
        scale: FlexTensor,
        bias: FlexTensor,
        (mean, inverse): Statistics<Self>,
        dy: FlexTensor,
        options: Options,
    ) -> [FlexTensor; 3] {
        let (x, scale, bias, dy) = (contiguous(x), contiguous(scale), contiguous(bias), contiguous(dy));
        let shape = shape(&x, options);
        let (mut dscale, mut dbias) = (vec![0.0; shape.channels], vec![0.0; shape.channels]);
        let dx = filled(x.shape(), |dx| {
            let (x, scale, bias, dy) = (values(&x), values(&scale), values(&bias), values(&dy));
            kernel::backward(x, scale, bias, values(&mean), values(&inverse), dy, shape, dx, &mut dscale, &mut dbias);
        });
        [dx, super::flex::tensor(dscale, [shape.channels]), super::flex::tensor(dbias, [shape.channels])]
    }
}

fn shape(x: &FlexTensor, options: Options) -> GroupNorm {
    let [batch, height, width, channels] = x.shape().dims();
    let Options { group_count, epsilon, activation } = options;
    GroupNorm { batch, pixels: height * width, channels, group_count, epsilon, silu: activation == Activation::Silu }
}

pub(super) fn composed_forward<B: Backend>(
    x: FloatTensor<B>,
    scale: FloatTensor<B>,
    bias: FloatTensor<B>,
    options: Options,
) -> (FloatTensor<B>, Statistics<B>) {
    let shape = x.shape();
    let (x, count) = grouped::<B>(x, options.group_count);
    let mean = B::float_div_scalar(B::float_sum_dims(x.clone(), &[1, 3]), count.into());
    let centred = B::float_sub(x, mean.clone());
    let variance = B::float_div_scalar(B::float_sum_dims(B::float_mul(centred.clone(), centred.clone()), &[1, 3]), count.into());
    let inverse = B::float_recip(B::float_sqrt(B::float_add_scalar(variance, options.epsilon.into())));
    let value = affine::<B>(B::float_mul(centred, inverse.clone()), scale, bias, options.group_count);
    let y = match options.activation {
        Activation::Identity => value,
        Activation::Silu => B::float_mul(B::sigmoid(value.clone()), value),
    };
    (B::float_reshape(y, shape), (mean, inverse))
}

pub(super) fn composed_backward<B: Backend>(
    x: FloatTensor<B>,
    scale: FloatTensor<B>,
    bias: FloatTensor<B>,
    (mean, inverse): Statistics<B>,
    dy: FloatTensor<B>,
    options: Options,
) -> [FloatTensor<B>; 3] {
    let (shape, channels) = (x.shape(), scale.shape()[0]);
    let (x, count) = grouped::<B>(x, options.group_count);
    let (dy, _) = grouped::<B>(dy, options.group_count);
    let normalised = B::float_mul(B::float_sub(x, mean), inverse.clone());
    let d = match options.activation {
        Activation::Identity => dy,
        Activation::Silu => {
            let value = affine::<B>(normalised.clone(), scale.clone(), bias, options.group_count);
            let s = B::sigmoid(value.clone());
            // silu'(v) = s + v s - v s s
            let product = B::float_mul(value, s.clone());
            B::float_mul(dy, B::float_add(s.clone(), B::float_sub(product.clone(), B::float_mul(product, s))))
        }
    };
    let dscale = B::float_reshape(B::float_sum_dims(B::float_mul(d.clone(), normalised.clone()), &[0, 1]), [channels].into());
    let dbias = B::float_reshape(B::float_sum_dims(d.clone(), &[0, 1]), [channels].into());
    let g = B::float_mul(d, by_group::<B>(scale, options.group_count));
    let level = B::float_div_scalar(B::float_sum_dims(g.clone(), &[1, 3]), count.into());
    let along = B::float_div_scalar(B::float_sum_dims(B::float_mul(g.clone(), normalised.clone()), &[1, 3]), count.into());
    let dx = B::float_mul(B::float_sub(B::float_sub(g, level), B::float_mul(normalised, along)), inverse);
    [B::float_reshape(dx, shape), dscale, dbias]
}

/// [batch, pixels, groups, channels of a group], and how many elements a group of a picture has.
fn grouped<B: Backend>(x: FloatTensor<B>, group_count: usize) -> (FloatTensor<B>, f32) {
    let [batch, height, width, channels] = x.shape().dims();
    let size = channels / group_count;
    (B::float_reshape(x, [batch, height * width, group_count, size].into()), (height * width * size) as f32)
}

fn by_group<B: Backend>(parameter: FloatTensor<B>, group_count: usize) -> FloatTensor<B> {
    let size = parameter.shape()[0] / group_count;
    B::float_reshape(parameter, [1, 1, group_count, size].into())
}

fn affine<B: Backend>(x: FloatTensor<B>, scale: FloatTensor<B>, bias: FloatTensor<B>, group_count: usize) -> FloatTensor<B> {
    B::float_add(B::float_mul(x, by_group::<B>(scale, group_count)), by_group::<B>(bias, group_count))
}
