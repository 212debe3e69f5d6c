//! A number (the timestep, a noise level) as a vector: sinusoids of many frequencies, then two linear maps.
//!
//! Sources: Vaswani et al. 2017, section 3.5; Ho, Jain and Abbeel 2020, whose code divides by half - 1; OpenAI's and latent-diffusion's code divides by half
//! and puts cosines first.

use super::config::MOST_CHANNELS;
use crate::ConfigError;
use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};
use smalti_nn::Initializer;
use smalti_nn::layers::Linear;
use smalti_nn::ops;

/// The longest wavelength is 2 pi times this.
const LONGEST_PERIOD: f64 = 10_000.0;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Sines and cosines together; even.
    pub sinusoid_channels: usize,
    /// Channels of the vector that the network's blocks see, four times the first level's in the published networks.
    pub channels: usize,
    /// `frequency_shift`: frequency i of h is 10000^(-i / (h - shift)), from 1 down.
    pub frequency_shift: f64,
    /// Cosines before sines.
    pub cosine_first: bool,
}

/// How the time enters a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeUse {
    /// Added to the features before the second normalisation (DDPM, latent diffusion).
    Shift,
    /// Scales and shifts the features after the second normalisation: norm(h) (1 + scale) + shift (Nichol and Dhariwal 2021; Imagen).
    ScaleShift,
}

impl Config {
    /// DDPM's convention: sines first, the last frequency exactly 1 / 10000.
    pub fn ddpm(base_channels: usize) -> Self {
        Self { sinusoid_channels: base_channels, channels: 4 * base_channels, frequency_shift: 1.0, cosine_first: false }
    }

    /// The convention of OpenAI's networks and of latent diffusion: cosines first.
    pub fn latent_diffusion(base_channels: usize) -> Self {
        Self { frequency_shift: 0.0, cosine_first: true, ..Self::ddpm(base_channels) }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let Self { sinusoid_channels, channels, frequency_shift, .. } = *self;
        let even = sinusoid_channels.is_multiple_of(2) && (2..=MOST_CHANNELS).contains(&sinusoid_channels);
        ConfigError::check(even, "sinusoid_channels", format!("an even number up to {MOST_CHANNELS}"), sinusoid_channels)?;
        ConfigError::check((1..=4 * MOST_CHANNELS).contains(&channels), "channels", format!("1 to {}", 4 * MOST_CHANNELS), channels)?;
        let expected = format!("at least 0 and below {}, half of sinusoid_channels", sinusoid_channels / 2);
        ConfigError::check(frequency_shift >= 0.0 && frequency_shift < (sinusoid_channels / 2) as f64, "frequency_shift", expected, frequency_shift)
    }
}

/// x [batch] -> [batch, sinusoid_channels]: sines and cosines of x times each frequency.
pub fn sinusoids(x: Tensor<1>, config: &Config) -> Tensor<2> {
    let half = config.sinusoid_channels / 2;
    let frequency = |i: usize| LONGEST_PERIOD.powf(-(i as f64) / (half as f64 - config.frequency_shift)) as f32;
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let frequencies = Tensor::<2>::from_data(TensorData::new(frequencies, [1, half]), &x.device());
    let angles = x.unsqueeze_dim::<2>(1) * frequencies; // [batch, half]
    let (sine, cosine) = (angles.clone().sin(), angles.cos());
    Tensor::cat(if config.cosine_first { vec![cosine, sine] } else { vec![sine, cosine] }, 1)
}

/// output(silu(input(sinusoids(x)))).
#[derive(Module, Debug)]
pub struct TimeEmbedding {
    pub input: Linear,
    pub output: Linear,
    #[module(skip)]
    config: Config,
}

impl TimeEmbedding {
    pub fn new(config: Config, initializer: &mut Initializer) -> Self {
        Self {
            input: Linear::uniform(config.sinusoid_channels, config.channels, true, initializer),
            output: Linear::uniform(config.channels, config.channels, true, initializer),
            config,
        }
    }

    /// x [batch] -> [batch, channels].
    pub fn forward(&self, x: Tensor<1>) -> Tensor<2> {
        self.output.forward(ops::silu(self.input.forward(sinusoids(x, &self.config))))
    }
}
