//! Convolutional encoder and decoder between pixels and latents.
//!
//! Paper: Esser, Rombach and Ommer 2021 (2012.09841), table 7; the blocks go back to Ho, Jain and Abbeel 2020 (2006.11239). The reference is
//! taming-transformers `modules/diffusionmodules/model.py`; latent-diffusion and diffusers use the same network.
//!
//! Encoder: x [batch, height, width, 3] -> conv 3x3 -> for each level: residual blocks (with attention at chosen levels), then a strided convolution
//! except after the last level -> middle (block, attention, block) -> group normalisation, SiLU, conv 3x3 -> [batch, height / f, width / f, latent_channels],
//! f = 2^(levels - 1). The decoder is the mirror picture, with one block more on each level and nearest-neighbour upsampling.

mod cost;
pub mod import;

use crate::ConfigError;
use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use smalti_nn::Initializer;
use smalti_nn::layers::{Conv2d, Conv2dConfig, GroupNorm, Linear};
use smalti_nn::ops::{self, Activation, Mask, Padding};

/// The epsilon of every group normalisation of the published networks.
const EPSILON: f32 = 1e-6;

/// The most channels that any layer may have: far above every published network, small enough that a mistyped number is an error and not an
/// allocation that kills the process.
pub(crate) const MOST_CHANNELS: usize = 8192;

/// The sizes of an encoder and its decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels of the pictures: 3 for RGB.
    pub picture_channels: usize,
    /// Channels before the first level.
    pub base_channels: usize,
    /// Level i has `base_channels * channel_multipliers[i]` channels and works at 1 / 2^i of the picture's size.
    pub channel_multipliers: Vec<usize>,
    /// Residual blocks of each level of the encoder; the decoder has one more.
    pub residual_block_count: usize,
    /// Levels (0 is the picture's own size) at which every residual block is followed by attention.
    pub attention_levels: Vec<usize>,
    /// Attention between the two blocks in the middle.
    pub middle_attention: bool,
    /// Groups of every normalisation, 32 in the published networks; must divide the channels of every level.
    pub group_count: usize,
    /// Channels of the encoder's output and the decoder's input.
    pub latent_channels: usize,
}

impl Config {
    /// Pixels of a side that become one latent.
    pub fn downsampling_factor(&self) -> usize {
        1 << self.channel_multipliers.len().saturating_sub(1)
    }

    /// Refuses sizes that no network can have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let channel_range = format!("1 to {MOST_CHANNELS}");
        for (key, found) in [("picture_channels", self.picture_channels), ("base_channels", self.base_channels), ("latent_channels", self.latent_channels)] {
            ConfigError::check((1..=MOST_CHANNELS).contains(&found), key, channel_range.as_str(), found)?;
        }
        ConfigError::check((1..=64).contains(&self.residual_block_count), "residual_block_count", "1 to 64", self.residual_block_count)?;
        let levels = self.channel_multipliers.len();
        ConfigError::check((1..=8).contains(&levels), "channel_multipliers", "1 to 8 multipliers", format!("{levels}"))?;
        ConfigError::check(self.group_count > 0, "group_count", "at least 1", self.group_count)?;
        for channels in
            std::iter::once(self.base_channels).chain(self.channel_multipliers.iter().map(|multiplier| self.base_channels.saturating_mul(*multiplier)))
        {
            ConfigError::check(
                (1..=MOST_CHANNELS).contains(&channels),
                "channel_multipliers",
                format!("multipliers that give {channel_range} channels"),
                format!("{channels} channels"),
            )?;
            let expected = format!("a divisor of the channels of every level, {channels} among them");
            ConfigError::check(channels.is_multiple_of(self.group_count), "group_count", expected, self.group_count)?;
        }
        for &level in &self.attention_levels {
            ConfigError::check(level < levels, "attention_levels", format!("levels below {levels}"), level)?;
        }
        Ok(())
    }

    fn channels(&self, level: usize) -> usize {
        self.base_channels * self.channel_multipliers[level]
    }

    fn last_channels(&self) -> usize {
        self.channels(self.channel_multipliers.len() - 1)
    }
}

