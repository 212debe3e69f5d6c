//! VQGAN: pictures to a grid of codes and back, trained so that the eye forgives what the codes leave out.
//!
//! Paper: Esser, Rombach and Ommer 2021, "Taming Transformers for High-Resolution Image Synthesis" (2012.09841); the latent-diffusion variants: Rombach
//! et al. 2022 (2112.10752), "VQ-reg".
//!
//! Idea: an autoencoder whose latents are entries of a small learned codebook, judged by pixel distance, a perceptual distance and a patch discriminator.
//!
//! Data flow: x [batch, height, width, 3] in [-1, 1] -> encoder -> [batch, height / f, width / f, latent_channels] -> linear -> latents
//! [.., code_channels] -> nearest codes -> image tokens [batch, height * width / f^2] and codes -> linear -> decoder -> [batch, height, width, 3].
//!
//! Where we differ from the reference: the commitment coefficient is on the commitment term (taming's default has it on the other); the 1x1 convolutions
//! are linear maps over the last axis; attention is chosen by level, so that the same config serves every picture size; codes may be unit-length and
//! moving averages. Losses are in [`loss`].
//!
//! Verified against taming's own modules and diffusers' `VQModel` with small random weights (`goldens/make.py`): latents, tokens, pictures, losses and
//! gradients agree to 1e-4.

mod config;
mod cost;
pub mod import;
pub mod loss;
#[cfg(test)]
mod tests;

pub use config::Config;

use crate::ConfigError;
use crate::image_tokenizer::convolutional::{Decoder, Encoder, pointwise};
use crate::image_tokenizer::quantizer::vector::{Quantized, VectorQuantizer};
use burn::module::Module;
use burn::tensor::{Int, Tensor};
use rand_chacha::ChaCha12Rng;
use smalti_nn::Initializer;
use smalti_nn::layers::Linear;

#[derive(Module, Debug)]
pub struct Vqgan {
    encoder: Encoder,
    /// latent_channels -> code_channels
    to_code: Linear,
    quantizer: VectorQuantizer,
    /// code_channels -> latent_channels
    from_code: Linear,
    decoder: Decoder,
    #[module(skip)]
    config: Config,
}

impl Vqgan {
    /// A network with first weights; an impossible config is an error that names the key.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        config.validate()?;
        let (latent_channels, code_channels) = (config.network.latent_channels, config.quantizer.code_channels);
        Ok(Self {
            encoder: Encoder::new(&config.network, initializer),
            to_code: pointwise(latent_channels, code_channels, initializer),
            quantizer: VectorQuantizer::new(&config.quantizer, initializer),
            from_code: pointwise(code_channels, latent_channels, initializer),
            decoder: Decoder::new(&config.network, initializer),
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// f: pixels of a side that become one image token.
    pub fn downsampling_factor(&self) -> usize {
        self.config.network.downsampling_factor()
    }

    pub fn code_count(&self) -> usize {
        self.config.quantizer.code_count
    }

    /// x [batch, height, width, 3] in [-1, 1], sides divisible by f -> latents [batch, height / f, width / f, code_channels], not yet quantized.
    pub fn encode(&self, x: Tensor<4>) -> Tensor<4> {
        let ([_, height, width, _], f) = (x.dims(), self.downsampling_factor());
        assert!(height.is_multiple_of(f) && width.is_multiple_of(f), "vqgan: picture {:?} has a side that {f} does not divide", x.dims());
        self.to_code.forward(self.encoder.forward(x))
    }

    /// latents [batch, height, width, code_channels] -> codes, image tokens and the two losses of the codebook.
    pub fn quantize(&self, latents: Tensor<4>) -> Quantized {
        self.quantizer.forward(latents)
    }

    /// x [batch, height, width, 3] in [-1, 1] -> image tokens [batch, height * width / f^2], row after row.
    pub fn tokens(&self, x: Tensor<4>) -> Tensor<2, Int> {
        self.quantizer.tokens(self.encode(x))
    }

    /// Quantized latents [batch, height, width, code_channels] -> pictures [batch, f * height, f * width, 3], about [-1, 1], not clamped.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        self.picture(self.features(latents))
    }

    /// image_tokens [batch, rows * columns], each below the number of codes, grid [rows, columns] -> [batch, f * rows, f * columns, 3].
    pub fn decode_tokens(&self, image_tokens: Tensor<2, Int>, grid: [usize; 2]) -> Tensor<4> {
        let [batch, count] = image_tokens.dims();
        let [rows, columns] = grid;
        assert!(count == rows * columns, "vqgan: {count} image tokens do not fill a grid of {rows} by {columns}");
        let codes = self.quantizer.lookup(image_tokens);
        self.decode(codes.reshape([batch, rows, columns, self.config.quantizer.code_channels]))
    }

    /// The first part of [`Vqgan::decode`]: quantized latents -> input of the last convolution [batch, f * height, f * width, channels].
    pub fn features(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decoder.features(self.from_code.forward(latents))
    }

    /// The last part of [`Vqgan::decode`]: one convolution. The adaptive weight compares gradients here, see [`loss`].
    pub fn picture(&self, features: Tensor<4>) -> Tensor<4> {
        self.decoder.picture(features)
    }

    /// Gradient of a loss for the decoder's last weight [3, 3, channels, 3], from its gradient for the picture [batch, height, width, 3] and the
    /// `features` the picture was made of. One small convolution; nothing else of the graph is touched or used up.
    pub fn last_weight_gradient(&self, features: Tensor<4>, picture_gradient: Tensor<4>) -> Tensor<4> {
        let weight = self.decoder.last_weight();
        let picture = self.decoder.picture(features.detach());
        let gradients = loss::gradient_passed_on(picture, picture_gradient).backward();
        weight.grad(&gradients).unwrap_or_else(|| weight.inner().zeros_like())
    }

    /// The codebook's step after the optimiser's, see [`VectorQuantizer::update_codebook`].
    pub fn update_codebook(self, latents: Tensor<4>, tokens: Tensor<2, Int>, rng: &mut ChaCha12Rng) -> Self {
        Self { quantizer: self.quantizer.update_codebook(latents, tokens, rng), ..self }
    }

    /// The codebook's start on data, see [`VectorQuantizer::start_codebook`].
    pub fn start_codebook(self, latents: Tensor<4>, round_count: usize, rng: &mut ChaCha12Rng) -> Self {
        Self { quantizer: self.quantizer.start_codebook(latents, round_count, rng), ..self }
    }
}
