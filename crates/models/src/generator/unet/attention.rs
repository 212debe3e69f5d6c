//! Attention on feature maps: to themselves, and to text.

use super::residual_block::BlockOptions;
use crate::generator::conditions::Text;
use burn::module::Module;
use burn::tensor::Tensor;
use smalti_nn::Initializer;
use smalti_nn::layers::{GroupNorm, LayerNorm, Linear};
use smalti_nn::ops::{self, Activation, Mask};

/// Epsilon of the group normalisation before a transformer, and of the transformer's layer normalisations (latent-diffusion `modules/attention.py`).
const TRANSFORMER_GROUP_NORM_EPSILON: f32 = 1e-6;
const LAYER_NORM_EPSILON: f32 = 1e-5;

/// A feed-forward has this many times the channels inside.
pub(super) const FEED_FORWARD_MULTIPLIER: usize = 4;

/// Attention over several heads of any width (Vaswani et al. 2017, section 3.2.2).
#[derive(Module, Debug)]
pub struct HeadedAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    #[module(skip)]
    head_count: usize,
}

impl HeadedAttention {
    fn new(channels: usize, key_channels: usize, head_count: usize, bias: bool, output: Linear, initializer: &mut Initializer) -> Self {
        Self {
            query: Linear::uniform(channels, channels, bias, initializer),
            key: Linear::uniform(key_channels, channels, bias, initializer),
            value: Linear::uniform(key_channels, channels, bias, initializer),
            output,
            head_count,
        }
    }

    /// x [batch, queries, channels], seen [batch, keys, key_channels] -> [batch, queries, channels].
    fn forward(&self, x: Tensor<3>, seen: Tensor<3>, mask: Mask) -> Tensor<3> {
        let shape = x.dims();
        let (query, key, value) = (self.query.forward(x), self.key.forward(seen.clone()), self.value.forward(seen));
        let mixed = ops::attention(self.split(query), self.split(key), self.split(value), mask); // [batch, heads, queries, channels / heads]
        self.output.forward(mixed.swap_dims(1, 2).reshape(shape))
    }

    /// [batch, tokens, channels] -> [batch, heads, tokens, channels / heads].
    fn split(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, tokens, channels] = x.dims();
        x.reshape([batch, tokens, self.head_count, channels / self.head_count]).swap_dims(1, 2)
    }
}

/// x + attention(norm(x)) over all places of a feature map.
#[derive(Module, Debug)]
pub struct SelfAttention {
    norm: GroupNorm,
    attention: HeadedAttention,
}

impl SelfAttention {
    /// The output map is zero (Ho, Jain and Abbeel 2020, code), so that the network begins without attention.
    pub fn new(options: &BlockOptions, channels: usize, head_count: usize, initializer: &mut Initializer) -> Self {
        let norm = options.norm(channels, initializer);
        let output = Linear::zero(channels, channels, initializer);
        Self { norm, attention: HeadedAttention::new(channels, channels, head_count, true, output, initializer) }
    }

    /// x [batch, height, width, channels] -> the same shape.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, height, width, channels] = x.dims();
        let h = self.norm.forward(x.clone(), Activation::Identity).reshape([batch, height * width, channels]);
        x + self.attention.forward(h.clone(), h, Mask::None).reshape([batch, height, width, channels])
    }
}

/// Latent diffusion's SpatialTransformer: x + output(blocks(input(norm(x)))), the places of a feature map as tokens.
#[derive(Module, Debug)]
pub struct Transformer {
    norm: GroupNorm,
    input: Linear,
    blocks: Vec<TransformerBlock>,
    output: Linear,
}

/// What a network's transformers have in common.
#[derive(Clone, Copy, Debug)]
pub struct TransformerOptions {
    pub group_count: usize,
    pub text_channels: usize,
    pub block_count: usize,
}

impl Transformer {
    /// The output map is zero (latent-diffusion `SpatialTransformer`).
    pub fn new(options: &TransformerOptions, channels: usize, head_count: usize, initializer: &mut Initializer) -> Self {
        Self {
            norm: GroupNorm::new(options.group_count, channels, TRANSFORMER_GROUP_NORM_EPSILON, initializer),
            input: Linear::uniform(channels, channels, true, initializer),
            blocks: (0..options.block_count).map(|_| TransformerBlock::new(options.text_channels, channels, head_count, initializer)).collect(),
            output: Linear::zero(channels, channels, initializer),
        }
    }

    /// x [batch, height, width, channels] -> the same shape.
    pub fn forward(&self, x: Tensor<4>, text: &Text) -> Tensor<4> {
        let [batch, height, width, channels] = x.dims();
        let h = self.norm.forward(x.clone(), Activation::Identity).reshape([batch, height * width, channels]);
        let mut h = self.input.forward(h);
        for block in &self.blocks {
            h = block.forward(h, text);
        }
        x + self.output.forward(h).reshape([batch, height, width, channels])
    }
}

/// x = x + self-attention(norm(x)); x = x + text attention(norm(x)); x = x + feed-forward(norm(x)).
#[derive(Module, Debug)]
struct TransformerBlock {
    self_attention_norm: LayerNorm,
    self_attention: HeadedAttention,
    text_attention_norm: LayerNorm,
    text_attention: HeadedAttention,
    feed_forward_norm: LayerNorm,
    feed_forward: FeedForward,
}

impl TransformerBlock {
    fn new(text_channels: usize, channels: usize, head_count: usize, initializer: &mut Initializer) -> Self {
        let mut attention = |key_channels: usize| {
            let output = Linear::uniform(channels, channels, true, initializer);
            HeadedAttention::new(channels, key_channels, head_count, false, output, initializer)
        };
        let (self_attention, text_attention) = (attention(channels), attention(text_channels));
        Self {
            self_attention_norm: LayerNorm::new(channels, true, LAYER_NORM_EPSILON, initializer),
            self_attention,
            text_attention_norm: LayerNorm::new(channels, true, LAYER_NORM_EPSILON, initializer),
            text_attention,
            feed_forward_norm: LayerNorm::new(channels, true, LAYER_NORM_EPSILON, initializer),
            feed_forward: FeedForward::new(channels, initializer),
        }
    }

    /// x [batch, tokens, channels] -> the same shape.
    fn forward(&self, x: Tensor<3>, text: &Text) -> Tensor<3> {
        let h = self.self_attention_norm.forward(x.clone());
        let x = x + self.self_attention.forward(h.clone(), h, Mask::None);
        let mask = text.visible.clone().map_or(Mask::None, Mask::Keys);
        let x = x.clone() + self.text_attention.forward(self.text_attention_norm.forward(x), text.states.clone(), mask);
        x.clone() + self.feed_forward.forward(self.feed_forward_norm.forward(x))
    }
}

/// output(input(x) * gelu(gate(x))), "GEGLU" (Shazeer 2020, 2002.05202).
#[derive(Module, Debug)]
struct FeedForward {
    input: Linear,
    gate: Linear,
    output: Linear,
}

impl FeedForward {
    fn new(channels: usize, initializer: &mut Initializer) -> Self {
        let inner_channels = FEED_FORWARD_MULTIPLIER * channels;
        Self {
            input: Linear::uniform(channels, inner_channels, true, initializer),
            gate: Linear::uniform(channels, inner_channels, true, initializer),
            output: Linear::uniform(inner_channels, channels, true, initializer),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = ops::gelu(self.gate.forward(x.clone()));
        self.output.forward(self.input.forward(x) * gate)
    }
}
