//! Others' tiny autoencoders: the author's pair of files (`taesd_encoder.pth`, `taesd_decoder.pth` and their kin), and diffusers' `AutoencoderTiny`.
//!
//! Both number the layers of one long sequence, activations and upsampling included. What stands where is read off the names: a number with `conv.` is a
//! block, any other a convolution; the first convolution of a side is its input, the last its output, and each between them changes the level. A name that
//! fits nothing keeps its name, so that strict loading reports it.

use super::Config;
use crate::ConfigError;
use serde::Deserialize;
use smalti_nn::weights::{HostTensor, NamedTensors};
use std::collections::BTreeMap;

/// The author's two files.
pub fn published(encoder: NamedTensors, decoder: NamedTensors) -> NamedTensors {
    let mut tensors = renamed(Side::Encoder, encoder);
    tensors.extend(renamed(Side::Decoder, decoder));
    tensors
}

/// A diffusers `AutoencoderTiny` (`diffusion_pytorch_model.safetensors`).
pub fn diffusers(tensors: NamedTensors) -> NamedTensors {
    let (mut encoder, mut decoder, mut unknown) = (NamedTensors::new(), NamedTensors::new(), NamedTensors::new());
    for (name, tensor) in tensors {
        if let Some(inner) = name.strip_prefix("encoder.layers.") {
            encoder.insert(inner.to_string(), tensor);
        } else if let Some(inner) = name.strip_prefix("decoder.layers.") {
            decoder.insert(inner.to_string(), tensor);
        } else {
            unknown.insert(name, tensor);
        }
    }
    unknown.extend(published(encoder, decoder));
    unknown
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Encoder,
    Decoder,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Encoder => "encoder",
            Self::Decoder => "decoder",
        }
    }

    /// The convolution that changes the level.
    fn sampling(self) -> &'static str {
        match self {
            Self::Encoder => "downsample",
            Self::Decoder => "upsample",
        }
    }
}

fn renamed(side: Side, tensors: NamedTensors) -> NamedTensors {
    let layers = layers(side, tensors.keys());
    let side = side.name();
    let ours = |name: &str| {
        let (index, rest) = name.split_once('.')?;
        let layer = layers.get(&index.parse().ok()?)?;
        match (layer.contains(".blocks."), rest) {
            (true, _) => Some(format!("{side}.{layer}.{}", block_part(rest)?)),
            (false, "weight" | "bias") => Some(format!("{side}.{layer}.{rest}")),
            (false, _) => None,
        }
    };
    let rename = |(name, tensor): (String, HostTensor)| match ours(&name) {
        Some(ours) => (ours, converted(tensor)),
        None => (format!("{side}.layers.{name}"), tensor),
    };
    tensors.into_iter().map(rename).collect()
}

fn block_part(name: &str) -> Option<&'static str> {
    Some(match name {
        "conv.0.weight" => "conv_1.weight",
        "conv.0.bias" => "conv_1.bias",
        "conv.2.weight" => "conv_2.weight",
        "conv.2.bias" => "conv_2.bias",
        "conv.4.weight" => "conv_3.weight",
        "conv.4.bias" => "conv_3.bias",
        "pool.0.weight" => "detour.input.weight",
        "pool.1.weight" => "detour.norm.scale",
        "pool.1.bias" => "detour.norm.bias",
        "pool.3.weight" => "detour.output.weight",
        _ => return None,
    })
}

/// [output, input, kernel, kernel] -> [kernel, kernel, input, output]; vectors stay.
fn converted(tensor: HostTensor) -> HostTensor {
    if tensor.shape.len() == 4 { tensor.permute(&[2, 3, 1, 0]) } else { tensor }
}

/// Our name for each number of the sequence.
fn layers<'a>(side: Side, names: impl Iterator<Item = &'a String>) -> BTreeMap<usize, String> {
    let mut is_block = BTreeMap::<usize, bool>::new();
    for name in names {
        if let Some((index, rest)) = name.split_once('.').and_then(|(index, rest)| Some((index.parse().ok()?, rest))) {
            *is_block.entry(index).or_default() |= rest.starts_with("conv.") || rest.starts_with("pool.");
        }
    }
    let convolutions: Vec<usize> = is_block.iter().filter(|(_, is_block)| !**is_block).map(|(&index, _)| index).collect();
    let (first, last) = (convolutions.first().copied(), convolutions.last().copied());
    let (mut level, mut block) = (0, 0);
    let mut layers = BTreeMap::new();
    for (index, is_block) in is_block {
        let name = if is_block {
            block += 1;
            format!("levels.{level}.blocks.{}", block - 1)
        } else if Some(index) == first {
            "conv_in".to_string()
        } else if Some(index) == last {
            "conv_out".to_string()
        } else {
            // Down before the blocks of the next level, up after those of this one.
            let (before, after) = (level, level + 1);
            (level, block) = (after, 0);
            format!("levels.{}.{}", if side == Side::Encoder { after } else { before }, side.sampling())
        };
        layers.insert(index, name);
    }
    layers
}

