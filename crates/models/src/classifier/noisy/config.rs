//! Sizes of noisy classifiers.

use crate::ConfigError;
use crate::generator::unet::{self, DownsamplingPadding, TimeUse, time_embedding};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels of the noisy input: 3 for pictures, those of the latents in latent diffusion.
    pub input_channels: usize,
    pub class_count: usize,
    /// Channels of each level; level i works at 1 / 2^i of the input's size.
    pub level_channels: Vec<usize>,
    pub residual_block_count: usize,
    /// Levels (0 is the input's own size) at which every residual block is followed by attention.
    pub attention_levels: Vec<usize>,
    /// Attention heads at each level; the middle and the pooling have those of the last.
    pub head_counts: Vec<usize>,
    pub time: time_embedding::Config,
    pub time_use: TimeUse,
    pub group_count: usize,
    pub norm_epsilon: f64,
    pub pooling: Pooling,
}

/// How the last feature map becomes one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Pooling {
    /// The mean over all places; the picture may have any size.
    Mean,
    /// What the mean finds among all places by attention (Dhariwal and Nichol 2021, section 4; Radford et al. 2021, section 2.4). Each place has a learned
    /// vector, so that the picture has one size.
    Attention {
        /// Rows, and columns, of the last feature map: the picture's side divided by 2^(levels - 1).
        side: usize,
    },
}

impl Config {
    /// What the sides of the input must be divisible by.
    pub fn side_divisor(&self) -> usize {
        self.network().side_divisor()
    }

    /// Refuses sizes that no network can have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check((2..=1 << 20).contains(&self.class_count), "class_count", "2 to 1048576", self.class_count)?;
        if let Pooling::Attention { side } = self.pooling {
            ConfigError::check((1..=256).contains(&side), "pooling.attention.side", "1 to 256", side)?;
        }
        self.network().validate()
    }

    /// The U-Net whose way down and middle this is.
    pub(super) fn network(&self) -> unet::Config {
        unet::Config {
            input_channels: self.input_channels,
            output_channels: 1,
            learned_variance: false,
            level_channels: self.level_channels.clone(),
            residual_block_count: self.residual_block_count,
            attention_levels: self.attention_levels.clone(),
            middle_attention: true,
            head_counts: self.head_counts.clone(),
            text: None,
            class_count: None,
            time: self.time,
            time_use: self.time_use,
            downsampling_padding: DownsamplingPadding::AllSides,
            group_count: self.group_count,
            norm_epsilon: self.norm_epsilon,
        }
    }
}