/// Pixels to latents.
#[derive(Module, Debug)]
pub struct Encoder {
    conv_in: Conv2d,
    /// from the picture's size down
    levels: Vec<EncoderLevel>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    /// `config` must be valid.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Self {
        let level_count = config.channel_multipliers.len();
        let conv_in = Conv2d::new(Conv2dConfig::same(config.picture_channels, config.base_channels, 3), initializer);
        let mut channels = config.base_channels;
        let mut levels = Vec::with_capacity(level_count);
        for level in 0..level_count {
            levels.push(EncoderLevel::new(config, level, channels, level + 1 < level_count, initializer));
            channels = config.channels(level);
        }
        Self {
            conv_in,
            levels,
            middle: Middle::new(config, initializer),
            norm_out: GroupNorm::new(config.group_count, channels, EPSILON, initializer),
            conv_out: Conv2d::new(Conv2dConfig::same(channels, config.latent_channels, 3), initializer),
        }
    }

    /// x [batch, height, width, picture_channels] in [-1, 1], sides divisible by f -> [batch, height / f, width / f, latent_channels].
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut h = self.conv_in.forward(x);
        for level in &self.levels {
            h = level.forward(h);
        }
        let h = self.middle.forward(h);
        self.conv_out.forward(self.norm_out.forward(h, Activation::Silu))
    }
}

/// Latents to pixels.
#[derive(Module, Debug)]
pub struct Decoder {
    conv_in: Conv2d,
    middle: Middle,
    /// from the latents' size up
    levels: Vec<DecoderLevel>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    /// `config` must be valid.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Self {
        let level_count = config.channel_multipliers.len();
        let mut channels = config.last_channels();
        let conv_in = Conv2d::new(Conv2dConfig::same(config.latent_channels, channels, 3), initializer);
        let middle = Middle::new(config, initializer);
        let mut levels = Vec::with_capacity(level_count);
        for level in (0..level_count).rev() {
            levels.push(DecoderLevel::new(config, level, channels, level > 0, initializer));
            channels = config.channels(level);
        }
        Self {
            conv_in,
            middle,
            levels,
            norm_out: GroupNorm::new(config.group_count, channels, EPSILON, initializer),
            conv_out: Conv2d::new(Conv2dConfig::same(channels, config.picture_channels, 3), initializer),
        }
    }

    /// latents [batch, height, width, latent_channels] -> the input of the last convolution, [batch, f * height, f * width, base_channels * first multiplier].
    pub fn features(&self, latents: Tensor<4>) -> Tensor<4> {
        let mut h = self.middle.forward(self.conv_in.forward(latents));
        for level in &self.levels {
            h = level.forward(h);
        }
        self.norm_out.forward(h, Activation::Silu)
    }

    /// features [batch, height, width, channels] -> [batch, height, width, picture_channels], about [-1, 1], not clamped.
    pub fn picture(&self, features: Tensor<4>) -> Tensor<4> {
        self.conv_out.forward(features)
    }

    /// The weight of the last convolution, [3, 3, channels, picture_channels].
    pub fn last_weight(&self) -> Tensor<4> {
        self.conv_out.weight.val()
    }
}

#[derive(Module, Debug)]
struct EncoderLevel {
    blocks: Vec<ResidualBlock>,
    /// one after each block, or none
    attentions: Vec<Attention>,
    downsample: Option<Conv2d>,
}

impl EncoderLevel {
    fn new(config: &Config, level: usize, input_channels: usize, downsample: bool, initializer: &mut Initializer) -> Self {
        let (blocks, attentions) = blocks(config, level, input_channels, config.residual_block_count, initializer);
        let channels = config.channels(level);
        // Zeros only below and to the right: the published networks pad by (0, 1) before the strided convolution.
        let padding = Padding { before: 0, after: 1 };
        let strided = Conv2dConfig { stride: 2, padding, ..Conv2dConfig::same(channels, channels, 3) };
        Self { blocks, attentions, downsample: downsample.then(|| Conv2d::new(strided, initializer)) }
    }

    fn forward(&self, h: Tensor<4>) -> Tensor<4> {
        let h = run(&self.blocks, &self.attentions, h);
        match &self.downsample {
            Some(conv) => conv.forward(h), // [batch, height / 2, width / 2, channels]
            None => h,
        }
    }
}

#[derive(Module, Debug)]
struct DecoderLevel {
    blocks: Vec<ResidualBlock>,
    /// one after each block, or none
    attentions: Vec<Attention>,
    upsample: Option<Conv2d>,
}

impl DecoderLevel {
    fn new(config: &Config, level: usize, input_channels: usize, upsample: bool, initializer: &mut Initializer) -> Self {
        let (blocks, attentions) = blocks(config, level, input_channels, config.residual_block_count + 1, initializer);
        let channels = config.channels(level);
        Self { blocks, attentions, upsample: upsample.then(|| Conv2d::new(Conv2dConfig::same(channels, channels, 3), initializer)) }
    }

