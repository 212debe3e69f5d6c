//! The networks of Imagen's cascade: a U-Net whose weight lies where the picture is small.
//!
//! Paper: Saharia et al. 2022 (2205.11487), appendices B.1, D.3 and F; conditioning on a noisy smaller picture: Ho et al. 2021 (2106.15282).
//!
//! Idea: more residual blocks at the smaller sizes, where channels are many and pixels few; each level shrinks the picture before its convolutions and
//! enlarges it after them; what skips from the way down to the way up is scaled by 1 / sqrt(2). Text comes in twice: pooled, with the time, and token by
//! token, in attention. A super-resolution model also reads the smaller picture and how much noise was put on it.
//!
//! Data flow: noisy [batch, height, width, 3], for super-resolution with the smaller picture beside it -> conv 3x3 -> for each level: strided convolution,
//! residual blocks, attention -> the levels again, last to first: (input, kept result / sqrt(2)) side by side, residual blocks, attention, nearest-neighbour
//! upsampling and convolution -> group normalisation, SiLU, conv 3x3 -> [batch, height, width, 3]. Timesteps [batch] and noise level [batch] -> sinusoids ->
//! two linear maps each -> their sum with the pooled text -> scale and shift in every residual block.
//!
//! Where we differ from the paper, where it leaves a choice: what is skipped is concatenated (figure A.28 shows it arriving, not how); a learned "nothing"
//! is among the keys of every attention, so that a caption all of whose tokens are hidden means "no caption"; upsampling is nearest-neighbour and a
//! convolution; the output is normalised and convolved, where figure A.30 has one dense map.
//!
//! Where imagen-pytorch 2.1.0 differs from the paper and from us: three first convolutions of different kernels side by side (3, 7, 15); learned
//! frequencies in the time embedding; a Perceiver that pools the text to 32 tokens, and time tokens among them; a null embedding for every text position;
//! cosine-similarity attention with one key and value for all heads, feed-forwards behind it; RMS instead of group normalisation; global context gates;
//! pixel-shuffle upsampling; skips from every block; an extra residual block at each level and at both ends; the smaller picture again before the last
//! convolution. None of its weights fit here.
//!
//! Verified against an implementation in PyTorch written from the paper, apart from this one (`goldens/make.py`): outputs, losses and gradients agree to
//! 1e-4. No weights are published. The loss is [`super::unet::loss::weighted_squared_error`].

mod config;
mod cost;
#[cfg(test)]
mod tests;
mod text;

pub use crate::generator::conditions::{Conditions, LowResolution, Text};
pub use config::{Config, Level, Per};

use crate::ConfigError;
use crate::generator::unet::residual_block::{BlockOptions, ResidualBlock};
use crate::generator::unet::time_embedding::{TimeEmbedding, TimeUse};
use burn::module::Module;
use burn::tensor::Tensor;
use smalti_nn::Initializer;
use smalti_nn::layers::{Conv2d, Conv2dConfig, GroupNorm};
use smalti_nn::ops::{self, Activation, Padding};
use text::{Attention, AttentionOptions, TextPooling};

/// Epsilon of every group normalisation (PyTorch's default; the paper is silent).
const NORM_EPSILON: f64 = 1e-5;

#[derive(Module, Debug)]
pub struct EfficientUnet {
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    noise_embedding: Option<TimeEmbedding>,
    text_pooling: Option<TextPooling>,
    /// from the largest size down
    down: Vec<DownLevel>,
    middle: Option<Middle>,
    /// from the smallest size up
    up: Vec<UpLevel>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    #[module(skip)]
    config: Config,
}

