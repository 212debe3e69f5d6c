//! Row D: one picture by latent diffusion, as `diffusers` runs Stable Diffusion: 20 guided DDIM steps and the decoder.
//!
//! The networks are Stable Diffusion 1's at three tenths of its width (81.5 million and 12.4 million parameters), so that a row takes seconds on a plain CPU.
//! That both sides then compute the same is proved elsewhere: the import tests draw the pictures that diffusers draws.

use super::networks::{SEED, stored, weight_bytes};
use super::operations::values;
use super::row::Prepared;
use burn::tensor::{Device, Tensor, TensorData};
use smalti_generation::diffusion::{Level, Parameterization, Plan, Process, Sampler, Schedule, ScheduleConfig, guidance, sample};
use smalti_generation::random::picture_rng;
use smalti_models::generator::unet::{self, Conditions, TextConfig, Unet, time_embedding};
use smalti_models::image_tokenizer::autoencoder_kl::{self, AutoencoderKl};
use smalti_nn::Initializer;
use std::convert::Infallible;

/// Of a side of the latents, and of the picture.
const SIZE: usize = 32;
const PICTURE_SIZE: usize = 8 * SIZE;
const CHANNELS: usize = 4;
const STEPS: usize = 20;
const TOKENS: usize = 77;
const TEXT_CHANNELS: usize = 768;
const GUIDANCE_SCALE: f64 = 7.5;
const LATENT_SCALE: f32 = 0.18215;

fn network() -> unet::Config {
    unet::Config {
        level_channels: vec![96, 192, 384, 384],
        text: Some(TextConfig { channels: TEXT_CHANNELS, block_count: 1 }),
        time: time_embedding::Config::latent_diffusion(96),
        ..unet::Config::stable_diffusion_1()
    }
}

fn autoencoder() -> autoencoder_kl::Config {
    let mut config = autoencoder_kl::Config::stable_diffusion();
    config.network.base_channels = 64;
    config
}

pub fn picture() -> Prepared {
    let (network_config, autoencoder_config) = (network(), autoencoder());
    let device = Device::flex();
    let mut initializer = Initializer::new(SEED, &device);
    let network = stored(Unet::new(&network_config, &mut initializer).expect("the config is a valid one"));
    let autoencoder = stored(AutoencoderKl::new(&autoencoder_config, &mut initializer).expect("the config is a valid one"));
    let text: Tensor<3> = values([2, TOKENS, TEXT_CHANNELS], &device); // with the caption, without
    let schedule = Schedule::new(ScheduleConfig::latent_diffusion()).expect("published");
    let plan = Plan::new(Process::VariancePreserving(schedule), Parameterization::Noise, Sampler::Ddim { eta: 0.0 }, STEPS);
    let noise: Tensor<4> = values([1, SIZE, SIZE, CHANNELS], &device);
    let noise: Vec<f32> = noise.into_data().try_to_vec().expect("floats");
    let cost = network_config.cost(SIZE * SIZE, TOKENS);
    let decoding = autoencoder_config.decoder_cost(PICTURE_SIZE * PICTURE_SIZE);
    let body = Box::new(move || {
        let denoise = |sample: &[f32], level: &Level| -> Result<Vec<f32>, Infallible> {
            let both = TensorData::new([sample, sample].concat(), [2, SIZE, SIZE, CHANNELS]);
            let timesteps = TensorData::new(vec![level.timestep as f32; 2], [2]);
            let output = network.forward(Tensor::from_data(both, &device), Tensor::from_data(timesteps, &device), Conditions::text(text.clone(), None));
            let output: Vec<f32> = output.into_data().try_to_vec().expect("floats");
            let (conditional, unconditional) = output.split_at(sample.len());
            Ok(guidance::classifier_free(conditional, unconditional, GUIDANCE_SCALE))
        };
        let latents = sample(&plan, plan.start_from_noise(&noise), &mut [picture_rng(SEED, 0)], None, denoise, |_| ()).expect("the plan is a valid one");
        let latents: Tensor<4> = Tensor::from_data(TensorData::new(latents, [1, SIZE, SIZE, CHANNELS]), &device);
        autoencoder.decode(latents * (1.0 / LATENT_SCALE));
    });
    let multiply_adds = (2 * STEPS) as f64 * cost.multiply_adds as f64 + decoding.multiply_adds as f64;
    let bytes = weight_bytes() * (STEPS as f64 * cost.parameters as f64 + decoding.parameters as f64);
    Prepared { body, units: 1, flops: 2.0 * multiply_adds, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many as the networks of diffusers have that `benchsuite/torch_side.py` builds.
    #[test]
    fn both_sides_have_networks_of_the_same_size() {
        let decoder = autoencoder().decoder_cost(PICTURE_SIZE * PICTURE_SIZE).parameters;
        assert_eq!((network().cost(SIZE * SIZE, TOKENS).parameters, decoder), (81_480_484, 12_387_479));
    }
}
