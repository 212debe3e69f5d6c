//! Sizes of tiny autoencoders, and those that were published.

use crate::ConfigError;
use crate::image_tokenizer::convolutional::MOST_CHANNELS;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels of the pictures: 3 for RGB.
    pub picture_channels: usize,
    /// Channels of every feature map between picture and latents.
    pub channels: usize,
    /// Channels of the latents, those of the large autoencoder it stands for.
    pub latent_channels: usize,
    /// Blocks of each level of the encoder, from the picture's size down.
    pub encoder_block_counts: Vec<usize>,
    /// Blocks of each level of the decoder, from the latents' size up; as many levels.
    pub decoder_block_counts: Vec<usize>,
    /// A wide 1x1 detour before each block of the lowest level (TAEF2).
    pub detours: bool,
}

impl Config {
    /// Pixels of a side that become one place of the latents.
    pub fn downsampling_factor(&self) -> usize {
        1 << self.encoder_block_counts.len().saturating_sub(1)
    }

    /// Refuses sizes that no network can have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (key, found) in [("picture_channels", self.picture_channels), ("channels", self.channels), ("latent_channels", self.latent_channels)] {
            ConfigError::check((1..=MOST_CHANNELS).contains(&found), key, format!("1 to {MOST_CHANNELS}"), found)?;
        }
        let levels = self.encoder_block_counts.len();
        ConfigError::check((1..=8).contains(&levels), "encoder_block_counts", "1 to 8 levels", levels)?;
        ConfigError::check(self.decoder_block_counts.len() == levels, "decoder_block_counts", format!("{levels} levels"), self.decoder_block_counts.len())?;
        for (key, counts) in [("encoder_block_counts", &self.encoder_block_counts), ("decoder_block_counts", &self.decoder_block_counts)] {
            if let Some(count) = counts.iter().find(|&&count| count > 64) {
                return Err(ConfigError::new(key, "at most 64 blocks a level", count));
            }
        }
        Ok(())
    }

    /// TAESD and TAESDXL: 4 channels.
    pub fn stable_diffusion() -> Self {
        published(4, false)
    }

    /// TAESD3 and TAEF1: 16 channels.
    pub fn sixteen_channels() -> Self {
        published(16, false)
    }

    /// TAEF2: 32 channels and detours.
    pub fn flux_2() -> Self {
        published(32, true)
    }
}

fn published(latent_channels: usize, detours: bool) -> Config {
    Config { picture_channels: 3, channels: 64, latent_channels, encoder_block_counts: vec![1, 3, 3, 3], decoder_block_counts: vec![3, 3, 3, 1], detours }
}
