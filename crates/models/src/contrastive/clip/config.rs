//! The sizes of both towers, and the published presets.

use crate::ConfigError;
use serde::{Deserialize, Serialize};

/// The nonlinearity of the feed-forward layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedForwardActivation {
    /// x * sigmoid(1.702 x), which OpenAI's checkpoints were trained with.
    QuickGelu,
    /// x * Phi(x), with the exact normal distribution function (Hendrycks and Gimpel 2016, 1606.08415).
    Gelu,
}

/// A stack of pre-norm transformer blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    pub channels: usize,
    pub layer_count: usize,
    /// Divides `channels`.
    pub head_count: usize,
    pub feed_forward_channels: usize,
    pub activation: FeedForwardActivation,
    pub layer_norm_epsilon: f32,
}

/// The image tower: a vision transformer over square patches of a square picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageTowerConfig {
    /// Height and width of a picture in pixels.
    pub image_size: usize,
    /// Height and width of a patch in pixels; divides `image_size`.
    pub patch_size: usize,
    /// Mean of each channel (red, green, blue), for values in [0, 1].
    pub pixel_mean: [f32; 3],
    /// Standard deviation of each channel, for values in [0, 1].
    pub pixel_standard_deviation: [f32; 3],
    pub transformer: TransformerConfig,
}

/// The text tower: a causal transformer whose value at the end token stands for the text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextTowerConfig {
    /// Entries of the text tokenizer's vocabulary.
    pub vocabulary_size: usize,
    /// The most text tokens of a caption, the end token included.
    pub context_length: usize,
    pub transformer: TransformerConfig,
}

/// Everything that changes the weights' shapes or what they mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels of the space that both towers project into.
    pub embedding_channels: usize,
    pub image: ImageTowerConfig,
    pub text: TextTowerConfig,
}

/// Pixel statistics of OpenAI's training pictures (openai/CLIP, `clip/clip.py`, `_transform`).
pub const OPEN_AI_PIXEL_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
pub const OPEN_AI_PIXEL_STANDARD_DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

impl TransformerConfig {
    /// A block as in all published CLIP models: heads of 64 channels, feed-forward four times as wide, quick GELU.
    pub fn quick_gelu(channels: usize, layer_count: usize) -> Self {
        Self {
            channels,
            layer_count,
            head_count: channels / 64,
            feed_forward_channels: 4 * channels,
            activation: FeedForwardActivation::QuickGelu,
            layer_norm_epsilon: 1e-5,
        }
    }

    /// `table` is where the config of the blocks stands, for errors.
    pub(crate) fn validate(&self, table: &str) -> Result<(), ConfigError> {
        let key = |name: &str| format!("{table}.{name}");
        let Self { channels, layer_count, head_count, feed_forward_channels, layer_norm_epsilon, .. } = *self;
        within(key("channels"), channels, CHANNELS_LIMIT)?;
        within(key("layer_count"), layer_count, LAYER_LIMIT)?;
        within(key("head_count"), head_count, CHANNELS_LIMIT)?;
        within(key("feed_forward_channels"), feed_forward_channels, CHANNELS_LIMIT)?;
        if !channels.is_multiple_of(head_count) {
            return Err(ConfigError::new(key("head_count"), format!("a divisor of channels = {channels}"), head_count));
        }
        if !(layer_norm_epsilon > 0.0 && layer_norm_epsilon.is_finite()) {
            return Err(ConfigError::new(key("layer_norm_epsilon"), "a positive number", layer_norm_epsilon));
        }
        Ok(())
    }
}

impl Config {
    /// ViT-B/32 at 224 pixels (Radford et al. 2021, tables 19 and 20; `openai/clip-vit-base-patch32`).
    pub fn vit_b_32() -> Self {
        Self::open_ai(32, TransformerConfig::quick_gelu(768, 12), TransformerConfig::quick_gelu(512, 12), 512)
    }

    /// ViT-B/16 at 224 pixels.
    pub fn vit_b_16() -> Self {
        Self::open_ai(16, TransformerConfig::quick_gelu(768, 12), TransformerConfig::quick_gelu(512, 12), 512)
    }

    /// ViT-L/14 at 224 pixels.
    pub fn vit_l_14() -> Self {
        Self::open_ai(14, TransformerConfig::quick_gelu(1024, 24), TransformerConfig::quick_gelu(768, 12), 768)
    }

    /// Ours, for 64 x 64 pictograms with short captions: 64 patches of 8 x 8 pixels, about 5 million weights and a vocabulary table.
    pub fn pictograms_64(vocabulary_size: usize, context_length: usize) -> Self {
        Self {
            embedding_channels: 128,
            image: ImageTowerConfig {
                image_size: 64,
                patch_size: 8,
                pixel_mean: [0.5; 3],
                pixel_standard_deviation: [0.5; 3],
                transformer: TransformerConfig::quick_gelu(192, 6),
            },
            text: TextTowerConfig { vocabulary_size, context_length, transformer: TransformerConfig::quick_gelu(192, 4) },
        }
    }

    fn open_ai(patch_size: usize, image: TransformerConfig, text: TransformerConfig, embedding_channels: usize) -> Self {
        Self {
            embedding_channels,
            image: ImageTowerConfig {
                image_size: 224,
                patch_size,
                pixel_mean: OPEN_AI_PIXEL_MEAN,
                pixel_standard_deviation: OPEN_AI_PIXEL_STANDARD_DEVIATION,
                transformer: image,
            },
            text: TextTowerConfig { vocabulary_size: 49_408, context_length: 77, transformer: text },
        }
    }

    /// Names the first key whose value no network can have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let ImageTowerConfig { image_size, patch_size, pixel_mean, pixel_standard_deviation, transformer } = &self.image;
        within("embedding_channels", self.embedding_channels, CHANNELS_LIMIT)?;
        within("image.image_size", *image_size, IMAGE_SIZE_LIMIT)?;
        within("image.patch_size", *patch_size, IMAGE_SIZE_LIMIT)?;
        within("text.vocabulary_size", self.text.vocabulary_size, VOCABULARY_LIMIT)?;
        within("text.context_length", self.text.context_length, CONTEXT_LIMIT)?;
        if !image_size.is_multiple_of(*patch_size) {
            return Err(ConfigError::new("image.patch_size", format!("a divisor of image_size = {image_size}"), patch_size));
        }
        if let Some(value) = pixel_mean.iter().find(|value| !value.is_finite()) {
            return Err(ConfigError::new("image.pixel_mean", "three numbers", value));
        }
        if let Some(value) = pixel_standard_deviation.iter().find(|&&value| !(value > 0.0 && value.is_finite())) {
            return Err(ConfigError::new("image.pixel_standard_deviation", "three positive numbers", value));
        }
        transformer.validate("image.transformer")?;
        self.text.transformer.validate("text.transformer")
    }
}

// Far above every published model and below what would exhaust memory before a user sees an error.
const CHANNELS_LIMIT: usize = 1 << 16;
const LAYER_LIMIT: usize = 1 << 10;
const IMAGE_SIZE_LIMIT: usize = 1 << 12;
const VOCABULARY_LIMIT: usize = 1 << 21;
const CONTEXT_LIMIT: usize = 1 << 14;

fn within(key: impl Into<String>, value: usize, limit: usize) -> Result<(), ConfigError> {
    if (1..=limit).contains(&value) { Ok(()) } else { Err(ConfigError::new(key, format!("1 to {limit}"), value)) }
}
