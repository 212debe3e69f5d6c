//! What changes the weights' shapes or their meaning, and the published presets.

use crate::ConfigError;
use serde::{Deserialize, Serialize};

/// Where the norms stand around the branches of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norms {
    /// norm(x + f(x)), as in Vaswani et al. 2017 and BART.
    Post,
    /// x + norm(attention(norm(x))), a norm inside the feed-forward, and one after the last block (Shleifer et al. 2021, 2110.09456, without head scales).
    NormFormer,
}

/// The feed-forward of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedForward {
    /// W2 gelu(W1 x)
    Gelu,
    /// W2 (gelu(W1 x) * W3 x) (Shazeer 2020, 2002.05202).
    GatedGelu,
}

/// How many tables of token vectors there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vocabularies {
    /// One table for the encoder's tokens, the decoder's and, transposed, for the logits: both vocabularies are one and the same.
    Shared,
    /// A table for text tokens, one for image tokens, and a matrix for the logits.
    Separate,
}

/// The blocks of one side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StackConfig {
    pub block_count: usize,
    /// Divides `channels`.
    pub head_count: usize,
    pub feed_forward_channels: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Entries of the text tokenizer's vocabulary.
    pub text_vocabulary: usize,
    /// The most text tokens of a caption.
    pub text_token_count: usize,
    /// Entries of the image tokenizer's codebook, and the number of logits.
    pub image_vocabulary: usize,
    /// Image tokens of a picture, rows times columns.
    pub image_token_count: usize,
    /// Entries after the codes in the image tokens' table, such as the start token; they are never predicted.
    pub special_token_count: usize,
    /// What the decoder reads in front of the first image token; below `image_vocabulary` + `special_token_count`.
    pub start_token: usize,
    pub channels: usize,
    pub norms: Norms,
    pub feed_forward: FeedForward,
    /// Whether the linear maps of the blocks have biases. Norms always have.
    pub linear_bias: bool,
    /// Whether a bias that is not trained is added to the logits; published BART has one, of zeros.
    pub logits_bias: bool,
    pub vocabularies: Vocabularies,
    /// Rows at the head of both position tables that no position uses: 2 in BART, which inherits it from fairseq's padding index.
    pub position_offset: usize,
    /// Whether token vectors are multiplied by sqrt(channels).
    pub scale_embedding: bool,
    pub encoder: StackConfig,
    pub decoder: StackConfig,
}

impl StackConfig {
    fn new(block_count: usize, head_count: usize, feed_forward_channels: usize) -> Self {
        Self { block_count, head_count, feed_forward_channels }
    }
}

impl Config {
    /// DALL-E mini: 12 + 12 blocks of 1024 channels over the 16,384 codes of VQGAN f16 (min-dalle, `min_dalle.py`).
    pub fn dalle_mini() -> Self {
        let stack = StackConfig::new(12, 16, 2730);
        Self { text_vocabulary: 50_264, special_token_count: 1, channels: 1024, encoder: stack.clone(), decoder: stack, ..Self::dalle() }
    }

    /// DALL-E mega: 24 + 24 blocks of 2048 channels (min-dalle, `min_dalle.py`); 16,416 entries of which 16,384 are codes.
    pub fn dalle_mega() -> Self {
        let stack = StackConfig::new(24, 32, 4096);
        Self { text_vocabulary: 50_272, special_token_count: 32, channels: 2048, encoder: stack.clone(), decoder: stack, ..Self::dalle() }
    }

    /// What mini and mega have in common: text of 64 tokens, pictures of 16 x 16, start token 16384 (dalle-mini, `configuration.py`).
    pub(super) fn dalle() -> Self {
        Self {
            text_vocabulary: 0,
            text_token_count: 64,
            image_vocabulary: 16_384,
            image_token_count: 256,
            special_token_count: 1,
            start_token: 16_384,
            channels: 0,
            norms: Norms::NormFormer,
            feed_forward: FeedForward::GatedGelu,
            linear_bias: false,
            logits_bias: false,
            vocabularies: Vocabularies::Separate,
            position_offset: 0,
            scale_embedding: false,
            encoder: StackConfig::new(0, 0, 0),
            decoder: StackConfig::new(0, 0, 0),
        }
    }

