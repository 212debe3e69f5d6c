//! Scaled dot-product attention (Vaswani et al. 2017, equation 1), over heads, without the matrix of scores in memory where the backend can.

use super::flex::{on_computing_backends, tensor};
use super::gradients::register;
use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension, flex::FlexTensor, tensor::FloatTensor};
use burn::tensor::{Bool, Tensor, TensorData};
use smalti_kernels::attention::{self as kernel, Heads, Strides};

/// Which keys a query may see.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // one exists per call; a box would only be in the caller's way
pub enum Mask {
    /// Every query sees every key.
    None,
    /// Query i sees keys 0..=i + (keys - queries): the last query sees all keys, as with a key-value cache.
    Causal,
    /// [batch, keys]: true where a key may be seen (text padding is false). At least one key of each row must be true.
    Keys(Tensor<2, Bool>),
}

/// query [batch, heads, queries, channels], key and value [batch, heads, keys, channels] -> [batch, heads, queries, channels].
/// Scores are multiplied by 1 / sqrt(channels). A query's result does not depend on the other queries.
pub fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, mask: Mask) -> Tensor<4> {
    let ([batch, heads, queries, channels], [_, _, keys, _]) = (query.dims(), key.dims());
    assert!(
        key.dims() == [batch, heads, keys, channels] && value.dims() == key.dims(),
        "attention: query {:?} does not fit key {:?} and value {:?}",
        query.dims(),
        key.dims(),
        value.dims()
    );
    let (visible, causal, masked) = match mask {
        Mask::None => (Tensor::ones([1, 1], &query.device()), false, false),
        Mask::Causal => {
            assert!(keys >= queries, "attention: causal mask with {queries} queries and only {keys} keys");
            (Tensor::ones([1, 1], &query.device()), true, false)
        }
        Mask::Keys(visible) => {
            assert!(visible.dims() == [batch, keys], "attention: key mask {:?} does not fit [{batch}, {keys}]", visible.dims());
            (visible.float(), false, true)
        }
    };
    let options = Options { causal, masked, scale: 1.0 / (channels as f32).sqrt() };
    let y = <Dispatch as AttentionOperation>::attention(query.into_dispatch(), key.into_dispatch(), value.into_dispatch(), visible.into_dispatch(), options);
    Tensor::from_dispatch(y)
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub causal: bool,
    /// Whether the tensor `visible` [batch, keys] (1 seen, 0 not) counts; it is a stand-in [1, 1] otherwise.
    pub masked: bool,
    pub scale: f32,
}

/// Forward and gradients on one backend; the default bodies are composed of burn primitives.
pub trait AttentionBodies: Backend {
    /// -> (y, logarithm of each query's sum of exponentials [batch, heads, queries, 1])
    fn attention_forward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        visible: FloatTensor<Self>,
        options: Options,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed_forward::<Self>(query, key, value, visible, options)
    }

    /// `result` is what the forward pass gave. -> gradients of (query, key, value)
    fn attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        visible: FloatTensor<Self>,
        result: (FloatTensor<Self>, FloatTensor<Self>),
        dy: FloatTensor<Self>,
        options: Options,
    ) -> [FloatTensor<Self>; 3] {
        composed_backward::<Self>(query, key, value, visible, result, dy, options)
    }
}

#[backend_extension(Flex, Autodiff, Cube: cfg(feature = "wgpu"))]
pub trait AttentionOperation: Backend {
    fn attention(query: FloatTensor<Self>, key: FloatTensor<Self>, value: FloatTensor<Self>, visible: FloatTensor<Self>, options: Options)
    -> FloatTensor<Self>;
}

on_computing_backends!(AttentionOperation {
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        visible: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        Self::attention_forward(query, key, value, visible, options).0
    }
});

#[cfg(feature = "wgpu")]
impl AttentionBodies for burn::backend::Cube {}

impl<B: AttentionBodies, C: CheckpointStrategy> AttentionOperation for Autodiff<B, C> {
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        visible: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Attention;

