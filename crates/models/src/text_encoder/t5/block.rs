//! A layer of the encoder: self-attention and feed-forward, each after a norm and added.

use super::config::{Config, FeedForward};
use burn::module::Module;
use burn::tensor::{Bool, Tensor, activation};
use smalti_nn::Initializer;
use smalti_nn::layers::{Linear, RmsNorm};
use smalti_nn::ops;

#[derive(Module, Debug)]
pub(super) struct Block {
    attention_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    feed_forward_norm: RmsNorm,
    /// Gated: what is activated and then multiplied with `feed_forward_linear`.
    feed_forward_input: Linear,
    feed_forward_linear: Option<Linear>,
    feed_forward_output: Linear,
    #[module(skip)]
    head_count: usize,
}

impl Block {
    /// Standard deviations as Mesh TensorFlow's, which transformers follows; the query's holds the factor 1 / sqrt(head channels) that scores lack.
    pub(super) fn new(config: &Config, initializer: &mut Initializer) -> Self {
        let Config { channels, head_channels, head_count, feed_forward_channels, norm_epsilon, .. } = *config;
        let inner = head_channels * head_count;
        let mut linear = |input, output, deviation: f32| Linear::normal(input, output, false, deviation, initializer);
        let per_root = |count: usize| (count as f32).powf(-0.5);
        let (query, key, value) = (
            linear(channels, inner, per_root(channels * head_channels)),
            linear(channels, inner, per_root(channels)),
            linear(channels, inner, per_root(channels)),
        );
        let attention_output = linear(inner, channels, per_root(inner));
        let feed_forward_input = linear(channels, feed_forward_channels, per_root(channels));
        let feed_forward_linear = (config.feed_forward == FeedForward::GatedGelu).then(|| linear(channels, feed_forward_channels, per_root(channels)));
        let feed_forward_output = linear(feed_forward_channels, channels, per_root(feed_forward_channels));
        Self {
            attention_norm: RmsNorm::new(channels, norm_epsilon, initializer),
            query,
            key,
            value,
            attention_output,
            feed_forward_norm: RmsNorm::new(channels, norm_epsilon, initializer),
            feed_forward_input,
            feed_forward_linear,
            feed_forward_output,
            head_count,
        }
    }

    /// x [batch, tokens, channels], bias [1, heads, tokens, tokens], hidden [batch, 1, 1, tokens] -> the shape of x.
    pub(super) fn forward(&self, x: Tensor<3>, bias: Tensor<4>, hidden: Tensor<4, Bool>) -> Tensor<3> {
        let x = x.clone() + self.attend(self.attention_norm.forward(x), bias, hidden);
        let h = self.feed_forward_norm.forward(x.clone());
        let h = match &self.feed_forward_linear {
            Some(linear) => ops::gelu_tanh(self.feed_forward_input.forward(h.clone())) * linear.forward(h),
            None => ops::relu(self.feed_forward_input.forward(h)),
        };
        x + self.feed_forward_output.forward(h)
    }

    /// Composed here because [`ops::attention`] takes no bias.
    fn attend(&self, x: Tensor<3>, bias: Tensor<4>, hidden: Tensor<4, Bool>) -> Tensor<3> {
        let [batch, tokens, _] = x.dims();
        let split = |y: Tensor<3>| {
            let channels = y.dims()[2] / self.head_count;
            y.reshape([batch, tokens, self.head_count, channels]).swap_dims(1, 2)
        };
        let (query, key, value) = (split(self.query.forward(x.clone())), split(self.key.forward(x.clone())), split(self.value.forward(x)));
        let scores = query.matmul(key.transpose()) + bias; // [batch, heads, tokens, tokens]
        let hidden = hidden.expand(scores.dims());
        let weights = activation::softmax(scores.mask_fill(hidden, f32::MIN), 3);
        let mixed = weights.matmul(value).swap_dims(1, 2); // [batch, tokens, heads, head channels]
        self.attention_output.forward(mixed.flatten::<3>(2, 3))
    }
}