    fn forward(&self, h: Tensor<4>) -> Tensor<4> {
        let h = run(&self.blocks, &self.attentions, h);
        match &self.upsample {
            Some(conv) => conv.forward(ops::upsample_nearest(h)), // [batch, 2 * height, 2 * width, channels]
            None => h,
        }
    }
}

fn blocks(config: &Config, level: usize, input_channels: usize, count: usize, initializer: &mut Initializer) -> (Vec<ResidualBlock>, Vec<Attention>) {
    let channels = config.channels(level);
    let attends = config.attention_levels.contains(&level);
    let (mut blocks, mut attentions) = (Vec::with_capacity(count), Vec::new());
    for index in 0..count {
        blocks.push(ResidualBlock::new(config.group_count, if index == 0 { input_channels } else { channels }, channels, initializer));
        if attends {
            attentions.push(Attention::new(config.group_count, channels, initializer));
        }
    }
    (blocks, attentions)
}

fn run(blocks: &[ResidualBlock], attentions: &[Attention], mut h: Tensor<4>) -> Tensor<4> {
    for (index, block) in blocks.iter().enumerate() {
        h = block.forward(h);
        if let Some(attention) = attentions.get(index) {
            h = attention.forward(h);
        }
    }
    h
}

#[derive(Module, Debug)]
struct Middle {
    block_1: ResidualBlock,
    attention: Option<Attention>,
    block_2: ResidualBlock,
}

impl Middle {
    fn new(config: &Config, initializer: &mut Initializer) -> Self {
        let (group_count, channels) = (config.group_count, config.last_channels());
        Self {
            block_1: ResidualBlock::new(group_count, channels, channels, initializer),
            attention: config.middle_attention.then(|| Attention::new(group_count, channels, initializer)),
            block_2: ResidualBlock::new(group_count, channels, channels, initializer),
        }
    }

    fn forward(&self, h: Tensor<4>) -> Tensor<4> {
        let h = self.block_1.forward(h);
        let h = match &self.attention {
            Some(attention) => attention.forward(h),
            None => h,
        };
        self.block_2.forward(h)
    }
}

/// x + conv(silu(norm(conv(silu(norm(x)))))), with a linear map on the shortcut where the channels change.
#[derive(Module, Debug)]
struct ResidualBlock {
    norm_1: GroupNorm,
    conv_1: Conv2d,
    norm_2: GroupNorm,
    conv_2: Conv2d,
    shortcut: Option<Linear>,
}

impl ResidualBlock {
    fn new(group_count: usize, input_channels: usize, channels: usize, initializer: &mut Initializer) -> Self {
        Self {
            norm_1: GroupNorm::new(group_count, input_channels, EPSILON, initializer),
            conv_1: Conv2d::new(Conv2dConfig::same(input_channels, channels, 3), initializer),
            norm_2: GroupNorm::new(group_count, channels, EPSILON, initializer),
            conv_2: Conv2d::new(Conv2dConfig::same(channels, channels, 3), initializer),
            shortcut: (input_channels != channels).then(|| pointwise(input_channels, channels, initializer)),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = self.conv_1.forward(self.norm_1.forward(x.clone(), Activation::Silu));
        let h = self.norm_2.forward(h, Activation::Silu);
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x),
            None => x,
        };
        self.conv_2.forward_onto(residual, h)
    }
}

/// One head of attention over all places of a feature map, added to it.
#[derive(Module, Debug)]
struct Attention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
}

impl Attention {
    fn new(group_count: usize, channels: usize, initializer: &mut Initializer) -> Self {
        Self {
            norm: GroupNorm::new(group_count, channels, EPSILON, initializer),
            query: pointwise(channels, channels, initializer),
            key: pointwise(channels, channels, initializer),
            value: pointwise(channels, channels, initializer),
            output: pointwise(channels, channels, initializer),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, height, width, channels] = x.dims();
        let h = self.norm.forward(x.clone(), Activation::Identity).reshape([batch, 1, height * width, channels]); // one head
        let h = ops::attention(self.query.forward(h.clone()), self.key.forward(h.clone()), self.value.forward(h), Mask::None);
        x + self.output.forward(h).reshape([batch, height, width, channels])
    }
}

/// A 1x1 convolution, which over the last axis is a linear map. The weights have the variance of PyTorch's default, 1 / (3 * input_channels).
pub(crate) fn pointwise(input_channels: usize, output_channels: usize, initializer: &mut Initializer) -> Linear {
    Linear::normal(input_channels, output_channels, true, (1.0 / (3.0 * input_channels as f32)).sqrt(), initializer)
}