impl EfficientUnet {
    /// A network with first weights, whose output is zero; an impossible config is an error that names the key.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        config.validate()?;
        let pictures = if config.low_resolution { 2 } else { 1 };
        let conv_in = Conv2d::new(Conv2dConfig::same(pictures * config.picture_channels, config.base_channels, 3), initializer);
        let time_embedding = TimeEmbedding::new(config.time, initializer);
        let noise_embedding = config.low_resolution.then(|| TimeEmbedding::new(config.time, initializer));
        let text_pooling = config.text_channels.map(|channels| TextPooling::new(channels, config.time.channels, initializer));
        let mut channels = config.base_channels;
        let mut down = Vec::with_capacity(config.levels.len());
        for level in &config.levels {
            down.push(DownLevel::new(config, level, channels, initializer));
            channels = level.channels;
        }
        let middle = config.levels.last().filter(|_| config.middle).map(|level| Middle::new(config, level, initializer));
        let mut up = Vec::with_capacity(config.levels.len());
        for (index, level) in config.levels.iter().enumerate().rev() {
            let output_channels = if index == 0 { config.base_channels } else { config.levels[index - 1].channels };
            up.push(UpLevel::new(config, level, output_channels, initializer));
        }
        Ok(Self {
            conv_in,
            time_embedding,
            noise_embedding,
            text_pooling,
            down,
            middle,
            up,
            norm_out: config.block_options().norm(config.base_channels, initializer),
            conv_out: Conv2d::zero(Conv2dConfig::same(config.base_channels, config.picture_channels, 3), initializer),
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// noisy [batch, height, width, picture_channels], sides divisible by [`Config::side_divisor`]; timesteps [batch], the network's own time input ->
    /// [batch, height, width, picture_channels].
    ///
    /// `conditions` are those that the config names, no more and no fewer. A row without any visible token has no caption. The smaller picture comes enlarged
    /// to the size of `noisy`, with its noise.
    pub fn forward(&self, noisy: Tensor<4>, timesteps: Tensor<1>, conditions: Conditions) -> Tensor<4> {
        let ([batch, height, width, channels], divisor) = (noisy.dims(), self.config.side_divisor());
        assert!(
            channels == self.config.picture_channels && height.is_multiple_of(divisor) && width.is_multiple_of(divisor),
            "efficient_unet: input {:?} does not fit {} channels and sides divisible by {divisor}",
            noisy.dims(),
            self.config.picture_channels
        );
        assert!(timesteps.dims() == [batch], "efficient_unet: timesteps {:?} do not fit input {:?}", timesteps.dims(), noisy.dims());
        conditions.check("efficient_unet", batch, self.config.text_channels, None);
        let mut time = self.time_embedding.forward(timesteps);
        let mut x = noisy;
        match (&self.noise_embedding, conditions.low_resolution) {
            (Some(embedding), Some(LowResolution { picture, noise_level })) => {
                let fits = picture.dims() == x.dims() && noise_level.dims() == [batch];
                assert!(fits, "efficient_unet: picture {:?} and noise level {:?} do not fit input {:?}", picture.dims(), noise_level.dims(), x.dims());
                time = time + embedding.forward(noise_level);
                x = Tensor::cat(vec![x, picture], 3);
            }
            (None, None) => {}
            (embedding, _) => panic!("efficient_unet: expected {} smaller picture", if embedding.is_some() { "a" } else { "no" }),
        }
        if let Some((pooling, text)) = self.text_pooling.as_ref().zip(conditions.text.as_ref()) {
            time = time + pooling.forward(text);
        }
        let told = Told { time: ops::silu(time), text: conditions.text };
        let mut h = self.conv_in.forward(x);
        let mut skips = Vec::new();
        for level in &self.down {
            h = level.forward(h, &told, &mut skips);
        }
        if let Some(middle) = &self.middle {
            h = middle.forward(h, &told);
        }
        for level in &self.up {
            h = level.forward(h, &told, &mut skips);
        }
        self.conv_out.forward(self.norm_out.forward(h, Activation::Silu))
    }
}

/// What every block is told: the time [batch, time_channels] with noise level and pooled text in it, through SiLU; and the text.
struct Told {
    time: Tensor<2>,
    text: Option<Text>,
}

impl Config {
    fn block_options(&self) -> BlockOptions {
        BlockOptions { time_channels: self.time.channels, time_use: TimeUse::ScaleShift, group_count: self.group_count, norm_epsilon: NORM_EPSILON }
    }

    fn attention(&self, level: &Level, initializer: &mut Initializer) -> Attention {
        let text_channels = self.text_channels.filter(|_| level.text_attention);
        let options = AttentionOptions { self_attention: level.self_attention, text_channels, head_channels: self.head_channels };
        let norm = self.block_options().norm(level.channels, initializer);
        Attention::new(&options, level.channels, norm, initializer)
    }

    fn attentions(&self, level: &Level, initializer: &mut Initializer) -> Vec<Attention> {
        (0..self.places(level)).map(|_| self.attention(level, initializer)).collect()
    }
}

/// Smaller first, then residual blocks.
#[derive(Module, Debug)]
struct DownLevel {
    downsample: Option<Conv2d>,
    blocks: Vec<ResidualBlock>,
    /// one after each block, one after the last, or none
    attentions: Vec<Attention>,
    #[module(skip)]
    per: Per,
}

impl DownLevel {
    fn new(config: &Config, level: &Level, input_channels: usize, initializer: &mut Initializer) -> Self {
        let strided = Conv2dConfig { stride: 2, padding: Padding::both(1), ..Conv2dConfig::same(input_channels, level.channels, 3) };
        let downsample = level.downsample.then(|| Conv2d::new(strided, initializer));
        let first = if level.downsample { level.channels } else { input_channels };
        let options = config.block_options();
        let block = |index: usize| ResidualBlock::new(&options, if index == 0 { first } else { level.channels }, level.channels, initializer);
        let blocks = (0..level.residual_block_count).map(block).collect();
        Self { downsample, blocks, attentions: config.attentions(level, initializer), per: config.per }
    }

    fn forward(&self, mut h: Tensor<4>, told: &Told, skips: &mut Vec<Tensor<4>>) -> Tensor<4> {
        if let Some(conv) = &self.downsample {
            h = conv.forward(h); // [batch, height / 2, width / 2, channels]
        }
        for (index, block) in self.blocks.iter().enumerate() {
            h = block.forward(h, &told.time);
            h = attend(&self.attentions, index, self.blocks.len(), h, told);
            if self.per == Per::Block || index + 1 == self.blocks.len() {
                skips.push(h.clone() * std::f32::consts::FRAC_1_SQRT_2);
            }
        }
        h
    }
}

/// The attention after block `index`, if there is one.
fn attend(attentions: &[Attention], index: usize, block_count: usize, h: Tensor<4>, told: &Told) -> Tensor<4> {
    let attention = if attentions.len() == block_count { attentions.get(index) } else { attentions.first().filter(|_| index + 1 == block_count) };
    match attention {
        Some(attention) => attention.forward(h, told.text.as_ref()),
        None => h,
    }
}

/// Residual blocks, then larger.
#[derive(Module, Debug)]
struct UpLevel {
    blocks: Vec<ResidualBlock>,
    /// as on the way down
    attentions: Vec<Attention>,
    /// gives the channels of the level above; after enlarging, where the level shrank the picture
    conv: Conv2d,
    #[module(skip)]
    per: Per,
    #[module(skip)]
    upsample: bool,
}

impl UpLevel {
    fn new(config: &Config, level: &Level, output_channels: usize, initializer: &mut Initializer) -> Self {
        let options = config.block_options();
        let block = |index: usize| {
            let skipped = if index == 0 || config.per == Per::Block { level.channels } else { 0 };
            ResidualBlock::new(&options, level.channels + skipped, level.channels, initializer)
        };
        let blocks = (0..level.residual_block_count).map(block).collect();
        Self {
            blocks,
            attentions: config.attentions(level, initializer),
            conv: Conv2d::new(Conv2dConfig::same(level.channels, output_channels, 3), initializer),
            per: config.per,
            upsample: level.downsample,
        }
    }

    fn forward(&self, mut h: Tensor<4>, told: &Told, skips: &mut Vec<Tensor<4>>) -> Tensor<4> {
        for (index, block) in self.blocks.iter().enumerate() {
            if index == 0 || self.per == Per::Block {
                let skipped = skips.pop().expect("as many blocks read a kept result as left one");
                h = ops::concatenate(h, skipped);
            }
            h = block.forward(h, &told.time);
            h = attend(&self.attentions, index, self.blocks.len(), h, told);
        }
        self.conv.forward(if self.upsample { ops::upsample_nearest(h) } else { h })
    }
}

/// The smallest size: block, attention, block.
#[derive(Module, Debug)]
struct Middle {
    block_1: ResidualBlock,
    attention: Option<Attention>,
    block_2: ResidualBlock,
}

impl Middle {
    fn new(config: &Config, level: &Level, initializer: &mut Initializer) -> Self {
        let (options, channels) = (config.block_options(), level.channels);
        Self {
            block_1: ResidualBlock::new(&options, channels, channels, initializer),
            attention: level.attends().then(|| config.attention(level, initializer)),
            block_2: ResidualBlock::new(&options, channels, channels, initializer),
        }
    }

    fn forward(&self, h: Tensor<4>, told: &Told) -> Tensor<4> {
        let h = self.block_1.forward(h, &told.time);
        let h = match &self.attention {
            Some(attention) => attention.forward(h, told.text.as_ref()),
            None => h,
        };
        self.block_2.forward(h, &told.time)
    }
}
