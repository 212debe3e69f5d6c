//! The convolutions of VGG16 (Simonyan and Zisserman 2015, 1409.1556, configuration D), cut into the five stages whose outputs LPIPS compares.

use crate::ConfigError;
use burn::module::Module;
use burn::tensor::{Tensor, module, ops::MaxPoolOptions};
use serde::{Deserialize, Serialize};
use smalti_nn::Initializer;
use smalti_nn::layers::{Conv2d, Conv2dConfig};
use smalti_nn::ops;

/// Convolutions of each stage.
pub(super) const CONVOLUTION_COUNTS: [usize; 5] = [2, 2, 3, 3, 3];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels of each stage.
    pub widths: [usize; 5],
}

impl Config {
    /// As published.
    pub fn vgg16() -> Self {
        Self { widths: [64, 128, 256, 512, 512] }
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        let fits = self.widths.iter().all(|width| (1..=8192).contains(width));
        ConfigError::check(fits, "widths", "five numbers from 1 to 8192", format!("{:?}", self.widths))
    }
}

#[derive(Module, Debug)]
pub struct Vgg16 {
    stages: Vec<Stage>,
}

#[derive(Module, Debug)]
struct Stage {
    convolutions: Vec<Conv2d>,
}

impl Vgg16 {
    /// `config` must be valid.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Self {
        let mut channels = 3;
        let stages = config.widths.iter().zip(CONVOLUTION_COUNTS).map(|(&width, count)| {
            let convolutions = (0..count).map(|_| Conv2d::new(Conv2dConfig::same(std::mem::replace(&mut channels, width), width, 3), initializer));
            Stage { convolutions: convolutions.collect() }
        });
        Self { stages: stages.collect() }
    }

    /// x [batch, height, width, 3], normalised as the weights expect, sides at least 16 -> the output of each stage after its last ReLU:
    /// [batch, height / 2^i, width / 2^i, widths[i]], rounded down.
    pub fn forward(&self, x: Tensor<4>) -> Vec<Tensor<4>> {
        let mut h = x;
        let mut features = Vec::with_capacity(self.stages.len());
        for (index, stage) in self.stages.iter().enumerate() {
            if index > 0 {
                h = halve(h);
            }
            for convolution in &stage.convolutions {
                h = ops::relu(convolution.forward(h));
            }
            features.push(h.clone());
        }
        features
    }
}

/// The largest of each square of four; an odd last row or column is left out. x [batch, height, width, channels].
fn halve(x: Tensor<4>) -> Tensor<4> {
    module::max_pool2d(x.permute([0, 3, 1, 2]), MaxPoolOptions::new([2, 2])).permute([0, 2, 3, 1])
}
