//! Sizes of VQGANs, and those that were published.

use crate::ConfigError;
use crate::image_tokenizer::{convolutional, quantizer::vector};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The encoder and the decoder.
    pub network: convolutional::Config,
    /// The codebook.
    pub quantizer: vector::Config,
}

impl Config {
    /// Refuses sizes that no network can have; the error names the key with its table (`network.group_count`).
    pub fn validate(&self) -> Result<(), ConfigError> {
        let within = |table: &str, error: ConfigError| ConfigError { key: format!("{table}.{}", error.key), ..error };
        self.network.validate().map_err(|error| within("network", error))?;
        self.quantizer.validate().map_err(|error| within("quantizer", error))
    }

    /// For 64x64 pictograms: 8x8 = 64 image tokens of 1024 unit-length codes kept as moving averages, restarted when they die. Few channels where the
    /// feature maps are large, so that two cores train it. Ours, not published.
    pub fn pictograms() -> Self {
        Self {
            network: convolutional::Config { residual_block_count: 1, ..published(32, &[1, 1, 2, 4], 64, &[3], 8) },
            quantizer: vector::Config { unit_length: true, codebook: vector::Codebook::MovingAverage, restart_below: 0.1, ..vector::Config::learned(1024, 32) },
        }
    }

    /// taming `configs/imagenet_vqgan.yaml` ("vqgan_imagenet_f16_1024"): 256x256 pictures to 16x16 tokens.
    pub fn imagenet_f16_1024() -> Self {
        taming_f16(1024)
    }

    /// taming "vqgan_imagenet_f16_16384", the image tokenizer of DALL-E mini.
    pub fn imagenet_f16_16384() -> Self {
        taming_f16(16384)
    }

    /// taming `configs/faceshq_vqgan.yaml` (CelebA-HQ and FFHQ).
    pub fn faceshq_f16() -> Self {
        taming_f16(1024)
    }

    /// taming `configs/custom_vqgan.yaml`, for a folder of one's own.
    pub fn custom_f16() -> Self {
        taming_f16(1024)
    }

    /// The first stage of taming `configs/sflckr.yaml`.
    pub fn sflckr_f16() -> Self {
        taming_f16(1024)
    }

    /// The condition stages of taming `configs/sflckr_cond_stage.yaml` (182 labels) and `configs/coco_cond_stage.yaml` (183): one-hot segmentations, one
    /// channel for each label.
    pub fn segmentation_f16(label_count: usize) -> Self {
        let mut config = taming_f16(1024);
        config.network.picture_channels = label_count;
        config
    }

    /// The first stage of taming `configs/coco_scene_images_transformer.yaml`.
    pub fn coco_f16() -> Self {
        taming_f16(8192)
    }

    /// The first stage of taming `configs/open_images_scene_images_transformer.yaml`.
    pub fn openimages_f16() -> Self {
        taming_f16(8192)
    }

    /// taming "VQGAN OpenImages (f=8), 256", which is latent-diffusion's vq-f8-n256: 256x256 pictures to 32x32 tokens.
    pub fn openimages_f8_256() -> Self {
        Self::vq_f8_256()
    }

    /// taming "VQGAN OpenImages (f=8), 16384", which is latent-diffusion's vq-f8.
    pub fn openimages_f8_16384() -> Self {
        Self::vq_f8()
    }

    /// taming "VQGAN OpenImages (f=8), 8192, GumbelQuantization" (`configs/openimages_gumbel` of its release), from which ruDALL-E's image tokenizer was
    /// made too: 256x256 pictures to 32x32 tokens, codes chosen by score.
    pub fn openimages_f8_8192_gumbel() -> Self {
        Self { network: published(128, &[1, 1, 2, 4], 256, &[3], 32), quantizer: vector::Config::scored(8192, 256) }
    }

    /// latent-diffusion vq-f4: 8192 codes of 3 channels, attention in the middle only.
    pub fn vq_f4() -> Self {
        latent_diffusion(&[1, 2, 4], &[], 3, 8192)
    }

    /// latent-diffusion vq-f4-noattn: as vq-f4 without any attention.
    pub fn vq_f4_noattn() -> Self {
        let mut config = Self::vq_f4();
        config.network.middle_attention = false;
        config
    }

    /// latent-diffusion vq-f8: 16384 codes of 4 channels.
    pub fn vq_f8() -> Self {
        latent_diffusion(&[1, 2, 2, 4], &[3], 4, 16384)
    }

    /// latent-diffusion vq-f8-n256: 256 codes of 4 channels.
    pub fn vq_f8_256() -> Self {
        latent_diffusion(&[1, 2, 2, 4], &[3], 4, 256)
    }

    /// latent-diffusion vq-f16: 16384 codes of 8 channels.
    pub fn vq_f16() -> Self {
        latent_diffusion(&[1, 1, 2, 2, 4], &[4], 8, 16384)
    }
}

fn published(
    base_channels: usize,
    channel_multipliers: &[usize],
    latent_channels: usize,
    attention_levels: &[usize],
    group_count: usize,
) -> convolutional::Config {
    convolutional::Config {
        picture_channels: 3,
        base_channels,
        channel_multipliers: channel_multipliers.to_vec(),
        residual_block_count: 2,
        attention_levels: attention_levels.to_vec(),
        middle_attention: true,
        group_count,
        latent_channels,
    }
}

/// The network of all of taming's 256x256 models: attention at 16x16, which is level 4.
fn taming_f16(code_count: usize) -> Config {
    Config { network: published(128, &[1, 1, 2, 2, 4], 256, &[4], 32), quantizer: vector::Config::learned(code_count, 256) }
}

/// As many latent channels as code channels.
fn latent_diffusion(channel_multipliers: &[usize], attention_levels: &[usize], channels: usize, code_count: usize) -> Config {
    Config { network: published(128, channel_multipliers, channels, attention_levels, 32), quantizer: vector::Config::learned(code_count, channels) }
}
