//! VQGANs, KL autoencoders and tiny autoencoders.

use super::files::{Network, checkpoint_files, fitted, network, not_this, one_checkpoint, read, wrong};
use super::{ImportedPart, Source, provenance};
use crate::parts::ImageTokenizer;
use crate::{ImageTokenizerPart, PipelineError};
use burn::tensor::Device;
use smalti_models::ConfigError;
use smalti_models::image_tokenizer::autoencoder_kl::{self, AutoencoderKl};
use smalti_models::image_tokenizer::autoencoder_tiny::{self, AutoencoderTiny};
use smalti_models::image_tokenizer::vqgan::{self, Vqgan};
use smalti_nn::Initializer;
use smalti_nn::weights::NamedTensors;
use std::path::Path;

/// What diffusers' `AutoencoderKL` scales latents with where its config does not say: measured on the data of Stable Diffusion 1, whose files are older than
/// the key. Any newer file names its own.
const UNSAID_SCALE: f32 = 0.18215;
/// Tiny autoencoders speak the scaled latents of those they imitate.
const SCALED_ALREADY: f32 = 1.0;

pub(super) fn taming_vqgan(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let path = one_checkpoint(&source.path)?;
    let tensors = vqgan::import::taming(read(&path)?).tensors;
    let config = vqgan::import::taming_config(&tensors).map_err(|error| not_this(&path, error))?;
    vqgan(source, &path, &config, tensors, device)
}

pub(super) fn diffusers_vqgan(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let Network { path, config, tensors } = network(&source.path)?;
    let config = vqgan::import::diffusers_config(&config).map_err(|error| not_this(&path, error))?;
    vqgan(source, &path, &config, vqgan::import::diffusers(tensors).tensors, device)
}

fn vqgan(source: &Source, path: &Path, config: &vqgan::Config, tensors: NamedTensors, device: &Device) -> Result<ImportedPart, PipelineError> {
    let model = Vqgan::new(config, &mut Initializer::unread(device)).map_err(|error| not_this(path, error))?;
    Ok(part(source, path, ImageTokenizer::Vqgan(fitted(path, model, tensors, device)?), None))
}

pub(super) fn diffusers_autoencoder_kl(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let network = network(&source.path)?;
    let path = network.path.clone();
    let (model, scale) = autoencoder_kl(network, device)?;
    Ok(part(source, &path, model, Some(scale)))
}

pub(super) fn diffusers_autoencoder_tiny(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let network = network(&source.path)?;
    let path = network.path.clone();
    let (model, scale) = autoencoder_tiny(network, device)?;
    Ok(part(source, &path, model, Some(scale)))
}

pub(super) fn taesd(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let path = &source.path;
    let files = checkpoint_files(path)?;
    let [encoder, decoder] = ["encoder", "decoder"].map(|side| {
        let of_side: Vec<_> = files.iter().filter(|file| file.file_name().is_some_and(|name| name.to_string_lossy().contains(side))).collect();
        match of_side.as_slice() {
            [file] => read(file),
            found => Err(wrong(path, format!("expected a folder with one file of weights whose name says {side}, found {}", found.len()))),
        }
    });
    let tensors = autoencoder_tiny::import::published(encoder?, decoder?);
    let config = autoencoder_tiny::import::published_config(&tensors).map_err(|error| not_this(path, error))?;
    let model = AutoencoderTiny::new(&config, &mut Initializer::unread(device)).map_err(|error| not_this(path, error))?;
    Ok(part(source, path, ImageTokenizer::AutoencoderTiny(fitted(path, model, tensors, device)?), Some(SCALED_ALREADY)))
}

/// diffusers' `AutoencoderKL`, and what its latents are multiplied with.
pub(super) fn autoencoder_kl(network: Network, device: &Device) -> Result<(ImageTokenizer, f32), PipelineError> {
    let Network { path, config, tensors } = network;
    let found = autoencoder_kl::import::diffusers_config(&config).map_err(|error| not_this(&path, error))?;
    unshifted(&path, found.shift)?;
    let model = AutoencoderKl::new(&found.config, &mut Initializer::unread(device)).map_err(|error| not_this(&path, error))?;
    let model = fitted(&path, model, autoencoder_kl::import::diffusers(tensors).tensors, device)?;
    Ok((ImageTokenizer::AutoencoderKl(model), found.scale_factor.unwrap_or(UNSAID_SCALE)))
}

/// diffusers' `AutoencoderTiny`, and what its latents are multiplied with.
pub(super) fn autoencoder_tiny(network: Network, device: &Device) -> Result<(ImageTokenizer, f32), PipelineError> {
    let Network { path, config, tensors } = network;
    let found = autoencoder_tiny::import::diffusers_config(&config).map_err(|error| not_this(&path, error))?;
    unshifted(&path, found.shift)?;
    let model = AutoencoderTiny::new(&found.config, &mut Initializer::unread(device)).map_err(|error| not_this(&path, error))?;
    let model = fitted(&path, model, autoencoder_tiny::import::diffusers(tensors), device)?;
    Ok((ImageTokenizer::AutoencoderTiny(model), found.scale_factor))
}

/// Latents are scaled here and never shifted.
fn unshifted(path: &Path, shift: f32) -> Result<(), PipelineError> {
    let expected = "0 or none: latents that are shifted before they are scaled (Stable Diffusion 3, FLUX) are not known here";
    ConfigError::check(shift == 0.0, "config.json: shift_factor", expected, shift).map_err(|error| wrong(path, error.to_string()))
}

fn part(source: &Source, path: &Path, model: ImageTokenizer, latent_scale: Option<f32>) -> ImportedPart {
    ImportedPart::ImageTokenizer(Box::new(ImageTokenizerPart { model, image_size: source.image_size, latent_scale, provenance: provenance(path) }))
}
