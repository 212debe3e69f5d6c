//! A classifier of noisy pictures: half a U-Net, whose gradient pulls a sampler towards a class.
//!
//! Paper: Dhariwal and Nichol 2021 (2105.05233), section 4 and appendix H; the pooling is CLIP's (Radford et al. 2021).
//!
//! Idea: to steer diffusion by p(class | x_t), a classifier must know pictures at every noise level and be told the level, like the denoising network.
//!
//! Data flow: noisy [batch, height, width, input_channels] -> conv 3x3 -> the way down and the middle of the U-Net, told the time -> group normalisation,
//! SiLU -> mean or attention pooling [batch, channels] -> linear -> logits [batch, class_count].
//!
//! Where we differ from the reference (OpenAI `guided-diffusion`, `EncoderUNetModel`): downsampling is the U-Net's strided convolution, where theirs is a
//! residual block around average pooling; the pooling's keys and values are separate maps; the mean's logits come from a random linear map, not a zero one.
//!
//! Verified against diffusers' own blocks, put together in PyTorch (`goldens/make.py`): logits, loss, gradients of weights and of the input agree to 1e-4.

mod config;
mod pooling;
#[cfg(test)]
mod tests;

pub use config::{Config, Pooling};

use crate::ConfigError;
use crate::generator::unet::level::{DownLevel, Middle, Told};
use crate::generator::unet::time_embedding::TimeEmbedding;
use burn::module::Module;
use burn::tensor::{Int, Tensor};
use pooling::AttentionPooling;
use smalti_nn::Initializer;
use smalti_nn::layers::{Conv2d, Conv2dConfig, GroupNorm, Linear};
use smalti_nn::ops::{self, Activation};

#[derive(Module, Debug)]
pub struct NoisyClassifier {
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    /// from the input's size down
    down: Vec<DownLevel>,
    middle: Middle,
    norm_out: GroupNorm,
    pooling: Option<AttentionPooling>,
    head: Linear,
    #[module(skip)]
    config: Config,
}

impl NoisyClassifier {
    /// A network with first weights; an impossible config is an error that names the key.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        config.validate()?;
        let network = config.network();
        let mut channels = network.level_channels[0];
        let conv_in = Conv2d::new(Conv2dConfig::same(network.input_channels, channels, 3), initializer);
        let time_embedding = TimeEmbedding::new(network.time, initializer);
        let mut down = Vec::with_capacity(network.level_channels.len());
        for (level, &level_channels) in network.level_channels.iter().enumerate() {
            down.push(DownLevel::new(&network, level, channels, initializer));
            channels = level_channels;
        }
        let middle = Middle::new(&network, initializer);
        let head_count = network.head_counts[network.head_counts.len() - 1];
        Ok(Self {
            conv_in,
            time_embedding,
            down,
            middle,
            norm_out: network.block_options().norm(channels, initializer),
            pooling: match config.pooling {
                Pooling::Mean => None,
                Pooling::Attention { side } => Some(AttentionPooling::new(side, channels, head_count, initializer)),
            },
            head: Linear::uniform(channels, config.class_count, true, initializer),
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// noisy [batch, height, width, input_channels], sides divisible by 2^(levels - 1) (with attention pooling, of the one size it has); timesteps [batch],
    /// as the denoising network gets them -> logits [batch, class_count].
    pub fn forward(&self, noisy: Tensor<4>, timesteps: Tensor<1>) -> Tensor<2> {
        let ([batch, height, width, channels], divisor) = (noisy.dims(), self.config.side_divisor());
        assert!(
            channels == self.config.input_channels && height.is_multiple_of(divisor) && width.is_multiple_of(divisor),
            "noisy classifier: input {:?} does not fit {} channels and sides divisible by {divisor}",
            noisy.dims(),
            self.config.input_channels
        );
        assert!(timesteps.dims() == [batch], "noisy classifier: timesteps {:?} do not fit input {:?}", timesteps.dims(), noisy.dims());
        let told = Told { time: ops::silu(self.time_embedding.forward(timesteps)), text: None };
        let mut h = self.conv_in.forward(noisy);
        for level in &self.down {
            h = level.forward(h, &told, |_| {});
        }
        let h = self.norm_out.forward(self.middle.forward(h, &told), Activation::Silu);
        let [_, rows, columns, channels] = h.dims();
        let places = h.reshape([batch, rows * columns, channels]);
        self.head.forward(match &self.pooling {
            Some(pooling) => pooling.forward(places),
            None => places.mean_dim(1).squeeze_dim::<2>(1),
        })
    }

    /// The gradient of log p(class | x_t) for x_t, [batch, height, width, input_channels], not tracked: what classifier guidance adds, times its scale and
    /// the variance (Dhariwal and Nichol 2021, algorithms 1 and 2). Classes [batch], each below class_count. Rows do not depend on each other.
    ///
    /// The network may be on any device; its weights get no gradients.
    pub fn log_probability_gradient(&self, noisy: Tensor<4>, timesteps: Tensor<1>, class: Tensor<1, Int>) -> Tensor<4> {
        let classifier = self.clone().train().no_grad();
        let leaf = noisy.without_autodiff().autodiff().require_grad();
        let logits = classifier.forward(leaf.clone(), timesteps.without_autodiff().autodiff());
        // The sum over the rows: the gradient of a row is then that of its own term.
        let log_probability = -ops::cross_entropy(logits, class.without_autodiff().autodiff(), 0.0).sum();
        leaf.grad(&log_probability.backward()).expect("the logits depend on the picture")
    }
}

/// [`cross_entropy`] with a weight for each row, [batch]: the sum of what each row adds, divided by the batch.
pub fn weighted_cross_entropy(logits: Tensor<2>, class: Tensor<1, Int>, weight: Tensor<1>) -> Tensor<1> {
    (ops::cross_entropy(logits, class, 0.0) * weight).mean()
}

/// Mean cross-entropy of the batch in nats, [1]: logits [batch, class_count], classes [batch]. A network that knows nothing scores ln(class_count).
pub fn cross_entropy(logits: Tensor<2>, class: Tensor<1, Int>) -> Tensor<1> {
    ops::cross_entropy(logits, class, 0.0).mean()
}
