//! Sizes of BERT, and those that were published.

use crate::ConfigError;
use crate::text_encoder::limits::{self, positive, within};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub vocabulary_size: usize,
    /// The most tokens of a text, start and end included.
    pub context_length: usize,
    /// Kinds of segments that the weights know; a text is of the first.
    pub segment_count: usize,
    pub channels: usize,
    pub layer_count: usize,
    /// Divides `channels`.
    pub head_count: usize,
    pub feed_forward_channels: usize,
    pub norm_epsilon: f32,
}

impl Config {
    /// Refuses sizes that no network can have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        within("vocabulary_size", self.vocabulary_size, limits::VOCABULARY)?;
        within("context_length", self.context_length, limits::TOKENS)?;
        within("segment_count", self.segment_count, limits::TOKENS)?;
        within("channels", self.channels, limits::CHANNELS)?;
        within("layer_count", self.layer_count, limits::LAYERS)?;
        within("head_count", self.head_count, limits::CHANNELS)?;
        within("feed_forward_channels", self.feed_forward_channels, limits::CHANNELS)?;
        let divides = self.channels.is_multiple_of(self.head_count);
        ConfigError::check(divides, "head_count", format!("a divisor of channels = {}", self.channels), self.head_count)?;
        positive("norm_epsilon", self.norm_epsilon)
    }

    /// `sentence-transformers/all-MiniLM-L6-v2`: 22.7 million numbers.
    pub fn all_mini_lm_l6_v2() -> Self {
        published(384, 6)
    }

    /// `bert-base-uncased`.
    pub fn base_uncased() -> Self {
        published(768, 12)
    }
}

fn published(channels: usize, layer_count: usize) -> Config {
    Config {
        vocabulary_size: 30_522,
        context_length: 512,
        segment_count: 2,
        channels,
        layer_count,
        head_count: 12,
        feed_forward_channels: 4 * channels,
        norm_epsilon: 1e-12,
    }
}
