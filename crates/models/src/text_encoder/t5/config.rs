//! Sizes of T5 encoders, and those that were published.

use crate::ConfigError;
use crate::text_encoder::limits::{self, positive, within};
use serde::{Deserialize, Serialize};

/// The layers after attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedForward {
    /// Version 1.0: output(relu(input(x))).
    Relu,
    /// Versions 1.1 and Flan: output(gelu(input(x)) * linear(x)), GELU by its tanh approximation.
    GatedGelu,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Rows of the token table: 32128 in the published ones, whose text tokenizers have 32000 tokens (and 100 that mark gaps, which no prompt has).
    pub vocabulary_size: usize,
    pub channels: usize,
    pub layer_count: usize,
    pub head_count: usize,
    /// Channels of one head; `head_count` of them need not be `channels`.
    pub head_channels: usize,
    pub feed_forward_channels: usize,
    pub feed_forward: FeedForward,
    /// Learned biases of relative positions, a multiple of 4.
    pub bucket_count: usize,
    /// The distance from which on all are in one bucket; more than a quarter of `bucket_count`.
    pub distance_limit: usize,
    pub norm_epsilon: f32,
}

impl Config {
    /// Refuses sizes that no network can have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        within("vocabulary_size", self.vocabulary_size, limits::VOCABULARY)?;
        within("channels", self.channels, limits::CHANNELS)?;
        within("layer_count", self.layer_count, limits::LAYERS)?;
        within("head_count", self.head_count, limits::CHANNELS)?;
        within("head_channels", self.head_channels, limits::CHANNELS)?;
        within("feed_forward_channels", self.feed_forward_channels, limits::CHANNELS)?;
        let buckets = self.bucket_count;
        ConfigError::check(buckets.is_multiple_of(4) && (4..=4096).contains(&buckets), "bucket_count", "a multiple of 4, at most 4096", buckets)?;
        let least = buckets / 4;
        ConfigError::check((least + 1..=1 << 24).contains(&self.distance_limit), "distance_limit", format!("more than {least}"), self.distance_limit)?;
        positive("norm_epsilon", self.norm_epsilon)
    }

    /// Version 1.0, 60 million parameters with its decoder (`t5-small`).
    pub fn small() -> Self {
        published(FeedForward::Relu, 512, 6, 8, 2048)
    }

    /// Version 1.0, 220 million (`t5-base`).
    pub fn base() -> Self {
        published(FeedForward::Relu, 768, 12, 12, 3072)
    }

    /// Version 1.0, 770 million (`t5-large`).
    pub fn large() -> Self {
        published(FeedForward::Relu, 1024, 24, 16, 4096)
    }

    /// Versions 1.1 and Flan, 80 million (`google/t5-v1_1-small`, `google/flan-t5-small`).
    pub fn version_1_1_small() -> Self {
        published(FeedForward::GatedGelu, 512, 8, 6, 1024)
    }

    /// Versions 1.1 and Flan, 250 million.
    pub fn version_1_1_base() -> Self {
        published(FeedForward::GatedGelu, 768, 12, 12, 2048)
    }

    /// Versions 1.1 and Flan, 780 million.
    pub fn version_1_1_large() -> Self {
        published(FeedForward::GatedGelu, 1024, 24, 16, 2816)
    }

    /// Versions 1.1 and Flan, 3 billion.
    pub fn version_1_1_xl() -> Self {
        published(FeedForward::GatedGelu, 2048, 24, 32, 5120)
    }

    /// Versions 1.1 and Flan, 11 billion with its decoder; the encoder is Imagen's text encoder of "4.6B parameters" (Saharia et al. 2022, section 3.1).
    pub fn version_1_1_xxl() -> Self {
        published(FeedForward::GatedGelu, 4096, 24, 64, 10240)
    }
}

fn published(feed_forward: FeedForward, channels: usize, layer_count: usize, head_count: usize, feed_forward_channels: usize) -> Config {
    Config {
        vocabulary_size: 32128,
        channels,
        layer_count,
        head_count,
        head_channels: 64,
        feed_forward_channels,
        feed_forward,
        bucket_count: 32,
        distance_limit: 128,
        norm_epsilon: 1e-6,
    }
}
