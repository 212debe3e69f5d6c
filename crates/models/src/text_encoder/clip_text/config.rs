//! Sizes of CLIP's text towers, and those that Stable Diffusion uses.

use crate::ConfigError;
use crate::contrastive::clip::config::{FeedForwardActivation, TransformerConfig};
use crate::text_encoder::limits::{self, within};
use serde::{Deserialize, Serialize};

/// Which states a generator draws from. The weights do not say; the generator was trained with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// After the last block and the final norm: Stable Diffusion 1.x, and 2.x in the diffusers layout, which leaves the last block out.
    Last,
    /// Before the last block, without the final norm: SDXL.
    Penultimate,
    /// Before the last block, with the final norm: Stable Diffusion 2.x in its own layout, and "skip 1" of those who choose to.
    PenultimateNormed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub vocabulary_size: usize,
    /// The most tokens of a text, start and end included.
    pub context_length: usize,
    pub transformer: TransformerConfig,
    /// Channels of the projection of the pooled vector, where there is one.
    pub projection_channels: Option<usize>,
    pub state: State,
}

impl Config {
    /// Refuses sizes that no network can have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        within("vocabulary_size", self.vocabulary_size, limits::VOCABULARY)?;
        within("context_length", self.context_length, limits::TOKENS)?;
        within("projection_channels", self.projection_channels.unwrap_or(1), limits::CHANNELS)?;
        self.transformer.validate("transformer")
    }

    /// Stable Diffusion 1.x: the text tower of OpenAI's ViT-L/14.
    pub fn stable_diffusion_1() -> Self {
        published(TransformerConfig::quick_gelu(768, 12), None, State::Last)
    }

    /// Stable Diffusion 2.x in the diffusers layout: 23 of the 24 blocks of OpenCLIP's ViT-H/14.
    pub fn stable_diffusion_2() -> Self {
        published(gelu(1024, 23), None, State::Last)
    }

    /// SDXL's first: as Stable Diffusion 1.x, but of the next to last layer.
    pub fn stable_diffusion_xl_1() -> Self {
        published(TransformerConfig::quick_gelu(768, 12), None, State::Penultimate)
    }

    /// SDXL's second: OpenCLIP's ViT-bigG/14, whose pooled vector is used too.
    pub fn stable_diffusion_xl_2() -> Self {
        published(gelu(1280, 32), Some(1280), State::Penultimate)
    }
}

fn gelu(channels: usize, layer_count: usize) -> TransformerConfig {
    TransformerConfig { activation: FeedForwardActivation::Gelu, ..TransformerConfig::quick_gelu(channels, layer_count) }
}

fn published(transformer: TransformerConfig, projection_channels: Option<usize>, state: State) -> Config {
    Config { vocabulary_size: 49_408, context_length: 77, transformer, projection_channels, state }
}
