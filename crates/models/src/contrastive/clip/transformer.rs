//! Pre-norm transformer blocks (Radford et al. 2019), the body of both towers.

use super::config::{FeedForwardActivation, TransformerConfig};
use burn::module::Module;
use burn::tensor::Tensor;
use smalti_nn::Initializer;
use smalti_nn::layers::{LayerNorm, Linear};
use smalti_nn::ops::{self, Mask};

/// x = x + attention(norm(x)); x = x + feed_forward(norm(x)).
#[derive(Module, Debug)]
pub struct Block {
    pub attention_norm: LayerNorm,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub attention_output: Linear,
    pub feed_forward_norm: LayerNorm,
    pub feed_forward_input: Linear,
    pub feed_forward_output: Linear,
    #[module(skip)]
    head_count: usize,
    #[module(skip)]
    activation: FeedForwardActivation,
}

/// `config.layer_count` blocks.
pub(crate) fn blocks(config: &TransformerConfig, initializer: &mut Initializer) -> Vec<Block> {
    (0..config.layer_count).map(|_| Block::new(config, initializer)).collect()
}

impl Block {
    /// Standard deviations as openai/CLIP `clip/model.py`, `CLIP.initialize_parameters`: what feeds the residual stream shrinks with depth.
    fn new(config: &TransformerConfig, initializer: &mut Initializer) -> Self {
        let TransformerConfig { channels, layer_count, head_count, feed_forward_channels, activation, layer_norm_epsilon } = *config;
        let input_deviation = (channels as f32).powf(-0.5);
        let residual_deviation = input_deviation * (2.0 * layer_count as f32).powf(-0.5);
        let feed_forward_deviation = (2.0 * channels as f32).powf(-0.5);
        Self {
            attention_norm: LayerNorm::new(channels, true, layer_norm_epsilon, initializer),
            query: Linear::normal(channels, channels, true, input_deviation, initializer),
            key: Linear::normal(channels, channels, true, input_deviation, initializer),
            value: Linear::normal(channels, channels, true, input_deviation, initializer),
            attention_output: Linear::normal(channels, channels, true, residual_deviation, initializer),
            feed_forward_norm: LayerNorm::new(channels, true, layer_norm_epsilon, initializer),
            feed_forward_input: Linear::normal(channels, feed_forward_channels, true, feed_forward_deviation, initializer),
            feed_forward_output: Linear::normal(feed_forward_channels, channels, true, residual_deviation, initializer),
            head_count,
            activation,
        }
    }

    /// x [batch, tokens, channels] -> the same shape.
    pub fn forward(&self, x: Tensor<3>, mask: Mask) -> Tensor<3> {
        let x = x.clone() + self.attend(self.attention_norm.forward(x), mask);
        let hidden = self.feed_forward_input.forward(self.feed_forward_norm.forward(x.clone()));
        let hidden = match self.activation {
            FeedForwardActivation::QuickGelu => ops::quick_gelu(hidden),
            FeedForwardActivation::Gelu => ops::gelu(hidden),
        };
        x + self.feed_forward_output.forward(hidden)
    }

    fn attend(&self, x: Tensor<3>, mask: Mask) -> Tensor<3> {
        let [batch, tokens, channels] = x.dims();
        let split = |y: Tensor<3>| y.reshape([batch, tokens, self.head_count, channels / self.head_count]).swap_dims(1, 2);
        let (query, key, value) = (split(self.query.forward(x.clone())), split(self.key.forward(x.clone())), split(self.value.forward(x)));
        let mixed = ops::attention(query, key, value, mask); // [batch, heads, tokens, channels / heads]
        self.attention_output.forward(mixed.swap_dims(1, 2).reshape([batch, tokens, channels]))
    }
}
