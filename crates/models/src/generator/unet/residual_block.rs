//! The residual block of diffusion networks.

use super::time_embedding::TimeUse;
use burn::module::Module;
use burn::tensor::Tensor;
use smalti_nn::Initializer;
use smalti_nn::layers::{Conv2d, Conv2dConfig, GroupNorm, Linear};
use smalti_nn::ops::{self, Activation};

/// What all residual blocks of a network have in common.
#[derive(Clone, Copy, Debug)]
pub struct BlockOptions {
    pub time_channels: usize,
    pub time_use: TimeUse,
    pub group_count: usize,
    pub norm_epsilon: f64,
}

impl BlockOptions {
    pub fn norm(&self, channels: usize, initializer: &mut Initializer) -> GroupNorm {
        GroupNorm::new(self.group_count, channels, self.norm_epsilon as f32, initializer)
    }
}

/// shortcut(x) + conv_2(silu(norm_2(conv_1(silu(norm_1(x)))))), told the time between conv_1 and conv_2.
#[derive(Module, Debug)]
pub struct ResidualBlock {
    norm_1: GroupNorm,
    conv_1: Conv2d,
    time: Linear,
    norm_2: GroupNorm,
    conv_2: Conv2d,
    shortcut: Option<Linear>,
    #[module(skip)]
    time_use: TimeUse,
}

impl ResidualBlock {
    /// The block begins as its shortcut: conv_2 is zero (Ho, Jain and Abbeel 2020, code; Dhariwal and Nichol 2021, code).
    pub fn new(options: &BlockOptions, input_channels: usize, channels: usize, initializer: &mut Initializer) -> Self {
        let time_outputs = match options.time_use {
            TimeUse::Shift => channels,
            TimeUse::ScaleShift => 2 * channels,
        };
        Self {
            norm_1: options.norm(input_channels, initializer),
            conv_1: Conv2d::new(Conv2dConfig::same(input_channels, channels, 3), initializer),
            time: Linear::uniform(options.time_channels, time_outputs, true, initializer),
            norm_2: options.norm(channels, initializer),
            conv_2: Conv2d::zero(Conv2dConfig::same(channels, channels, 3), initializer),
            shortcut: (input_channels != channels).then(|| Linear::uniform(input_channels, channels, true, initializer)),
            time_use: options.time_use,
        }
    }

    /// x [batch, height, width, input_channels], time [batch, time_channels], already through SiLU -> [batch, height, width, channels].
    pub fn forward(&self, x: Tensor<4>, time: &Tensor<2>) -> Tensor<4> {
        let h = self.norm_1.forward(x.clone(), Activation::Silu);
        let time = self.time.forward(time.clone());
        let h = match self.time_use {
            TimeUse::Shift => self.norm_2.forward(self.conv_1.forward_shifted(h, time), Activation::Silu),
            TimeUse::ScaleShift => {
                let [batch, outputs] = time.dims();
                let (time, channels) = (time.reshape([batch, 1, 1, outputs]), outputs / 2);
                let (scale, shift) = (time.clone().narrow(3, 0, channels), time.narrow(3, channels, channels));
                ops::silu(self.norm_2.forward(self.conv_1.forward(h), Activation::Identity) * (scale + 1.0) + shift)
            }
        };
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x),
            None => x,
        };
        self.conv_2.forward_onto(residual, h)
    }
}
