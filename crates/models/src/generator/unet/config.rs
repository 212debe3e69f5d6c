//! Sizes of U-Nets, and those that were published.

use super::time_embedding::{self, TimeUse};
use crate::ConfigError;
use serde::{Deserialize, Serialize};

/// The most channels that any layer may have: far above every published network, small enough that a mistyped number is an error and not an
/// allocation that kills the process.
pub(crate) const MOST_CHANNELS: usize = 16384;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels of the noisy input: 3 for pictures, 4 for Stable Diffusion's latents, more where another picture is concatenated to it.
    pub input_channels: usize,
    /// Channels of what is predicted (noise, clean picture or velocity).
    pub output_channels: usize,
    /// Whether `output_channels` more follow that say where the variance lies between its bounds (Nichol and Dhariwal 2021, equation 15).
    pub learned_variance: bool,
    /// Channels of each level; level i works at 1 / 2^i of the input's size.
    pub level_channels: Vec<usize>,
    /// Residual blocks of each level on the way down; the way up has one more.
    pub residual_block_count: usize,
    /// Levels (0 is the input's own size) at which every residual block is followed by attention.
    pub attention_levels: Vec<usize>,
    /// Attention between the two blocks in the middle.
    pub middle_attention: bool,
    /// Attention heads at each level; the middle has those of the last. Divides the level's channels where there is attention.
    pub head_counts: Vec<usize>,
    /// With text, attention is a transformer that also looks at the text; without, attention of the feature map to itself.
    pub text: Option<TextConfig>,
    /// Classes that a picture can be given, if it is given one.
    pub class_count: Option<usize>,
    pub time: time_embedding::Config,
    /// How the time enters a residual block.
    pub time_use: TimeUse,
    /// Where the strided convolutions put their zeros.
    pub downsampling_padding: DownsamplingPadding,
    /// Groups of every normalisation, 32 in the published networks; divides the channels of every level.
    pub group_count: usize,
    /// Epsilon of the residual blocks' and the output's normalisations (and of attention's without text; a transformer's is 1e-6).
    pub norm_epsilon: f64,
}

/// Transformers at the attention levels (latent-diffusion's SpatialTransformer).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Channels of the text's states.
    pub channels: usize,
    /// Transformer blocks in each transformer.
    pub block_count: usize,
}

/// Zeros around the input of a strided 3x3 convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DownsamplingPadding {
    /// One on every side: Stable Diffusion and OpenAI's networks.
    AllSides,
    /// Below and to the right only: DDPM's own networks (TensorFlow's "SAME").
    After,
}

impl Config {
    /// What the sides of the input must be divisible by.
    pub fn side_divisor(&self) -> usize {
        1 << self.level_channels.len().saturating_sub(1)
    }

    /// Channels of the network's output: twice `output_channels` with learned variance.
    pub fn predicted_channels(&self) -> usize {
        self.output_channels * if self.learned_variance { 2 } else { 1 }
    }

    /// Refuses sizes that no network can have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let channel_range = format!("1 to {MOST_CHANNELS}");
        for (key, found) in [("input_channels", self.input_channels), ("output_channels", self.output_channels)] {
            ConfigError::check((1..=MOST_CHANNELS).contains(&found), key, channel_range.as_str(), found)?;
        }
        ConfigError::check((1..=64).contains(&self.residual_block_count), "residual_block_count", "1 to 64", self.residual_block_count)?;
        let levels = self.level_channels.len();
        ConfigError::check((1..=8).contains(&levels), "level_channels", "1 to 8 levels", levels)?;
        ConfigError::check(self.group_count > 0, "group_count", "at least 1", self.group_count)?;
        for &channels in &self.level_channels {
            ConfigError::check((1..=MOST_CHANNELS).contains(&channels), "level_channels", channel_range.as_str(), channels)?;
            let expected = format!("a divisor of the channels of every level, {channels} among them");
            ConfigError::check(channels.is_multiple_of(self.group_count), "group_count", expected, self.group_count)?;
        }
        // The blocks on the way up normalise a level's features beside the features they skip to: sums of channels, which the groups divide too.
        for &level in &self.attention_levels {
            ConfigError::check(level < levels, "attention_levels", format!("levels below {levels}"), level)?;
        }
        ConfigError::check(self.head_counts.len() == levels, "head_counts", format!("{levels} numbers, one for each level"), self.head_counts.len())?;
        let middle = self.middle_attention.then_some(levels - 1);
        for level in self.attention_levels.iter().copied().chain(middle) {
            let (heads, channels) = (self.head_counts[level], self.level_channels[level]);
            ConfigError::check(heads > 0 && channels.is_multiple_of(heads), "head_counts", format!("divisors of {channels} at level {level}"), heads)?;
        }
        if let Some(text) = &self.text {
            ConfigError::check((1..=MOST_CHANNELS).contains(&text.channels), "text.channels", channel_range.as_str(), text.channels)?;
            ConfigError::check((1..=64).contains(&text.block_count), "text.block_count", "1 to 64", text.block_count)?;
        }
        if let Some(count) = self.class_count {
            ConfigError::check((1..=1 << 20).contains(&count), "class_count", "1 to 1048576", count)?;
        }
        self.time.validate().map_err(|error| ConfigError { key: format!("time.{}", error.key), ..error })?;
        let epsilon = self.norm_epsilon;
        ConfigError::check(epsilon > 0.0 && epsilon <= 0.1, "norm_epsilon", "above 0, at most 0.1", epsilon)
    }

    /// DDPM's network for CIFAR-10 at 32x32 (Ho, Jain and Abbeel 2020, appendix B): 35.7 million parameters, one head of attention at 16x16.
    pub fn ddpm_cifar10() -> Self {
        Self {
            input_channels: 3,
            output_channels: 3,
            learned_variance: false,
            level_channels: vec![128, 256, 256, 256],
            residual_block_count: 2,
            attention_levels: vec![1],
            middle_attention: true,
            head_counts: vec![1; 4],
            text: None,
            class_count: None,
            time: time_embedding::Config::ddpm(128),
            time_use: TimeUse::Shift,
            downsampling_padding: DownsamplingPadding::After,
            group_count: 32,
            norm_epsilon: 1e-6,
        }
    }

    /// Stable Diffusion 1.x (Rombach et al. 2022): latents of 4 channels, CLIP ViT-L/14's 768 text channels, 8 heads everywhere. 859.5 million parameters.
    pub fn stable_diffusion_1() -> Self {
        Self {
            input_channels: 4,
            output_channels: 4,
            learned_variance: false,
            level_channels: vec![320, 640, 1280, 1280],
            residual_block_count: 2,
            attention_levels: vec![0, 1, 2],
            middle_attention: true,
            head_counts: vec![8; 4],
            text: Some(TextConfig { channels: 768, block_count: 1 }),
            class_count: None,
            time: time_embedding::Config::latent_diffusion(320),
            time_use: TimeUse::Shift,
            downsampling_padding: DownsamplingPadding::AllSides,
            group_count: 32,
            norm_epsilon: 1e-5,
        }
    }

    /// Stable Diffusion 2.x: heads of 64 channels, OpenCLIP ViT-H/14's 1024 text channels. 865.9 million parameters.
    pub fn stable_diffusion_2() -> Self {
        Self { head_counts: vec![5, 10, 20, 20], text: Some(TextConfig { channels: 1024, block_count: 1 }), ..Self::stable_diffusion_1() }
    }
}