        impl<B: AttentionBodies> Backward<B, 3> for Attention {
            type State = ([NodeId; 3], FloatTensor<B>, (FloatTensor<B>, FloatTensor<B>), Options);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
                let dy = grads.consume::<B>(&ops.node);
                let parents = ops.parents.map(|parent| parent.map(|parent| parent.id));
                let (inputs, visible, result, options) = ops.state;
                let [query, key, value] = inputs.map(|input| checkpointer.retrieve_node_output::<FloatTensor<B>>(input));
                let gradients = B::attention_backward(query, key, value, visible, result, dy, options);
                register::<B, 3>(grads, parents, gradients);
            }
        }

        let visible = visible.into_primitive();
        match Attention.prepare::<C>([query.node(), key.node(), value.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let inputs = [prepared.checkpoint(&query), prepared.checkpoint(&key), prepared.checkpoint(&value)];
                let (query, key, value) = (query.into_primitive(), key.into_primitive(), value.into_primitive());
                let (y, log_sums) = B::attention_forward(query, key, value, visible.clone(), options);
                prepared.finish((inputs, visible, (y.clone(), log_sums), options), y)
            }
            OpsKind::UnTracked(prepared) => {
                let (query, key, value) = (query.into_primitive(), key.into_primitive(), value.into_primitive());
                prepared.finish(B::attention_forward(query, key, value, visible, options).0)
            }
        }
    }
}

impl AttentionBodies for Flex {
    fn attention_forward(query: FlexTensor, key: FlexTensor, value: FlexTensor, visible: FlexTensor, options: Options) -> (FlexTensor, FlexTensor) {
        let shape = shape(&query, &key, options);
        let [query, key, value] = [query, key, value].map(with_near_channels);
        let visible = super::flex::contiguous(visible);
        let visible = options.masked.then(|| super::flex::values(&visible));
        let mut log_sums = vec![0.0; shape.batch * shape.heads * shape.queries];
        let y = super::flex::filled_values(shape.batch * shape.heads * shape.queries * shape.channels, |y| {
            kernel::forward(heads(&query), heads(&key), heads(&value), visible, shape, y, &mut log_sums);
        });
        // Tokens come first in memory, so that a model's merging of the heads is a reshape without a copy.
        let y = tensor(y, [shape.batch, shape.queries, shape.heads, shape.channels]).permute(&[0, 2, 1, 3]);
        (y, tensor(log_sums, [shape.batch, shape.heads, shape.queries, 1]))
    }

    fn attention_backward(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        visible: FlexTensor,
        (y, log_sums): (FlexTensor, FlexTensor),
        dy: FlexTensor,
        options: Options,
    ) -> [FlexTensor; 3] {
        let shape = shape(&query, &key, options);
        let [query, key, value, y, dy] = [query, key, value, y, dy].map(with_near_channels);
        let visible = super::flex::contiguous(visible);
        let visible = options.masked.then(|| super::flex::values(&visible));
        let log_sums = super::flex::values(&log_sums);
        let query_len = shape.batch * shape.heads * shape.queries * shape.channels;
        let key_len = shape.batch * shape.heads * shape.keys * shape.channels;
        let (mut dkey, mut dvalue) = (Vec::new(), Vec::new());
        let dquery = super::flex::filled_values(query_len, |dquery| {
            dkey = super::flex::filled_values(key_len, |dkey| {
                dvalue = super::flex::filled_values(key_len, |dvalue| {
                    let inputs = [&query, &key, &value].map(heads);
                    kernel::backward(inputs[0], inputs[1], inputs[2], visible, heads(&y), log_sums, heads(&dy), shape, dquery, dkey, dvalue);
                });
            });
        });
        let turned = |values: Vec<f32>, tokens: usize| tensor(values, [shape.batch, tokens, shape.heads, shape.channels]).permute(&[0, 2, 1, 3]);
        [turned(dquery, shape.queries), turned(dkey, shape.keys), turned(dvalue, shape.keys)]
    }
}

