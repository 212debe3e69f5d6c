//! Others' KL autoencoders: names, layouts and configs of diffusers' `AutoencoderKL`, and of latent-diffusion and Stable Diffusion's original checkpoints.
//!
//! Encoder and decoder are renamed by [`convolutional::import`]; a name that belongs to neither keeps its name, so that strict loading reports it.

pub use crate::image_tokenizer::convolutional::import::Imported;

use super::Config;
use crate::ConfigError;
use crate::image_tokenizer::convolutional::import as convolutional;
use convolutional::{Layer, Layout, unwrapped};
use serde::Deserialize;
use smalti_nn::weights::NamedTensors;

/// Before each name of the autoencoder in a checkpoint of a whole latent diffusion model.
const FIRST_STAGE: &str = "first_stage_model.";

/// A diffusers `AutoencoderKL` (`vae/diffusion_pytorch_model.safetensors` or `.bin`), with the attention's names of today and of diffusers before 0.18.
pub fn diffusers(tensors: NamedTensors) -> Imported {
    let mut imported = Imported::empty();
    for (name, tensor) in tensors {
        imported.insert(projection_name(&name).or_else(|| convolutional::diffusers_name(&name)), name, tensor);
    }
    imported
}

/// A checkpoint of latent-diffusion: an autoencoder's own, or a whole model's (`sd-v1-4.ckpt`), whose other networks are ignored; with or without
/// Lightning's wrapping.
pub fn latent_diffusion(tensors: NamedTensors) -> Imported {
    let (state, ignored) = convolutional::taming_state(tensors);
    let mut imported = Imported { tensors: NamedTensors::new(), ignored };
    let whole = state.keys().any(|name| unwrapped(name).starts_with(FIRST_STAGE));
    let mut own = NamedTensors::new();
    for (name, tensor) in state {
        let inner = unwrapped(&name);
        match inner.strip_prefix(FIRST_STAGE) {
            // The loss of the first stage travels in some whole models.
            Some(inner) if !inner.starts_with("loss.") => drop(own.insert(inner.to_string(), tensor)),
            None if !whole => drop(own.insert(inner.to_string(), tensor)),
            _ => imported.ignored.push(name),
        }
    }
    let last_level = convolutional::taming_last_level(own.keys().map(String::as_str));
    for (name, tensor) in own {
        imported.insert(projection_name(&name).or_else(|| convolutional::taming_name(&name, last_level)), name, tensor);
    }
    imported
}

fn projection_name(name: &str) -> Option<(String, Layout)> {
    match *name.split('.').collect::<Vec<_>>() {
        ["quant_conv", leaf] => Layer::Pointwise.named("to_moments", leaf),
        ["post_quant_conv", leaf] => Layer::Pointwise.named("from_latents", leaf),
        _ => None,
    }
}

/// The sizes of a network of latent-diffusion, from the shapes of its weights under our names ([`latent_diffusion`]): its checkpoints hold no config.
pub fn latent_diffusion_config(tensors: &NamedTensors) -> Result<Config, ConfigError> {
    const OWNER: &str = "a KL autoencoder's";
    let mut network = convolutional::taming_network(tensors, OWNER)?;
    network.latent_channels = convolutional::size(tensors, "decoder.conv_in.weight", 2, OWNER)?;
    let config = Config { network, latent_projections: tensors.contains_key("from_latents.weight") };
    config.validate()?;
    Ok(config)
}

/// What a diffusers `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct DiffusersConfig {
    pub config: Config,
    /// What the generator of the same folder multiplies latents with, after subtracting `shift`: a property of these weights and their data. Nothing in the
    /// files of before diffusers 0.12, which meant 0.18215.
    pub scale_factor: Option<f32>,
    pub shift: f32,
}

/// The text of a `config.json` of a diffusers `AutoencoderKL`.
pub fn diffusers_config(json: &str) -> Result<DiffusersConfig, ConfigError> {
    const CLASS: &str = "AutoencoderKL";
    let network = convolutional::diffusers_network(json, CLASS)?;
    let file: DiffusersFile = convolutional::diffusers_json(json, CLASS)?;
    let check = |holds: bool, key: &str, expected: &str, found: String| ConfigError::check(holds, format!("config.json: {key}"), expected, found);
    let both = file.use_post_quant_conv == file.use_quant_conv;
    check(both, "use_post_quant_conv", "the same as use_quant_conv", file.use_post_quant_conv.to_string())?;
    let plain = file.latents_mean.is_none() && file.latents_std.is_none();
    check(plain, "latents_mean", "one scaling_factor, no latents_mean and latents_std for each channel", "both".to_string())?;
    if let Some(scale) = file.scaling_factor {
        check(scale.is_finite() && scale > 0.0, "scaling_factor", "a positive number", scale.to_string())?;
    }
    let shift = file.shift_factor.unwrap_or(0.0);
    check(shift.is_finite(), "shift_factor", "a number", shift.to_string())?;
    let config = Config { network, latent_projections: file.use_quant_conv };
    config.validate()?;
    Ok(DiffusersConfig { config, scale_factor: file.scaling_factor, shift })
}

/// The keys beside those of the two networks that decide about shapes or formulas; others (sizes of training pictures, upcasting) do not.
#[derive(Deserialize)]
struct DiffusersFile {
    scaling_factor: Option<f32>,
    shift_factor: Option<f32>,
    latents_mean: Option<serde_json::Value>,
    latents_std: Option<serde_json::Value>,
    #[serde(default = "yes")]
    use_quant_conv: bool,
    #[serde(default = "yes")]
    use_post_quant_conv: bool,
}

fn yes() -> bool {
    true
}
