//! The levels of a U-Net: stages of residual block and attention, then a change of size.

use super::attention::{SelfAttention, Transformer, TransformerOptions};
use super::config::{Config, DownsamplingPadding};
use super::residual_block::{BlockOptions, ResidualBlock};
use crate::generator::conditions::Text;
use burn::module::Module;
use burn::tensor::Tensor;
use smalti_nn::Initializer;
use smalti_nn::layers::{Conv2d, Conv2dConfig};
use smalti_nn::ops::{self, Padding};

/// What every block of a network is told.
pub struct Told {
    /// [batch, time_channels]: time and class together, already through SiLU.
    pub time: Tensor<2>,
    pub text: Option<Text>,
}

/// A residual block with what follows it at its level: nothing, attention to itself, or a transformer.
#[derive(Module, Debug)]
pub struct Stage {
    block: ResidualBlock,
    attention: Option<SelfAttention>,
    transformer: Option<Transformer>,
}

impl Stage {
    /// A stage of `level`, with attention or a transformer if it `attends`.
    pub fn new(config: &Config, level: usize, attends: bool, input_channels: usize, initializer: &mut Initializer) -> Self {
        let (options, channels, head_count) = (config.block_options(), config.level_channels[level], config.head_counts[level]);
        let block = ResidualBlock::new(&options, input_channels, channels, initializer);
        let (mut attention, mut transformer) = (None, None);
        match &config.text {
            Some(text) if attends => {
                let options = TransformerOptions { group_count: config.group_count, text_channels: text.channels, block_count: text.block_count };
                transformer = Some(Transformer::new(&options, channels, head_count, initializer));
            }
            None if attends => attention = Some(SelfAttention::new(&options, channels, head_count, initializer)),
            _ => {}
        }
        Self { block, attention, transformer }
    }

    pub fn forward(&self, h: Tensor<4>, told: &Told) -> Tensor<4> {
        let mut h = self.block.forward(h, &told.time);
        if let Some(attention) = &self.attention {
            h = attention.forward(h);
        }
        if let Some((transformer, text)) = self.transformer.as_ref().zip(told.text.as_ref()) {
            h = transformer.forward(h, text);
        }
        h
    }
}

/// One size on the way down.
#[derive(Module, Debug)]
pub struct DownLevel {
    stages: Vec<Stage>,
    downsample: Option<Conv2d>,
}

impl DownLevel {
    pub fn new(config: &Config, level: usize, input_channels: usize, initializer: &mut Initializer) -> Self {
        let (channels, attends) = (config.level_channels[level], config.attention_levels.contains(&level));
        let stage = |index: usize| Stage::new(config, level, attends, if index == 0 { input_channels } else { channels }, initializer);
        let stages = (0..config.residual_block_count).map(stage).collect();
        let padding = match config.downsampling_padding {
            DownsamplingPadding::AllSides => Padding::both(1),
            DownsamplingPadding::After => Padding { before: 0, after: 1 },
        };
        let strided = Conv2dConfig { stride: 2, padding, ..Conv2dConfig::same(channels, channels, 3) };
        let last = level + 1 == config.level_channels.len();
        Self { stages, downsample: (!last).then(|| Conv2d::new(strided, initializer)) }
    }

    /// h [batch, height, width, input_channels] -> [batch, height / 2, width / 2, channels], the same size at the last level. Every result on the way is
    /// handed to `skip`.
    pub fn forward(&self, mut h: Tensor<4>, told: &Told, mut skip: impl FnMut(&Tensor<4>)) -> Tensor<4> {
        for stage in &self.stages {
            h = stage.forward(h, told);
            skip(&h);
        }
        if let Some(conv) = &self.downsample {
            h = conv.forward(h);
            skip(&h);
        }
        h
    }
}

/// One size on the way up.
#[derive(Module, Debug)]
pub struct UpLevel {
    stages: Vec<Stage>,
    upsample: Option<Conv2d>,
}

impl UpLevel {
    /// `skip_channels` holds the channels of what the way down left behind, the last first to be taken.
    pub fn new(config: &Config, level: usize, input_channels: usize, skip_channels: &mut Vec<usize>, initializer: &mut Initializer) -> Self {
        let (channels, attends) = (config.level_channels[level], config.attention_levels.contains(&level));
        let stage = |index: usize| {
            let skipped = skip_channels.pop().expect("as many stages go up as results were kept on the way down");
            Stage::new(config, level, attends, skipped + if index == 0 { input_channels } else { channels }, initializer)
        };
        let stages = (0..config.residual_block_count + 1).map(stage).collect();
        Self { stages, upsample: (level > 0).then(|| Conv2d::new(Conv2dConfig::same(channels, channels, 3), initializer)) }
    }

    /// h [batch, height, width, input_channels] -> [batch, 2 * height, 2 * width, channels], the same size at level 0.
    pub fn forward(&self, mut h: Tensor<4>, told: &Told, skips: &mut Vec<Tensor<4>>) -> Tensor<4> {
        for stage in &self.stages {
            let skipped = skips.pop().expect("as many stages go up as results were kept on the way down");
            h = stage.forward(ops::concatenate(h, skipped), told);
        }
        match &self.upsample {
            Some(conv) => conv.forward(ops::upsample_nearest(h)),
            None => h,
        }
    }
}

/// The smallest size: block, attention, block.
#[derive(Module, Debug)]
pub struct Middle {
    stage: Stage,
    block: ResidualBlock,
}

impl Middle {
    pub fn new(config: &Config, initializer: &mut Initializer) -> Self {
        let level = config.level_channels.len() - 1;
        let channels = config.level_channels[level];
        Self {
            stage: Stage::new(config, level, config.middle_attention, channels, initializer),
            block: ResidualBlock::new(&config.block_options(), channels, channels, initializer),
        }
    }

    pub fn forward(&self, h: Tensor<4>, told: &Told) -> Tensor<4> {
        self.block.forward(self.stage.forward(h, told), &told.time)
    }
}

impl Config {
    pub(crate) fn block_options(&self) -> BlockOptions {
        BlockOptions { time_channels: self.time.channels, time_use: self.time_use, group_count: self.group_count, norm_epsilon: self.norm_epsilon }
    }
}
