//! The blocks of both sides: attention and feed-forward, each a branch added to what came in.

use super::attention::{Attention, KeyValues};
use super::config::{Config, FeedForward as FeedForwardKind, Norms, StackConfig};
use super::{INITIAL_DEVIATION, NORM_EPSILON};
use burn::module::Module;
use burn::tensor::{Bool, Tensor};
use smalti_nn::Initializer;
use smalti_nn::layers::{LayerNorm, Linear};
use smalti_nn::ops::{self, Mask};

/// A branch f with the norms that its family puts around it: after(x + inside(f(before(x)))), where a norm that is not there does nothing.
#[derive(Module, Debug)]
pub struct Residual {
    pub before: Option<LayerNorm>,
    pub inside: Option<LayerNorm>,
    pub after: Option<LayerNorm>,
}

/// W2 norm(gelu(W1 x) * W3 x), with or without the norm and the gate.
#[derive(Module, Debug)]
pub struct FeedForward {
    pub input: Linear,
    pub gate: Option<Linear>,
    pub middle_norm: Option<LayerNorm>,
    pub output: Linear,
}

#[derive(Module, Debug)]
pub struct EncoderBlock {
    pub self_attention: Attention,
    pub self_attention_norms: Residual,
    pub feed_forward: FeedForward,
    pub feed_forward_norms: Residual,
}

#[derive(Module, Debug)]
pub struct DecoderBlock {
    pub self_attention: Attention,
    pub self_attention_norms: Residual,
    pub text_attention: Attention,
    pub text_attention_norms: Residual,
    pub feed_forward: FeedForward,
    pub feed_forward_norms: Residual,
}

impl EncoderBlock {
    pub(super) fn new(config: &Config, initializer: &mut Initializer) -> Self {
        let StackConfig { head_count, feed_forward_channels, .. } = config.encoder;
        Self {
            self_attention: Attention::new(config.channels, head_count, config.linear_bias, initializer),
            self_attention_norms: Residual::around_attention(config, initializer),
            feed_forward: FeedForward::new(config, feed_forward_channels, initializer),
            feed_forward_norms: Residual::around_feed_forward(config, initializer),
        }
    }

    /// x [batch, text_tokens, channels], visible [batch, text_tokens] -> the shape of x.
    pub fn forward(&self, x: Tensor<3>, visible: Tensor<2, Bool>) -> Tensor<3> {
        let x = self.self_attention_norms.add(x, |x| {
            let keys = self.self_attention.key_values(x.clone());
            self.self_attention.forward(x, keys, Mask::Keys(visible))
        });
        self.feed_forward_norms.add(x, |x| self.feed_forward.forward(x))
    }
}

impl DecoderBlock {
    pub(super) fn new(config: &Config, initializer: &mut Initializer) -> Self {
        let StackConfig { head_count, feed_forward_channels, .. } = config.decoder;
        Self {
            self_attention: Attention::new(config.channels, head_count, config.linear_bias, initializer),
            self_attention_norms: Residual::around_attention(config, initializer),
            text_attention: Attention::new(config.channels, head_count, config.linear_bias, initializer),
            text_attention_norms: Residual::around_attention(config, initializer),
            feed_forward: FeedForward::new(config, feed_forward_channels, initializer),
            feed_forward_norms: Residual::around_feed_forward(config, initializer),
        }
    }

    /// x [rows, image_tokens, channels] -> the shape of x.
    ///
    /// `history` is given the keys and values of `x` and returns those that the self-attention looks at, `x`'s own last: the same ones when a whole
    /// picture is decoded at once, all earlier ones too when a cache keeps them. `text` holds the keys of one caption per row, or of fewer captions,
    /// each for as many consecutive rows.
    pub fn forward(&self, x: Tensor<3>, history: impl FnOnce(KeyValues) -> KeyValues, text: KeyValues, visible: Tensor<2, Bool>) -> Tensor<3> {
        let x = self.self_attention_norms.add(x, |x| {
            let keys = history(self.self_attention.key_values(x.clone()));
            self.self_attention.forward(x, keys, Mask::Causal)
        });
        let x = self.text_attention_norms.add(x, |x| {
            let ([rows, tokens, channels], [captions, _]) = (x.dims(), visible.dims());
            // Queries do not see each other: those of all rows of a caption stand side by side, so that its keys need no copies.
            let side_by_side = x.reshape([captions, rows / captions * tokens, channels]);
            self.text_attention.forward(side_by_side, text, Mask::Keys(visible)).reshape([rows, tokens, channels])
        });
        self.feed_forward_norms.add(x, |x| self.feed_forward.forward(x))
    }
}

impl Residual {
    fn around_attention(config: &Config, initializer: &mut Initializer) -> Self {
        let mut norm = || Some(norm(config.channels, initializer));
        match config.norms {
            Norms::Post => Self { before: None, inside: None, after: norm() },
            Norms::NormFormer => Self { before: norm(), inside: norm(), after: None },
        }
    }

    fn around_feed_forward(config: &Config, initializer: &mut Initializer) -> Self {
        let norm = Some(norm(config.channels, initializer));
        match config.norms {
            Norms::Post => Self { before: None, inside: None, after: norm },
            Norms::NormFormer => Self { before: norm, inside: None, after: None },
        }
    }

    fn add(&self, x: Tensor<3>, branch: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
        let y = branch(normalised(&self.before, x.clone()));
        normalised(&self.after, x + normalised(&self.inside, y))
    }
}

impl FeedForward {
    fn new(config: &Config, middle_channels: usize, initializer: &mut Initializer) -> Self {
        let mut linear = |input, output| Linear::normal(input, output, config.linear_bias, INITIAL_DEVIATION, initializer);
        let input = linear(config.channels, middle_channels);
        let gate = match config.feed_forward {
            FeedForwardKind::Gelu => None,
            FeedForwardKind::GatedGelu => Some(linear(config.channels, middle_channels)),
        };
        let output = linear(middle_channels, config.channels);
        let middle_norm = match config.norms {
            Norms::Post => None,
            Norms::NormFormer => Some(norm(middle_channels, initializer)),
        };
        Self { input, gate, middle_norm, output }
    }

    /// x [batch, tokens, channels] -> the same shape.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let hidden = ops::gelu(self.input.forward(x.clone()));
        let hidden = match &self.gate {
            Some(gate) => hidden * gate.forward(x),
            None => hidden,
        };
        self.output.forward(normalised(&self.middle_norm, hidden))
    }
}

/// A norm as all of this network's are.
pub(super) fn norm(channels: usize, initializer: &mut Initializer) -> LayerNorm {
    LayerNorm::new(channels, true, NORM_EPSILON, initializer)
}

/// x through a norm, if there is one.
pub(super) fn normalised(norm: &Option<LayerNorm>, x: Tensor<3>) -> Tensor<3> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}
