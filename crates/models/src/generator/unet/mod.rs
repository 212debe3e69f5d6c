//! The U-Net of DDPM and of latent diffusion: what is in a noisy picture, at every size at once.
//!
//! Papers: Ho, Jain and Abbeel 2020 (2006.11239), appendix B; with text: Rombach et al. 2022 (2112.10752), section 3.3; scale-shift and learned variance:
//! Nichol and Dhariwal 2021 (2102.09672).
//!
//! Idea: residual blocks that are told the time go down to a small picture and up again; what each left behind on the way down is set beside what comes up.
//! Attention at the smaller sizes sees the whole picture and, in latent diffusion, the text.
//!
//! Data flow: noisy [batch, height, width, input_channels] -> conv 3x3 -> for each level: residual blocks (with attention at chosen levels), strided
//! convolution except at the last -> middle (block, attention, block) -> the levels again, last to first, each block reading its input beside one kept
//! result, one block more a level, nearest-neighbour upsampling and convolution between them -> group normalisation, SiLU, conv 3x3 -> [batch, height,
//! width, output_channels], twice the channels with learned variance. Timesteps [batch] -> sinusoids -> two linear maps -> every residual block.
//!
//! Where we differ from the reference (`diffusers`, `UNet2DModel` and `UNet2DConditionModel`): 1x1 convolutions are linear maps over the last axis, so that
//! "convolution" and "linear projection" transformers are one network; heads are counted for each level; there is no dropout. A network made for training
//! begins with zero output, zero residual branches and zero attention, as DDPM's own code has it; diffusers' begins at random.
//!
//! Verified against diffusers with small random weights in all three layouts (`goldens/make.py`): outputs, losses and gradients agree to 1e-4.

mod attention;
pub(crate) mod config;
mod cost;
pub mod import;
pub(crate) mod level;
pub mod loss;
pub(crate) mod residual_block;
#[cfg(test)]
mod tests;
pub mod time_embedding;

pub use crate::generator::conditions::{Conditions, LowResolution, Text};
pub use config::{Config, DownsamplingPadding, TextConfig};
pub use time_embedding::TimeUse;

use crate::ConfigError;
use burn::module::Module;
use burn::tensor::Tensor;
use level::{DownLevel, Middle, Told, UpLevel};
use smalti_nn::Initializer;
use smalti_nn::layers::{Conv2d, Conv2dConfig, Embedding, GroupNorm};
use smalti_nn::ops::{self, Activation};
use time_embedding::TimeEmbedding;

#[derive(Module, Debug)]
pub struct Unet {
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    class_embedding: Option<Embedding>,
    /// from the input's size down
    down: Vec<DownLevel>,
    middle: Middle,
    /// from the smallest size up
    up: Vec<UpLevel>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    #[module(skip)]
    config: Config,
}

impl Unet {
    /// A network with first weights, whose output is zero; an impossible config is an error that names the key.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        config.validate()?;
        let mut channels = config.level_channels[0];
        let conv_in = Conv2d::new(Conv2dConfig::same(config.input_channels, channels, 3), initializer);
        let time_embedding = TimeEmbedding::new(config.time, initializer);
        let class_embedding = config.class_count.map(|count| Embedding::normal(count, config.time.channels, 1.0, initializer));
        let level_count = config.level_channels.len();
        let mut skip_channels = vec![channels];
        let mut down = Vec::with_capacity(level_count);
        for (level, &level_channels) in config.level_channels.iter().enumerate() {
            down.push(DownLevel::new(config, level, channels, initializer));
            channels = level_channels;
            let downsampled = usize::from(level + 1 < level_count);
            skip_channels.extend(std::iter::repeat_n(channels, config.residual_block_count + downsampled));
        }
        let middle = Middle::new(config, initializer);
        let mut up = Vec::with_capacity(level_count);
        for level in (0..level_count).rev() {
            up.push(UpLevel::new(config, level, channels, &mut skip_channels, initializer));
            channels = config.level_channels[level];
        }
        Ok(Self {
            conv_in,
            time_embedding,
            class_embedding,
            down,
            middle,
            up,
            norm_out: config.block_options().norm(channels, initializer),
            conv_out: Conv2d::zero(Conv2dConfig::same(channels, config.predicted_channels(), 3), initializer),
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// noisy [batch, height, width, input_channels], sides divisible by 2^(levels - 1); timesteps [batch], the network's own time input (0 to 999 for the
    /// published networks; fractions are allowed) -> [batch, height, width, output_channels], with learned variance twice the channels, the prediction first.
    ///
    /// `conditions` are those that the config names, no more and no fewer. A row whose text has no visible token at all is not defined here: show the
    /// network the empty caption instead.
    pub fn forward(&self, noisy: Tensor<4>, timesteps: Tensor<1>, conditions: Conditions) -> Tensor<4> {
        let ([batch, height, width, channels], divisor) = (noisy.dims(), self.config.side_divisor());
        assert!(
            channels == self.config.input_channels && height.is_multiple_of(divisor) && width.is_multiple_of(divisor),
            "unet: input {:?} does not fit {} channels and sides divisible by {divisor}",
            noisy.dims(),
            self.config.input_channels
        );
        assert!(timesteps.dims() == [batch], "unet: timesteps {:?} do not fit input {:?}", timesteps.dims(), noisy.dims());
        conditions.check("unet", batch, self.config.text.as_ref().map(|text| text.channels), self.config.class_count);
        assert!(conditions.low_resolution.is_none(), "unet: a smaller picture is for the Efficient U-Net; here it is concatenated to the input");
        let mut time = self.time_embedding.forward(timesteps);
        if let Some((embedding, class)) = self.class_embedding.as_ref().zip(conditions.class) {
            time = time + embedding.forward(class.reshape([batch, 1])).squeeze_dim::<2>(1);
        }
        let told = Told { time: ops::silu(time), text: conditions.text };
        let mut h = self.conv_in.forward(noisy);
        let mut skips = vec![h.clone()];
        for level in &self.down {
            h = level.forward(h, &told, |h| skips.push(h.clone()));
        }
        h = self.middle.forward(h, &told);
        for level in &self.up {
            h = level.forward(h, &told, &mut skips);
        }
        self.conv_out.forward(self.norm_out.forward(h, Activation::Silu))
    }
}
