//! CLIP's text tower as a text encoder: the states of all tokens, as Stable Diffusion draws from them.
//!
//! Paper: Radford et al. 2021 (2103.00020), section 2.4; its use: Rombach et al. 2022 (2112.10752); the penultimate layer: Stability AI's Stable Diffusion 2
//! and Podell et al. 2023, SDXL (2307.01952), section 2.1.
//!
//! Idea: the causal transformer of [`crate::contrastive::clip`], whose last layer was trained for the end token only; its next to last says more about the
//! other tokens.
//!
//! Data flow: text tokens [batch, tokens] -> token and place embeddings [batch, tokens, channels] -> causal blocks -> norm -> states
//! [batch, tokens, channels]; the normed state of the end token -> projection, where there is one -> pooled [batch, channels].
//!
//! Where we differ from the references: the end token is the last visible one and not searched by its number, which published configs state wrongly.
//!
//! Verified against `transformers.CLIPTextModel` and `CLIPTextModelWithProjection` with small random weights (`goldens/make.py`).

mod config;
mod cost;
pub mod import;
#[cfg(test)]
mod tests;

pub use config::{Config, State};

use crate::ConfigError;
use crate::contrastive::clip::transformer::{Block, blocks};
use burn::module::{Module, Param};
use burn::tensor::{Bool, Int, Tensor};
use smalti_nn::Initializer;
use smalti_nn::layers::{Embedding, LayerNorm, Linear};
use smalti_nn::ops::Mask;

#[derive(Module, Debug)]
pub struct ClipText {
    token_embedding: Embedding,
    /// [context_length, channels]
    positions: Param<Tensor<2>>,
    blocks: Vec<Block>,
    output_norm: LayerNorm,
    projection: Option<Linear>,
    #[module(skip)]
    config: Config,
}

impl ClipText {
    /// A network with first weights; an impossible config is an error that names the key.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        config.validate()?;
        let channels = config.transformer.channels;
        // Standard deviations as openai/CLIP's.
        Ok(Self {
            token_embedding: Embedding::normal(config.vocabulary_size, channels, 0.02, initializer),
            positions: initializer.normal([config.context_length, channels], 0.01),
            blocks: blocks(&config.transformer, initializer),
            output_norm: LayerNorm::new(channels, true, config.transformer.layer_norm_epsilon, initializer),
            projection: config.projection_channels.map(|output| Linear::normal(channels, output, false, (channels as f32).powf(-0.5), initializer)),
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Channels of the states.
    pub fn channels(&self) -> usize {
        self.config.transformer.channels
    }

    /// Channels of the pooled vector.
    pub fn pooled_channels(&self) -> usize {
        self.config.projection_channels.unwrap_or(self.channels())
    }

    /// tokens [batch, tokens], at most `context_length` a row -> states [batch, tokens, channels], of the layer that the config names. A state sees its own
    /// token and those before. Stable Diffusion draws from the states at padding too, which have seen the whole text.
    pub fn encode(&self, tokens: Tensor<2, Int>, visible: Tensor<2, Bool>) -> Tensor<3> {
        self.encode_pooled(tokens, visible).0
    }

    /// As [`ClipText::encode`], and the pooled vector [batch, pooled_channels]: the normed last state at the end token, which is the last visible
    /// one, projected where there is a projection. At least one token of each row must be visible, and none after an invisible one.
    pub fn encode_pooled(&self, tokens: Tensor<2, Int>, visible: Tensor<2, Bool>) -> (Tensor<3>, Tensor<2>) {
        let [batch, count] = tokens.dims();
        let [context_length, channels] = self.positions.val().dims();
        assert!(count <= context_length, "clip_text: tokens [{batch}, {count}], expected at most {context_length} a row");
        assert!(visible.dims() == [batch, count], "clip_text: visible {:?} does not fit tokens [{batch}, {count}]", visible.dims());
        let embedded = self.token_embedding.forward(tokens) + self.positions.val().narrow(0, 0, count).unsqueeze();
        let (mut penultimate, mut last) = (embedded.clone(), embedded);
        for block in &self.blocks {
            penultimate = last.clone();
            last = block.forward(last, Mask::Causal); // [batch, tokens, channels]
        }
        let last = self.output_norm.forward(last);
        let states = match self.config.state {
            State::Last => last.clone(),
            State::Penultimate => penultimate,
            State::PenultimateNormed => self.output_norm.forward(penultimate),
        };
        let starts = Tensor::<1, Int>::arange(0..batch as i64, &last.device()) * count as i64;
        let ends = visible.int().sum_dim(1).reshape([batch]) + starts - 1; // rows of [batch * tokens, channels]
        let pooled = last.reshape([batch * count, channels]).select(0, ends);
        (states, self.project(pooled))
    }

    fn project(&self, pooled: Tensor<2>) -> Tensor<2> {
        match &self.projection {
            Some(projection) => projection.forward(pooled),
            None => pooled,
        }
    }
}
