//! PatchGAN discriminator: one judgement for each patch of a picture.
//!
//! Paper: Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks" (1611.07004), section 3.2.2; reference: taming
//! `NLayerDiscriminator`.
//!
//! Data flow: x [batch, height, width, 3] in [-1, 1] -> 4x4 convolutions, the first `layer_count` of stride 2, each but the first normalised, leaky ReLU
//! -> logits [batch, rows, columns, 1], greater for real. With three layers a logit sees 70x70 pixels.
//!
//! Where we differ: group normalisation (the default) or none instead of batch normalisation, because batch statistics make the judgement of one picture
//! depend on the others and accumulated parts differ from the whole batch. Running statistics are handed back, not changed in passing.
//!
//! Verified against taming's class with the same weights, in training and evaluation mode (`goldens/make.py`).

use super::batch_norm::{BatchNorm, BatchStatistics};
use crate::ConfigError;
use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use smalti_nn::Initializer;
use smalti_nn::layers::{Conv2d, Conv2dConfig, GroupNorm};
use smalti_nn::ops::{self, Activation, Padding};

/// Slope of the leaky ReLU below zero (Radford, Metz and Chintala 2016).
const SLOPE: f32 = 0.2;

/// Standard deviation of the first weights (Radford, Metz and Chintala 2016).
const WEIGHT_DEVIATION: f32 = 0.02;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    None,
    /// As published; the batch's statistics in training.
    Batch,
    Group {
        group_count: usize,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub picture_channels: usize,
    /// Channels of the first convolution; they double with each to at most eight times as many.
    pub base_channels: usize,
    /// Convolutions of stride 2.
    pub layer_count: usize,
    pub normalisation: Normalisation,
}

impl Config {
    /// taming and pix2pix: 64 channels, 3 layers, batch normalisation.
    pub fn published() -> Self {
        Self { picture_channels: 3, base_channels: 64, layer_count: 3, normalisation: Normalisation::Batch }
    }

    /// For 64x64 pictures: a smaller field of view (34x34 pixels) and group normalisation. Ours, not published.
    pub fn pictograms() -> Self {
        Self { base_channels: 32, layer_count: 2, normalisation: Normalisation::Group { group_count: 8 }, ..Self::published() }
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check((1..=8192).contains(&self.picture_channels), "picture_channels", "1 to 8192", self.picture_channels)?;
        ConfigError::check((1..=1024).contains(&self.base_channels), "base_channels", "1 to 1024", self.base_channels)?;
        ConfigError::check((1..=8).contains(&self.layer_count), "layer_count", "1 to 8", self.layer_count)?;
        if let Normalisation::Group { group_count } = self.normalisation {
            let divides = group_count > 0 && (2 * self.base_channels).is_multiple_of(group_count);
            ConfigError::check(divides, "normalisation.group.group_count", format!("a divisor of {}", 2 * self.base_channels), group_count)?;
        }
        Ok(())
    }

    /// The smallest side of a picture that leaves a logit.
    pub fn smallest_side(&self) -> usize {
        // Backwards through the layers: one logit; two convolutions of stride 1 need one more pixel each; stride 2 needs 2 * n.
        (1 + 1 + 1) << self.layer_count
    }

    fn channels(&self, layer: usize) -> usize {
        self.base_channels * (1 << layer).min(8)
    }
}

/// What the discriminator says in training.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// [batch, rows, columns, 1]
    pub logits: Tensor<4>,
    /// For [`PatchDiscriminator::update_statistics`]; empty without batch normalisation.
    pub statistics: Vec<BatchStatistics>,
}

#[derive(Module, Debug)]
pub struct PatchDiscriminator {
    layers: Vec<Layer>,
    conv_out: Conv2d,
}

#[derive(Module, Debug)]
struct Layer {
    conv: Conv2d,
    batch_norm: Option<BatchNorm>,
    group_norm: Option<GroupNorm>,
}

impl PatchDiscriminator {
    /// A network with first weights; an impossible config is an error that names the key.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        config.validate()?;
        let first = convolution(config.picture_channels, config.channels(0), 2, true, initializer);
        let mut layers = vec![Layer { conv: first, batch_norm: None, group_norm: None }];
        for layer in 1..=config.layer_count {
            let channels = config.channels(layer);
            let stride = if layer < config.layer_count { 2 } else { 1 };
            // Batch normalisation takes a bias away again.
            let bias = config.normalisation != Normalisation::Batch;
            let conv = convolution(config.channels(layer - 1), channels, stride, bias, initializer);
            let (batch_norm, group_norm) = match config.normalisation {
                Normalisation::None => (None, None),
                Normalisation::Batch => (Some(BatchNorm::new(channels, initializer)), None),
                Normalisation::Group { group_count } => (None, Some(GroupNorm::new(group_count, channels, 1e-6, initializer))),
            };
            layers.push(Layer { conv, batch_norm, group_norm });
        }
        let conv_out = convolution(config.channels(config.layer_count), 1, 1, true, initializer);
        Ok(Self { layers, conv_out })
    }

    /// In evaluation: x [batch, height, width, picture_channels] in [-1, 1] -> logits [batch, rows, columns, 1].
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = self.layers.iter().fold(x, |h, layer| {
            let h = layer.conv.forward(h);
            let h = match &layer.batch_norm {
                Some(norm) => norm.forward(h),
                None => layer.grouped(h),
            };
            ops::leaky_relu(h, SLOPE)
        });
        self.conv_out.forward(h)
    }

    /// In training: batch normalisation by the batch's own statistics. The same as [`PatchDiscriminator::forward`] with other normalisations.
    pub fn forward_training(&self, x: Tensor<4>) -> Judgement {
        let mut statistics = Vec::new();
        let mut h = x;
        for layer in &self.layers {
            h = layer.conv.forward(h);
            h = match &layer.batch_norm {
                Some(norm) => {
                    let (h, batch) = norm.forward_training(h);
                    statistics.push(batch);
                    h
                }
                None => layer.grouped(h),
            };
            h = ops::leaky_relu(h, SLOPE);
        }
        Judgement { logits: self.conv_out.forward(h), statistics }
    }

    /// Takes the batch statistics of a judgement into the running ones that evaluation uses.
    pub fn update_statistics(mut self, statistics: &[BatchStatistics]) -> Self {
        let mut statistics = statistics.iter();
        for layer in &mut self.layers {
            layer.batch_norm = layer.batch_norm.take().map(|norm| match statistics.next() {
                Some(batch) => norm.update(batch),
                None => norm,
            });
        }
        self
    }
}

impl Layer {
    fn grouped(&self, h: Tensor<4>) -> Tensor<4> {
        match &self.group_norm {
            Some(norm) => norm.forward(h, Activation::Identity),
            None => h,
        }
    }
}

fn convolution(input_channels: usize, output_channels: usize, stride: usize, bias: bool, initializer: &mut Initializer) -> Conv2d {
    let config = Conv2dConfig { input_channels, output_channels, kernel_size: 4, stride, padding: Padding::both(1), bias };
    let mut conv = Conv2d::new(config, initializer);
    conv.weight = initializer.normal([4, 4, input_channels, output_channels], WEIGHT_DEVIATION);
    conv
}

#[cfg(test)]
mod tests;
