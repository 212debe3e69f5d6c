//! The KL autoencoder: pictures to a grid of Gaussians and back, the first stage of latent diffusion.
//!
//! Paper: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models" (2112.10752), section 3.1, "KL-reg"; the Gaussian and its
//! divergence: Kingma and Welling 2013 (1312.6114), appendix B.
//!
//! Idea: an autoencoder whose encoder gives a mean and a variance for each latent; a very small penalty keeps latents from running away, far too small to
//! make them a standard normal sample. Generators therefore work on latents times a factor that is measured on data
//! ([`super::latent_scale::LatentScale`]) and stored beside the weights, never copied.
//!
//! Data flow: x [batch, height, width, 3] in [-1, 1] -> encoder -> [.., height / f, width / f, 2 * latent_channels] -> linear -> mean and log variance
//! [.., latent_channels] each -> latents = mean + deviation * noise -> linear -> decoder -> [batch, height, width, 3].
//!
//! Where we differ from the references: the 1x1 convolutions `quant_conv` and `post_quant_conv` are linear maps over the last axis, and a network has both
//! or neither; noise is an argument; the losses of the reconstruction are means over values, so the weight of the divergence is divided by their number
//! ([`loss::kl_weight`]).
//!
//! Verified against diffusers' `AutoencoderKL` with small random weights (`goldens/make.py`): moments, pictures, divergence and gradients agree to 1e-4;
//! names of latent-diffusion's checkpoints, in a first-stage file and in a whole Stable Diffusion file, against the same network renamed.

mod config;
mod cost;
pub mod import;
pub mod loss;
#[cfg(test)]
mod tests;

pub use config::Config;

use crate::ConfigError;
use crate::image_tokenizer::convolutional::{self, Decoder, Encoder, pointwise};
use crate::image_tokenizer::vqgan;
use burn::module::Module;
use burn::tensor::Tensor;
use smalti_nn::Initializer;
use smalti_nn::layers::Linear;

#[derive(Module, Debug)]
pub struct AutoencoderKl {
    encoder: Encoder,
    /// 2 * latent_channels -> 2 * latent_channels: means, then logarithms of variances
    to_moments: Option<Linear>,
    /// latent_channels -> latent_channels
    from_latents: Option<Linear>,
    decoder: Decoder,
    #[module(skip)]
    config: Config,
}

/// A Gaussian for each latent. Both tensors [batch, height / f, width / f, latent_channels].
#[derive(Clone, Debug)]
pub struct Moments {
    pub mean: Tensor<4>,
    /// Natural logarithm of the variance, within [`LOG_VARIANCE_RANGE`].
    pub log_variance: Tensor<4>,
}

/// Keeps the variance and its inverse far from the ends of f32 (latent-diffusion `modules/distributions/distributions.py`).
pub const LOG_VARIANCE_RANGE: [f32; 2] = [-30.0, 20.0];

impl Moments {
    /// mean + standard deviation * noise; noise is of the same shape, standard normal, the caller's. The mean itself is what noise of zeros gives.
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        assert!(noise.dims() == self.mean.dims(), "moments: noise {:?} does not fit latents {:?}", noise.dims(), self.mean.dims());
        self.mean.clone() + (self.log_variance.clone() * 0.5).exp() * noise
    }
}

impl AutoencoderKl {
    /// A network with first weights; an impossible config is an error that names the key.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        config.validate()?;
        let channels = config.network.latent_channels;
        // The encoder gives two numbers for each latent that the decoder takes.
        let encoder = convolutional::Config { latent_channels: 2 * channels, ..config.network.clone() };
        let mut projection = |channels| config.latent_projections.then(|| pointwise(channels, channels, initializer));
        let (to_moments, from_latents) = (projection(2 * channels), projection(channels));
        Ok(Self {
            encoder: Encoder::new(&encoder, initializer),
            to_moments,
            from_latents,
            decoder: Decoder::new(&config.network, initializer),
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// f: pixels of a side that become one place of the latents.
    pub fn downsampling_factor(&self) -> usize {
        self.config.network.downsampling_factor()
    }

    pub fn latent_channels(&self) -> usize {
        self.config.network.latent_channels
    }

    /// pictures [batch, height, width, 3] in [-1, 1], sides divisible by f -> the Gaussian of each latent, not scaled.
    pub fn encode(&self, pictures: Tensor<4>) -> Moments {
        let ([_, height, width, _], f) = (pictures.dims(), self.downsampling_factor());
        assert!(height.is_multiple_of(f) && width.is_multiple_of(f), "autoencoder_kl: picture {:?} has a side that {f} does not divide", pictures.dims());
        let h = self.encoder.forward(pictures);
        let h = match &self.to_moments {
            Some(linear) => linear.forward(h),
            None => h,
        };
        let channels = self.latent_channels(); // h is [batch, height / f, width / f, 2 * channels]
        let [least, greatest] = LOG_VARIANCE_RANGE;
        Moments { mean: h.clone().narrow(3, 0, channels), log_variance: h.narrow(3, channels, channels).clamp(least, greatest) }
    }

    /// latents [batch, height, width, latent_channels], not scaled -> pictures [batch, f * height, f * width, 3], about [-1, 1], not clamped.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        self.picture(self.features(latents))
    }

    /// The first part of [`AutoencoderKl::decode`]: latents -> input of the last convolution [batch, f * height, f * width, channels].
    pub fn features(&self, latents: Tensor<4>) -> Tensor<4> {
        let channels = self.latent_channels();
        assert!(latents.dims()[3] == channels, "autoencoder_kl: latents {:?}, expected {channels} channels", latents.dims());
        self.decoder.features(match &self.from_latents {
            Some(linear) => linear.forward(latents),
            None => latents,
        })
    }

    /// The last part of [`AutoencoderKl::decode`]: one convolution. The adaptive weight compares gradients here, see [`vqgan::loss`].
    pub fn picture(&self, features: Tensor<4>) -> Tensor<4> {
        self.decoder.picture(features)
    }

    /// Gradient of a loss for the decoder's last weight, as [`vqgan::Vqgan::last_weight_gradient`].
    pub fn last_weight_gradient(&self, features: Tensor<4>, picture_gradient: Tensor<4>) -> Tensor<4> {
        let weight = self.decoder.last_weight();
        let picture = self.decoder.picture(features.detach());
        let gradients = vqgan::loss::gradient_passed_on(picture, picture_gradient).backward();
        weight.grad(&gradients).unwrap_or_else(|| weight.inner().zeros_like())
    }
}