/// The sizes of a network, from its weights under our names ([`published`]): the author's files hold no config.
pub fn published_config(tensors: &NamedTensors) -> Result<Config, ConfigError> {
    let size = |name: &str, axis: usize| {
        let shape = tensors.get(name).map(|tensor| tensor.shape.as_slice());
        let found = || shape.map_or_else(|| "no such tensor".to_string(), |shape| format!("shape {shape:?}"));
        shape.and_then(|shape| shape.get(axis).copied()).ok_or_else(|| ConfigError::new(format!("tensor `{name}`"), "a tiny autoencoder's", found()))
    };
    let count = |name: &dyn Fn(usize) -> String| (0..).take_while(|&index| tensors.keys().any(|tensor| tensor.starts_with(&name(index)))).count();
    let block_counts = |side: &str| -> Vec<usize> {
        let levels = count(&|level| format!("{side}.levels.{level}."));
        (0..levels).map(|level| count(&|block| format!("{side}.levels.{level}.blocks.{block}."))).collect()
    };
    let config = Config {
        picture_channels: size("encoder.conv_in.weight", 2)?,
        channels: size("encoder.conv_in.weight", 3)?,
        latent_channels: size("encoder.conv_out.weight", 3)?,
        encoder_block_counts: block_counts("encoder"),
        decoder_block_counts: block_counts("decoder"),
        detours: tensors.keys().any(|name| name.contains(".detour.")),
    };
    config.validate()?;
    Ok(config)
}

/// What a diffusers `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct DiffusersConfig {
    pub config: Config,
    /// What a generator multiplies these latents with, after subtracting `shift`: 1 and 0 in all published ones, whose latents are scaled already.
    pub scale_factor: f32,
    pub shift: f32,
}

/// The text of a `config.json` of a diffusers `AutoencoderTiny`.
pub fn diffusers_config(json: &str) -> Result<DiffusersConfig, ConfigError> {
    let file: ConfigFile = serde_json::from_str(json).map_err(|error| ConfigError::new("config.json", "the config of an AutoencoderTiny", error))?;
    let check = |holds: bool, key: &str, expected: &str, found: String| ConfigError::check(holds, format!("config.json: {key}"), expected, found);
    check(file.class_name == "AutoencoderTiny", "_class_name", "`AutoencoderTiny`", format!("`{}`", file.class_name))?;
    check(file.act_fn == "relu", "act_fn", "`relu`", format!("`{}`", file.act_fn))?;
    check(file.upsample_fn == "nearest", "upsample_fn", "`nearest`", format!("`{}`", file.upsample_fn))?;
    check(file.upsampling_scaling_factor == 2, "upsampling_scaling_factor", "2", file.upsampling_scaling_factor.to_string())?;
    check(file.out_channels == file.in_channels, "out_channels", "as many as in_channels", file.out_channels.to_string())?;
    let channels = file.encoder_block_out_channels.first().copied().unwrap_or(0);
    for (key, counts) in [("encoder_block_out_channels", &file.encoder_block_out_channels), ("decoder_block_out_channels", &file.decoder_block_out_channels)] {
        let expected = format!("{channels} on every one of the {} levels", file.num_encoder_blocks.len());
        let same = counts.len() == file.num_encoder_blocks.len() && counts.iter().all(|&count| count == channels);
        check(same, key, &expected, format!("{counts:?}"))?;
    }
    check(file.scaling_factor.is_finite() && file.scaling_factor > 0.0, "scaling_factor", "a positive number", file.scaling_factor.to_string())?;
    check(file.shift_factor.is_finite(), "shift_factor", "a number", file.shift_factor.to_string())?;
    let config = Config {
        picture_channels: file.in_channels,
        channels,
        latent_channels: file.latent_channels,
        encoder_block_counts: file.num_encoder_blocks,
        decoder_block_counts: file.num_decoder_blocks,
        detours: false,
    };
    config.validate()?;
    Ok(DiffusersConfig { config, scale_factor: file.scaling_factor, shift: file.shift_factor })
}

/// With the defaults of diffusers' `AutoencoderTiny`.
#[derive(Deserialize)]
#[serde(default)]
struct ConfigFile {
    #[serde(rename = "_class_name")]
    class_name: String,
    in_channels: usize,
    out_channels: usize,
    encoder_block_out_channels: Vec<usize>,
    decoder_block_out_channels: Vec<usize>,
    act_fn: String,
    upsample_fn: String,
    latent_channels: usize,
    upsampling_scaling_factor: usize,
    num_encoder_blocks: Vec<usize>,
    num_decoder_blocks: Vec<usize>,
    scaling_factor: f32,
    shift_factor: f32,
}

impl Default for ConfigFile {
    fn default() -> Self {
        Self {
            class_name: String::new(),
            in_channels: 3,
            out_channels: 3,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            act_fn: "relu".to_string(),
            upsample_fn: "nearest".to_string(),
            latent_channels: 4,
            upsampling_scaling_factor: 2,
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            scaling_factor: 1.0,
            shift_factor: 0.0,
        }
    }
}