fn shape(query: &FlexTensor, key: &FlexTensor, options: Options) -> kernel::Attention {
    let [batch, heads, queries, channels] = query.shape().dims();
    kernel::Attention { batch, heads, queries, keys: key.shape()[2], channels, scale: options.scale, causal: options.causal }
}

/// The tensor itself if its channels lie one behind the other, else a contiguous copy.
fn with_near_channels(tensor: FlexTensor) -> FlexTensor {
    let strides = tensor.layout().strides();
    let near = strides[3] == 1 && strides.iter().all(|stride| *stride >= 0);
    if near { tensor } else { tensor.to_contiguous() }
}

fn heads(tensor: &FlexTensor) -> Heads<'_> {
    let layout = tensor.layout();
    let stride = |axis: usize| layout.strides()[axis] as usize; // `with_near_channels` saw to it that none is negative
    Heads { values: &tensor.storage::<f32>()[layout.start_offset()..], strides: Strides { batch: stride(0), head: stride(1), token: stride(2) } }
}

pub(super) fn composed_forward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    visible: FloatTensor<B>,
    options: Options,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let scores = scores::<B>(query, key, visible, options);
    let largest = B::float_max_dim(scores.clone(), 3);
    let sums = B::float_sum_dim(B::float_exp(B::float_sub(scores.clone(), largest.clone())), 3);
    let log_sums = B::float_add(B::float_log(sums), largest);
    let probabilities = B::float_exp(B::float_sub(scores, log_sums.clone()));
    (B::float_matmul(probabilities, value), log_sums)
}

pub(super) fn composed_backward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    visible: FloatTensor<B>,
    (y, log_sums): (FloatTensor<B>, FloatTensor<B>),
    dy: FloatTensor<B>,
    options: Options,
) -> [FloatTensor<B>; 3] {
    let probabilities = B::float_exp(B::float_sub(scores::<B>(query.clone(), key.clone(), visible, options), log_sums));
    let dvalue = B::float_matmul(B::float_transpose(probabilities.clone()), dy.clone());
    let along = B::float_sum_dim(B::float_mul(y, dy.clone()), 3);
    let dprobabilities = B::float_matmul(dy, B::float_transpose(value));
    let dscores = B::float_mul_scalar(B::float_mul(probabilities, B::float_sub(dprobabilities, along)), options.scale.into());
    let dquery = B::float_matmul(dscores.clone(), key);
    let dkey = B::float_matmul(B::float_transpose(dscores), query);
    [dquery, dkey, dvalue]
}

/// Scaled scores [batch, heads, queries, keys], far below all others where a key may not be seen.
fn scores<B: Backend>(query: FloatTensor<B>, key: FloatTensor<B>, visible: FloatTensor<B>, options: Options) -> FloatTensor<B> {
    /// Finite, so that a row of hidden keys alone gives numbers and not NaN; its exponential beside any seen key is 0.
    const HIDDEN: f32 = -1e30;
    let (queries, keys) = (query.shape()[2], key.shape()[2]);
    let mut scores = B::float_mul_scalar(B::float_matmul(query, B::float_transpose(key)), options.scale.into());
    if options.causal {
        let addend = |i: usize| if i % keys > i / keys + keys - queries { HIDDEN } else { 0.0 };
        let addends = TensorData::new((0..queries * keys).map(addend).collect::<Vec<f32>>(), [1, 1, queries, keys]);
        scores = B::float_add(scores.clone(), B::float_from_data(addends, &scores.device()));
    }
    if options.masked {
        let batch = visible.shape()[0];
        // (visible - 1) * -HIDDEN is 0 where a key is seen.
        let addends = B::float_mul_scalar(B::float_add_scalar(visible, (-1.0f32).into()), (-HIDDEN).into());
        scores = B::float_add(scores, B::float_reshape(addends, [batch, 1, 1, keys].into()));
    }
    scores
}
