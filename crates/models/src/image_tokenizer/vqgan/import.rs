//! Others' VQGAN checkpoints: names, layouts and configs of taming-transformers and latent-diffusion, and of diffusers' `VQModel`.
//!
//! A name that belongs to neither keeps its name, so that strict loading reports it. taming's `GumbelVQ`, the f8 model of ruDALL-E among them, differs in
//! how a code is chosen: `quantize.proj` scores the codes. Encoder and decoder are renamed by [`convolutional::import`].

pub use crate::image_tokenizer::convolutional::import::Imported;

use super::Config;
use crate::ConfigError;
use crate::image_tokenizer::convolutional::import as convolutional;
use crate::image_tokenizer::quantizer::vector;
use convolutional::{Layer, Layout, unwrapped};
use serde::Deserialize;
use smalti_nn::weights::NamedTensors;

/// A checkpoint of taming-transformers or latent-diffusion, with or without Lightning's wrapping.
pub fn taming(tensors: NamedTensors) -> Imported {
    let (state, ignored) = convolutional::taming_state(tensors);
    let mut imported = Imported { tensors: NamedTensors::new(), ignored };
    let last_level = convolutional::taming_last_level(state.keys().map(|name| unwrapped(name)));
    for (name, tensor) in state {
        let inner = unwrapped(&name);
        imported.insert(codebook_name(inner).or_else(|| convolutional::taming_name(inner, last_level)), inner.to_string(), tensor);
    }
    imported
}

/// A diffusers `VQModel` (`diffusion_pytorch_model.safetensors` or `.bin`).
pub fn diffusers(tensors: NamedTensors) -> Imported {
    let mut imported = Imported::empty();
    for (name, tensor) in tensors {
        imported.insert(codebook_name(&name).or_else(|| convolutional::diffusers_name(&name)), name, tensor);
    }
    imported
}

/// The codebook (taming's moving-average quantizer says `embed`) and the maps to and from it, named alike everywhere.
fn codebook_name(name: &str) -> Option<(String, Layout)> {
    match *name.split('.').collect::<Vec<_>>() {
        ["quantize", "embedding" | "embed", "weight"] => Some(("quantizer.codebook".to_string(), Layout::Same)),
        ["quantize", "proj", leaf] => Layer::Pointwise.named("quantizer.scores", leaf),
        ["quant_conv", leaf] => Layer::Pointwise.named("to_code", leaf),
        ["post_quant_conv", leaf] => Layer::Pointwise.named("from_code", leaf),
        _ => None,
    }
}

/// The sizes of a network of taming or latent-diffusion, from the shapes of its weights under our names ([`taming`]): their checkpoints hold no config.
pub fn taming_config(tensors: &NamedTensors) -> Result<Config, ConfigError> {
    const OWNER: &str = "a VQGAN's";
    let network = convolutional::taming_network(tensors, OWNER)?;
    let size = |axis: usize| convolutional::size(tensors, "quantizer.codebook", axis, OWNER);
    let (code_count, code_channels) = (size(0)?, size(1)?);
    let quantizer = match tensors.contains_key("quantizer.scores.weight") {
        true => vector::Config::scored(code_count, code_channels),
        false => vector::Config::learned(code_count, code_channels),
    };
    let config = Config { network, quantizer };
    config.validate()?;
    Ok(config)
}

/// The text of a `config.json` of a diffusers `VQModel`.
pub fn diffusers_config(json: &str) -> Result<Config, ConfigError> {
    const CLASS: &str = "VQModel";
    let network = convolutional::diffusers_network(json, CLASS)?;
    let file: DiffusersConfig = convolutional::diffusers_json(json, CLASS)?;
    let check = |holds: bool, key: &str, expected: &str, found: String| ConfigError::check(holds, format!("config.json: {key}"), expected, found);
    check(file.norm_type == "group", "norm_type", "`group`", format!("`{}`", file.norm_type))?;
    check(!file.lookup_from_codebook, "lookup_from_codebook", "false", "true".to_string())?;
    let code_channels = file.vq_embed_dim.unwrap_or(network.latent_channels);
    let config = Config { network, quantizer: vector::Config::learned(file.num_vq_embeddings, code_channels) };
    config.validate()?;
    Ok(config)
}

/// The keys beside those of the two networks that decide about shapes or formulas; others (sizes of training pictures, scale factor) do not.
#[derive(Deserialize)]
struct DiffusersConfig {
    #[serde(default)]
    lookup_from_codebook: bool,
    #[serde(default = "group")]
    norm_type: String,
    num_vq_embeddings: usize,
    vq_embed_dim: Option<usize>,
}

fn group() -> String {
    "group".to_string()
}
