//! Text in Imagen's networks: pooled into the time, and seen by attention beside the pixels (Saharia et al. 2022, appendices B and D.3.1).

use crate::generator::conditions::Text;
use burn::module::{Module, Param};
use burn::tensor::{Bool, Tensor, activation};
use smalti_nn::Initializer;
use smalti_nn::layers::{GroupNorm, LayerNorm, Linear};
use smalti_nn::ops::{self, Activation, Mask};

const LAYER_NORM_EPSILON: f32 = 1e-5;

/// Added to the score of a token that is not visible.
const HIDDEN: f32 = -1e9;

/// A caption as one vector: output(silu(input(norm(weighted mean of its states)))), the weights a softmax of one learned score for each token.
#[derive(Module, Debug)]
pub struct TextPooling {
    score: Linear,
    norm: LayerNorm,
    input: Linear,
    output: Linear,
}

impl TextPooling {
    pub fn new(text_channels: usize, channels: usize, initializer: &mut Initializer) -> Self {
        Self {
            score: Linear::uniform(text_channels, 1, true, initializer),
            norm: LayerNorm::new(text_channels, true, LAYER_NORM_EPSILON, initializer),
            input: Linear::uniform(text_channels, channels, true, initializer),
            output: Linear::uniform(channels, channels, true, initializer),
        }
    }

    /// -> [batch, channels]. A row without visible tokens gives what the norm makes of zero: its learned bias.
    pub fn forward(&self, text: &Text) -> Tensor<2> {
        let scores = self.score.forward(text.states.clone()); // [batch, tokens, 1]
        let weights = match &text.visible {
            None => activation::softmax(scores, 1),
            Some(visible) => {
                let visible = visible.clone().float().unsqueeze_dim::<3>(2);
                activation::softmax(scores + (visible.clone() * -1.0 + 1.0) * HIDDEN, 1) * visible
            }
        };
        let pooled = (text.states.clone() * weights).sum_dim(1).squeeze_dim::<2>(1); // [batch, text_channels]
        self.output.forward(ops::silu(self.input.forward(self.norm.forward(pooled))))
    }
}

/// x + output(attention of the pixels to a learned nothing, the text and, if it attends to itself, the pixels).
///
/// Text's keys and values stand in one row with the pixels' own (Nichol et al. 2021, 2112.10741), each from the text's states after a norm of their own. The
/// learned nothing is there so that a row without visible text has something to see.
#[derive(Module, Debug)]
pub struct Attention {
    norm: GroupNorm,
    query: Linear,
    key: Option<Linear>,
    value: Option<Linear>,
    text_norm: Option<LayerNorm>,
    text_key: Option<Linear>,
    text_value: Option<Linear>,
    /// [1, channels]
    null_key: Param<Tensor<2>>,
    null_value: Param<Tensor<2>>,
    output: Linear,
    #[module(skip)]
    head_channels: usize,
}

/// What an attention sees, and how.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions {
    pub self_attention: bool,
    pub text_channels: Option<usize>,
    pub head_channels: usize,
}

impl Attention {
    /// The output map is zero, so that the network begins without attention.
    pub fn new(options: &AttentionOptions, channels: usize, norm: GroupNorm, initializer: &mut Initializer) -> Self {
        let AttentionOptions { self_attention, text_channels, head_channels } = *options;
        let deviation = (channels as f32).powf(-0.5);
        Self {
            norm,
            query: Linear::uniform(channels, channels, true, initializer),
            key: self_attention.then(|| Linear::uniform(channels, channels, true, initializer)),
            value: self_attention.then(|| Linear::uniform(channels, channels, true, initializer)),
            text_norm: text_channels.map(|text| LayerNorm::new(text, true, LAYER_NORM_EPSILON, initializer)),
            text_key: text_channels.map(|text| Linear::uniform(text, channels, true, initializer)),
            text_value: text_channels.map(|text| Linear::uniform(text, channels, true, initializer)),
            null_key: initializer.normal([1, channels], deviation),
            null_value: initializer.normal([1, channels], deviation),
            output: Linear::zero(channels, channels, initializer),
            head_channels,
        }
    }

    /// x [batch, height, width, channels] -> the same shape.
    pub fn forward(&self, x: Tensor<4>, text: Option<&Text>) -> Tensor<4> {
        let [batch, height, width, channels] = x.dims();
        let pixels = height * width;
        let h = self.norm.forward(x.clone(), Activation::Identity).reshape([batch, pixels, channels]);
        let null = |vector: &Param<Tensor<2>>| vector.val().reshape([1, 1, channels]).expand([batch, 1, channels]);
        let (mut keys, mut values) = (vec![null(&self.null_key)], vec![null(&self.null_value)]);
        let mut visible = None;
        if let (Some(text), Some(norm), Some(key), Some(value)) = (text, &self.text_norm, &self.text_key, &self.text_value) {
            let states = norm.forward(text.states.clone());
            keys.push(key.forward(states.clone()));
            values.push(value.forward(states));
            visible.clone_from(&text.visible);
        }
        if let (Some(key), Some(value)) = (&self.key, &self.value) {
            keys.push(key.forward(h.clone()));
            values.push(value.forward(h.clone()));
        }
        let mask = match visible {
            None => Mask::None,
            Some(text) => {
                let seen = |count: usize| Tensor::<2, Bool>::full([batch, count], true, &text.device());
                let parts = if self.key.is_some() { vec![seen(1), text.clone(), seen(pixels)] } else { vec![seen(1), text.clone()] };
                Mask::Keys(Tensor::cat(parts, 1))
            }
        };
        let (query, key, value) = (self.split(self.query.forward(h)), self.split(Tensor::cat(keys, 1)), self.split(Tensor::cat(values, 1)));
        let mixed = ops::attention(query, key, value, mask).swap_dims(1, 2).reshape([batch, height, width, channels]);
        x + self.output.forward(mixed)
    }

    /// [batch, tokens, channels] -> [batch, heads, tokens, head_channels].
    fn split(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, tokens, channels] = x.dims();
        x.reshape([batch, tokens, channels / self.head_channels, self.head_channels]).swap_dims(1, 2)
    }
}
