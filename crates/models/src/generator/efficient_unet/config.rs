//! Sizes of Efficient U-Nets, and those of Imagen's cascade.

use crate::ConfigError;
use crate::generator::unet::config::MOST_CHANNELS;
use crate::generator::unet::time_embedding;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels of the noisy picture, of the smaller picture and of what is predicted: 3 for RGB.
    pub picture_channels: usize,
    /// Whether a smaller picture, enlarged, is concatenated to the input and the level of its noise is told.
    pub low_resolution: bool,
    /// Channels of the first convolution and of the last.
    pub base_channels: usize,
    /// From the largest size down.
    pub levels: Vec<Level>,
    /// Block, attention (where the last level has some), block between the way down and the way up.
    pub middle: bool,
    /// Where the way down leaves a result for the way up, and where attention stands.
    pub per: Per,
    /// Channels of a head of attention; divides the channels of every level with attention.
    pub head_channels: usize,
    /// Channels of the text's states, where there is text.
    pub text_channels: Option<usize>,
    pub time: time_embedding::Config,
    /// Groups of every normalisation; divides the channels of every level.
    pub group_count: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    pub channels: usize,
    /// On the way down, and as many on the way up.
    pub residual_block_count: usize,
    /// Whether the level begins with a strided convolution (and ends, on the way up, with enlarging).
    pub downsample: bool,
    pub self_attention: bool,
    pub text_attention: bool,
}

impl Level {
    pub(super) fn attends(&self) -> bool {
        self.self_attention || self.text_attention
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// After every residual block, as in the U-Net of Dhariwal and Nichol 2021, which is Imagen's 64x64 model.
    Block,
    /// After the last block of a level, as in the Efficient U-Net's figures.
    Level,
}

impl Config {
    /// What the sides of the picture must be divisible by.
    pub fn side_divisor(&self) -> usize {
        1 << self.levels.iter().filter(|level| level.downsample).count()
    }

    /// Refuses sizes that no network can have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let channel_range = format!("1 to {MOST_CHANNELS}");
        for (key, found) in [("picture_channels", self.picture_channels), ("base_channels", self.base_channels), ("head_channels", self.head_channels)] {
            ConfigError::check((1..=MOST_CHANNELS).contains(&found), key, channel_range.as_str(), found)?;
        }
        ConfigError::check((1..=10).contains(&self.levels.len()), "levels", "1 to 10 levels", self.levels.len())?;
        ConfigError::check(self.group_count > 0, "group_count", "at least 1", self.group_count)?;
        let divides = |channels: usize| {
            let expected = format!("a divisor of all channels, {channels} among them");
            ConfigError::check(channels.is_multiple_of(self.group_count), "group_count", expected, self.group_count)
        };
        divides(self.base_channels)?;
        for (index, level) in self.levels.iter().enumerate() {
            let key = |name: &str| format!("levels.{index}.{name}");
            ConfigError::check((1..=MOST_CHANNELS).contains(&level.channels), key("channels"), channel_range.as_str(), level.channels)?;
            divides(level.channels)?;
            ConfigError::check((1..=64).contains(&level.residual_block_count), key("residual_block_count"), "1 to 64", level.residual_block_count)?;
            let fits = !level.attends() || level.channels.is_multiple_of(self.head_channels);
            ConfigError::check(fits, "head_channels", format!("a divisor of {} at level {index}", level.channels), self.head_channels)?;
            let text = !level.text_attention || self.text_channels.is_some();
            ConfigError::check(text, key("text_attention"), "false where there are no text_channels", level.text_attention)?;
        }
        if let Some(channels) = self.text_channels {
            ConfigError::check((1..=MOST_CHANNELS).contains(&channels), "text_channels", channel_range, channels)?;
        }
        self.time.validate().map_err(|error| ConfigError { key: format!("time.{}", error.key), ..error })
    }

    /// Imagen's 64x64 model (Saharia et al. 2022, appendix F: 512 channels times 1, 2, 3, 4, three blocks a level, attention to pixels and text at 32, 16 and
    /// 8, heads of 64 channels), for T5-XXL's 4096 text channels. The paper says 2 billion parameters; this has 1.96.
    pub fn imagen_64() -> Self {
        let level = |index: usize| Level {
            channels: 512 * (index + 1),
            residual_block_count: 3,
            downsample: index > 0,
            self_attention: index > 0,
            text_attention: index > 0,
        };
        Self {
            picture_channels: 3,
            low_resolution: false,
            base_channels: 512,
            levels: (0..4).map(level).collect(),
            middle: true,
            per: Per::Block,
            head_channels: 64,
            text_channels: Some(4096),
            time: time_embedding::Config::latent_diffusion(512),
            group_count: 32,
        }
    }

    /// Imagen's 64x64 to 256x256 model: 128 channels times 1, 2, 4, 8 with 2, 4, 8, 8 blocks, attention to pixels and text at the last level (as
    /// imagen-pytorch's `SRUnet256`). The paper says 600 million parameters; this has 472 million.
    pub fn imagen_256() -> Self {
        Self::super_resolution(true)
    }

    /// Imagen's 256x256 to 1024x1024 model: the same without self-attention (as imagen-pytorch's `SRUnet1024`). The paper says 400 million parameters; this
    /// has 468 million. Self-attention at one level cannot make the paper's difference of 200 million; what does is not said.
    pub fn imagen_1024() -> Self {
        Self::super_resolution(false)
    }

    fn super_resolution(self_attention: bool) -> Self {
        let level = |(channels, residual_block_count)| {
            let attends = channels == 1024;
            Level { channels, residual_block_count, downsample: true, self_attention: attends && self_attention, text_attention: attends }
        };
        Self {
            low_resolution: true,
            base_channels: 128,
            levels: [(128, 2), (256, 4), (512, 8), (1024, 8)].map(level).to_vec(),
            middle: false,
            per: Per::Level,
            time: time_embedding::Config::latent_diffusion(128),
            ..Self::imagen_64()
        }
    }

    /// How many attentions a level has on one way.
    pub(super) fn places(&self, level: &Level) -> usize {
        match self.per {
            _ if !level.attends() => 0,
            Per::Block => level.residual_block_count,
            Per::Level => 1,
        }
    }
}
