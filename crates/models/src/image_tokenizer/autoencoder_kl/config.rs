//! Sizes of KL autoencoders, and those that were published.

use crate::ConfigError;
use crate::image_tokenizer::convolutional;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The encoder and the decoder; the encoder gives twice `latent_channels`, means and logarithms of variances.
    pub network: convolutional::Config,
    /// Linear maps between encoder and moments and between latents and decoder, as all of latent-diffusion's networks have; Stable Diffusion 3's has none.
    pub latent_projections: bool,
}

impl Config {
    /// Refuses sizes that no network can have; the error names the key with its table (`network.group_count`).
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.network.validate().map_err(|error| ConfigError { key: format!("network.{}", error.key), ..error })?;
        // The encoder's output is twice as wide and must be possible too.
        let most = convolutional::MOST_CHANNELS / 2;
        ConfigError::check(self.network.latent_channels <= most, "network.latent_channels", format!("1 to {most}"), self.network.latent_channels)
    }

    /// For 64x64 pictograms: 16x16 latents of 4 channels. Few channels where the feature maps are large, so that two cores train it. Ours, not published.
    pub fn pictograms() -> Self {
        Self { network: convolutional::Config { residual_block_count: 1, group_count: 8, ..published(32, &[1, 2, 4], &[], 4) }, latent_projections: true }
    }

    /// Stable Diffusion 1.x, 2.x and SDXL, latent-diffusion's kl-f8 with 4 channels: 512x512 pictures to 64x64 latents (their scale factors: 0.18215, SDXL's
    /// 0.13025).
    pub fn stable_diffusion() -> Self {
        Self { network: published(128, &[1, 2, 4, 4], &[], 4), latent_projections: true }
    }

    /// Stable Diffusion 3 and FLUX.1: 16 channels, no linear maps around the latents.
    pub fn stable_diffusion_3() -> Self {
        Self { network: published(128, &[1, 2, 4, 4], &[], 16), latent_projections: false }
    }

    /// latent-diffusion kl-f4 (`models/first_stage_models/kl-f4`): 3 channels.
    pub fn kl_f4() -> Self {
        Self { network: published(128, &[1, 2, 4], &[], 3), latent_projections: true }
    }

    /// latent-diffusion kl-f8, 4 channels: the network of [`Config::stable_diffusion`].
    pub fn kl_f8() -> Self {
        Self::stable_diffusion()
    }

    /// latent-diffusion kl-f16: 16 channels, attention at 16x16 of 256x256 pictures.
    pub fn kl_f16() -> Self {
        Self { network: published(128, &[1, 1, 2, 2, 4], &[4], 16), latent_projections: true }
    }

    /// latent-diffusion kl-f32: 64 channels, attention at 16x16 and 8x8 of 256x256 pictures.
    pub fn kl_f32() -> Self {
        Self { network: published(128, &[1, 1, 2, 2, 4, 4], &[4, 5], 64), latent_projections: true }
    }
}

fn published(base_channels: usize, channel_multipliers: &[usize], attention_levels: &[usize], latent_channels: usize) -> convolutional::Config {
    convolutional::Config {
        picture_channels: 3,
        base_channels,
        channel_multipliers: channel_multipliers.to_vec(),
        residual_block_count: 2,
        attention_levels: attention_levels.to_vec(),
        middle_attention: true,
        group_count: 32,
        latent_channels,
    }
}
