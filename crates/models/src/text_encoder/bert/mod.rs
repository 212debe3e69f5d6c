//! BERT, and the sentence encoders made of it, MiniLM among them: states of tokens, and one vector for a text.
//!
//! Papers: Devlin et al. 2018, "BERT" (1810.04805); Wang et al. 2020, "MiniLM" (2002.10957); mean pooling: Reimers and Gurevych 2019, "Sentence-BERT"
//! (1908.10084).
//!
//! Idea: a transformer that sees the whole text from every token. `all-MiniLM-L6-v2`, 22 million numbers trained on a billion pairs of sentences, is the
//! smallest text encoder worth drawing from that fits in every machine.
//!
//! Data flow: text tokens [batch, tokens] -> token, place and segment embeddings, summed and normed -> blocks: norm(x + attention(x)), norm(x +
//! feed_forward(x)) -> states [batch, tokens, channels]; mean of the visible states, divided by its length -> sentence [batch, channels].
//!
//! Where we differ from the references: one segment only (the first of `token_type_embeddings`); BERT's own pooler, which sentence encoders do not use, is
//! left out.
//!
//! Verified against `transformers.BertModel` with small random weights (`goldens/make.py`), and by hand with the published MiniLM.

mod config;
mod cost;
pub mod import;
#[cfg(test)]
mod tests;

pub use config::Config;

use crate::ConfigError;
use burn::module::{Module, Param};
use burn::tensor::{Bool, Int, Tensor};
use smalti_nn::Initializer;
use smalti_nn::layers::{Embedding, LayerNorm, Linear};
use smalti_nn::ops::{self, Mask};

#[derive(Module, Debug)]
pub struct Bert {
    token_embedding: Embedding,
    /// [context_length, channels]
    positions: Param<Tensor<2>>,
    /// [segments, channels]; only the first is used
    segments: Param<Tensor<2>>,
    input_norm: LayerNorm,
    blocks: Vec<Block>,
    #[module(skip)]
    config: Config,
}

impl Bert {
    /// A network with first weights; an impossible config is an error that names the key.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        config.validate()?;
        let channels = config.channels;
        Ok(Self {
            token_embedding: Embedding::normal(config.vocabulary_size, channels, DEVIATION, initializer),
            positions: initializer.normal([config.context_length, channels], DEVIATION),
            segments: initializer.normal([config.segment_count, channels], DEVIATION),
            input_norm: LayerNorm::new(channels, true, config.norm_epsilon, initializer),
            blocks: (0..config.layer_count).map(|_| Block::new(config, initializer)).collect(),
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Channels of the states and of the sentence.
    pub fn channels(&self) -> usize {
        self.config.channels
    }

    /// tokens [batch, tokens], at most `context_length` a row, visible [batch, tokens], at least one in each row -> states [batch, tokens, channels]. What
    /// stands at invisible places has no influence on the states at visible ones.
    pub fn encode(&self, tokens: Tensor<2, Int>, visible: Tensor<2, Bool>) -> Tensor<3> {
        let [batch, count] = tokens.dims();
        let [context_length, _] = self.positions.val().dims();
        assert!(count <= context_length, "bert: tokens [{batch}, {count}], expected at most {context_length} a row");
        assert!(visible.dims() == [batch, count], "bert: visible {:?} does not fit tokens [{batch}, {count}]", visible.dims());
        let places = self.positions.val().narrow(0, 0, count) + self.segments.val().narrow(0, 0, 1); // [tokens, channels]
        let x = self.input_norm.forward(self.token_embedding.forward(tokens) + places.unsqueeze());
        self.blocks.iter().fold(x, |x, block| block.forward(x, visible.clone()))
    }

    /// As [`Bert::encode`], and the sentence [batch, channels]: the mean of the visible states, of unit length. The cosine of two sentences is their product.
    pub fn encode_pooled(&self, tokens: Tensor<2, Int>, visible: Tensor<2, Bool>) -> (Tensor<3>, Tensor<2>) {
        let states = self.encode(tokens, visible.clone());
        let [batch, count, channels] = states.dims();
        let weights = visible.float().reshape([batch, count, 1]);
        let sum = (states.clone() * weights.clone()).sum_dim(1).reshape([batch, channels]);
        let mean = sum / weights.sum_dim(1).reshape([batch, 1]);
        let length = mean.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(1e-12); // [batch, 1]
        (states, mean / length)
    }
}

/// Of first weights (Devlin et al.'s code, `initializer_range`).
const DEVIATION: f32 = 0.02;

#[derive(Module, Debug)]
struct Block {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    feed_forward_input: Linear,
    feed_forward_output: Linear,
    feed_forward_norm: LayerNorm,
    #[module(skip)]
    head_count: usize,
}

impl Block {
    fn new(config: &Config, initializer: &mut Initializer) -> Self {
        let Config { channels, head_count, feed_forward_channels, norm_epsilon, .. } = *config;
        let mut linear = |input, output| Linear::normal(input, output, true, DEVIATION, initializer);
        let (query, key, value, attention_output) =
            (linear(channels, channels), linear(channels, channels), linear(channels, channels), linear(channels, channels));
        let (feed_forward_input, feed_forward_output) = (linear(channels, feed_forward_channels), linear(feed_forward_channels, channels));
        Self {
            query,
            key,
            value,
            attention_output,
            attention_norm: LayerNorm::new(channels, true, norm_epsilon, initializer),
            feed_forward_input,
            feed_forward_output,
            feed_forward_norm: LayerNorm::new(channels, true, norm_epsilon, initializer),
            head_count,
        }
    }

    /// x [batch, tokens, channels] -> the same shape.
    fn forward(&self, x: Tensor<3>, visible: Tensor<2, Bool>) -> Tensor<3> {
        let x = self.attention_norm.forward(x.clone() + self.attend(x, visible));
        let hidden = ops::gelu(self.feed_forward_input.forward(x.clone()));
        self.feed_forward_norm.forward(x + self.feed_forward_output.forward(hidden))
    }

    fn attend(&self, x: Tensor<3>, visible: Tensor<2, Bool>) -> Tensor<3> {
        let [batch, tokens, channels] = x.dims();
        let split = |y: Tensor<3>| y.reshape([batch, tokens, self.head_count, channels / self.head_count]).swap_dims(1, 2);
        let (query, key, value) = (split(self.query.forward(x.clone())), split(self.key.forward(x.clone())), split(self.value.forward(x)));
        let mixed = ops::attention(query, key, value, Mask::Keys(visible)); // [batch, heads, tokens, channels / heads]
        self.attention_output.forward(mixed.swap_dims(1, 2).reshape([batch, tokens, channels]))
    }
}