    /// `facebook/bart-base`: 6 + 6 blocks of 768 channels. Its "image tokens" are the text tokens of its one vocabulary.
    pub fn bart_base() -> Self {
        Self::bart(768, StackConfig::new(6, 12, 3072))
    }

    /// `facebook/bart-large`: 12 + 12 blocks of 1024 channels.
    pub fn bart_large() -> Self {
        Self::bart(1024, StackConfig::new(12, 16, 4096))
    }

    fn bart(channels: usize, stack: StackConfig) -> Self {
        Self {
            text_vocabulary: 50_265,
            text_token_count: 1024,
            image_vocabulary: 50_265,
            image_token_count: 1024,
            special_token_count: 0,
            start_token: 2,
            channels,
            norms: Norms::Post,
            feed_forward: FeedForward::Gelu,
            linear_bias: true,
            logits_bias: true,
            vocabularies: Vocabularies::Shared,
            position_offset: 2,
            scale_embedding: false,
            encoder: stack.clone(),
            decoder: stack,
        }
    }

    /// Ours, for pictograms with short captions: DALL-E mini's design with 4 + 4 blocks of 256 channels, about 8 million weights and the tables.
    /// `image_token_count` is 64 for pictures of 64 x 64 at f8 and 256 at f4.
    pub fn pictograms(text_vocabulary: usize, image_vocabulary: usize, image_token_count: usize) -> Self {
        let stack = StackConfig::new(4, 8, 683); // two thirds of four times as wide: a gate is a third matrix (Shazeer 2020)
        Self {
            text_vocabulary,
            text_token_count: 32,
            image_vocabulary,
            image_token_count,
            start_token: image_vocabulary,
            channels: 256,
            encoder: stack.clone(),
            decoder: stack,
            ..Self::dalle()
        }
    }

    /// Rows of the image tokens' table: codes, then special tokens.
    pub fn image_table_size(&self) -> usize {
        self.image_vocabulary + self.special_token_count
    }

    /// Names the first key whose value no network can have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        within("text_vocabulary", self.text_vocabulary, 1, VOCABULARY_LIMIT)?;
        within("text_token_count", self.text_token_count, 1, TOKEN_LIMIT)?;
        within("image_vocabulary", self.image_vocabulary, 1, VOCABULARY_LIMIT)?;
        within("image_token_count", self.image_token_count, 1, TOKEN_LIMIT)?;
        within("special_token_count", self.special_token_count, 0, VOCABULARY_LIMIT)?;
        within("channels", self.channels, 1, CHANNELS_LIMIT)?;
        within("position_offset", self.position_offset, 0, TOKEN_LIMIT)?;
        if self.start_token >= self.image_table_size() {
            let expected = format!("below image_vocabulary + special_token_count = {}", self.image_table_size());
            return Err(ConfigError::new("start_token", expected, self.start_token));
        }
        if self.vocabularies == Vocabularies::Shared && self.text_vocabulary != self.image_table_size() {
            let expected = format!("image_vocabulary + special_token_count = {}, since vocabularies = \"shared\"", self.image_table_size());
            return Err(ConfigError::new("text_vocabulary", expected, self.text_vocabulary));
        }
        self.encoder.validate("encoder", self.channels)?;
        self.decoder.validate("decoder", self.channels)
    }
}

impl StackConfig {
    fn validate(&self, side: &str, channels: usize) -> Result<(), ConfigError> {
        within(format!("{side}.block_count"), self.block_count, 1, BLOCK_LIMIT)?;
        within(format!("{side}.head_count"), self.head_count, 1, CHANNELS_LIMIT)?;
        within(format!("{side}.feed_forward_channels"), self.feed_forward_channels, 1, CHANNELS_LIMIT)?;
        if !channels.is_multiple_of(self.head_count) {
            return Err(ConfigError::new(format!("{side}.head_count"), format!("a divisor of channels = {channels}"), self.head_count));
        }
        Ok(())
    }
}

// Far above every published model and below what would exhaust memory before a user sees an error.
const CHANNELS_LIMIT: usize = 1 << 16;
const BLOCK_LIMIT: usize = 1 << 10;
const VOCABULARY_LIMIT: usize = 1 << 21;
const TOKEN_LIMIT: usize = 1 << 16;

fn within(key: impl Into<String>, value: usize, least: usize, most: usize) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) { Ok(()) } else { Err(ConfigError::new(key, format!("{least} to {most}"), value)) }
}
