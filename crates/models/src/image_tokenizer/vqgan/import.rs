//! Others' VQGAN checkpoints: names, layouts and configs of taming-transformers and latent-diffusion, and of diffusers' `VQModel`.
//!
//! A name that belongs to neither keeps its name, so that strict loading reports it. taming's `GumbelVQ`, the f8 model of ruDALL-E among them, differs in
//! how a code is chosen: `quantize.proj` scores the codes.

use super::Config;
use crate::ConfigError;
use crate::image_tokenizer::{convolutional, quantizer::vector};
use serde::Deserialize;
use smalti_nn::weights::{HostTensor, NamedTensors};

/// Normalisation groups of every network of taming and latent-diffusion; nothing in their checkpoints says so.
const TAMING_GROUP_COUNT: usize = 32;

/// What a Lightning checkpoint wraps around its weights; everything beside it is training state.
const STATE: &str = "state_dict.";

/// Parts of taming's and latent-diffusion's state dictionaries that encode and decode nothing: discriminator and perceptual network (`loss.`), the moving
/// average of the weights (`model_ema.`), and the colours in which segmentations are logged.
const TAMING_IGNORED: [&str; 3] = ["loss.", "model_ema.", "colorize"];

/// A checkpoint under our names.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    pub tensors: NamedTensors,
    /// Foreign names that were left out on purpose.
    pub ignored: Vec<String>,
}

/// A checkpoint of taming-transformers or latent-diffusion, with or without Lightning's wrapping.
pub fn taming(tensors: NamedTensors) -> Imported {
    let wrapped = tensors.keys().any(|name| name.starts_with(STATE));
    let (state, rest): (NamedTensors, NamedTensors) = tensors.into_iter().partition(|(name, _)| !wrapped || name.starts_with(STATE));
    let mut imported = Imported { tensors: NamedTensors::new(), ignored: rest.into_keys().collect() };
    let level = |name: &String| unwrapped(name).strip_prefix("decoder.up.")?.split('.').next()?.parse::<usize>().ok();
    let last_level = state.keys().filter_map(level).max().unwrap_or(0);
    for (name, tensor) in state {
        let inner = unwrapped(&name);
        if TAMING_IGNORED.iter().any(|ignored| inner.starts_with(ignored)) {
            imported.ignored.push(name);
        } else {
            imported.insert(taming_name(inner, last_level), inner.to_string(), tensor);
        }
    }
    imported
}

fn unwrapped(name: &str) -> &str {
    name.strip_prefix(STATE).unwrap_or(name)
}

/// A diffusers `VQModel` (`diffusion_pytorch_model.safetensors` or `.bin`).
pub fn diffusers(tensors: NamedTensors) -> Imported {
    let mut imported = Imported { tensors: NamedTensors::new(), ignored: Vec::new() };
    for (name, tensor) in tensors {
        imported.insert(diffusers_name(&name), name, tensor);
    }
    imported
}

impl Imported {
    fn insert(&mut self, renamed: Option<(String, Layout)>, name: String, tensor: HostTensor) {
        let (name, tensor) = match renamed {
            Some((ours, layout)) => (ours, layout.converted(tensor)),
            None => (name, tensor),
        };
        self.tensors.insert(name, tensor);
    }
}

/// How the foreign tensor lies in memory.
#[derive(Clone, Copy)]
enum Layout {
    /// as ours
    Same,
    /// [output, input, kernel, kernel] -> [kernel, kernel, input, output]
    Convolution,
    /// [output, input] or [output, input, 1, 1] -> [input, output]
    Pointwise,
}

impl Layout {
    /// A tensor with other axes than the layout has stays as it is; strict loading reports its shape.
    fn converted(self, tensor: HostTensor) -> HostTensor {
        match (self, tensor.shape.as_slice()) {
            (Self::Convolution, [_, _, _, _]) => tensor.permute(&[2, 3, 1, 0]),
            (Self::Pointwise, &[output, input] | &[output, input, 1, 1]) => tensor.reshape([output, input]).permute(&[1, 0]),
            _ => tensor,
        }
    }
}

/// What a layer is, which says how its weight is named and laid out.
#[derive(Clone, Copy)]
enum Layer {
    Norm,
    Convolution,
    Pointwise,
}

impl Layer {
    fn named(self, ours: &str, leaf: &str) -> Option<(String, Layout)> {
        let (leaf, layout) = match (self, leaf) {
            (_, "bias") => ("bias", Layout::Same),
            (Self::Norm, "weight") => ("scale", Layout::Same),
            (Self::Convolution, "weight") => ("weight", Layout::Convolution),
            (Self::Pointwise, "weight") => ("weight", Layout::Pointwise),
            _ => return None,
        };
        Some((format!("{ours}.{leaf}"), layout))
    }
}

fn taming_name(name: &str, last_level: usize) -> Option<(String, Layout)> {
    let parts: Vec<&str> = name.split('.').collect();
    let (layer, ours, leaf) = match parts.as_slice() {
        ["quantize", "embedding" | "embed", "weight"] => return Some(("quantizer.codebook".to_string(), Layout::Same)),
        ["quantize", "proj", leaf] => (Layer::Pointwise, "quantizer.scores".to_string(), leaf),
        ["quant_conv", leaf] => (Layer::Pointwise, "to_code".to_string(), leaf),
        ["post_quant_conv", leaf] => (Layer::Pointwise, "from_code".to_string(), leaf),
        [side @ ("encoder" | "decoder"), conv @ ("conv_in" | "conv_out"), leaf] => (Layer::Convolution, format!("{side}.{conv}"), leaf),
        [side @ ("encoder" | "decoder"), "norm_out", leaf] => (Layer::Norm, format!("{side}.norm_out"), leaf),
        [side @ ("encoder" | "decoder"), "mid", part @ ("block_1" | "block_2"), inner, leaf] => {
            let (layer, inner) = block_layer(inner)?;
            (layer, format!("{side}.middle.{part}.{inner}"), leaf)
        }
        [side @ ("encoder" | "decoder"), "mid", "attn_1", inner, leaf] => {
            let (layer, inner) = taming_attention_layer(inner)?;
            (layer, format!("{side}.middle.attention.{inner}"), leaf)
        }
        [side, direction, level, rest @ .., leaf] => {
            let level: usize = level.parse().ok()?;
            // taming counts both sides from the picture's size, our decoder from the latents' up.
            let level = match (*side, *direction) {
                ("encoder", "down") => level,
                ("decoder", "up") => last_level.checked_sub(level)?,
                _ => return None,
            };
            let (layer, ours) = match rest {
                ["block", index, inner] => block_layer(inner).map(|(layer, inner)| (layer, format!("blocks.{index}.{inner}")))?,
                ["attn", index, inner] => taming_attention_layer(inner).map(|(layer, inner)| (layer, format!("attentions.{index}.{inner}")))?,
                [sampling @ ("downsample" | "upsample"), "conv"] => (Layer::Convolution, sampling.to_string()),
                _ => return None,
            };
            (layer, format!("{side}.levels.{level}.{ours}"), leaf)
        }
        _ => return None,
    };
    layer.named(&ours, leaf)
}

fn diffusers_name(name: &str) -> Option<(String, Layout)> {
    let parts: Vec<&str> = name.split('.').collect();
    let (layer, ours, leaf) = match parts.as_slice() {
        ["quantize", "embedding", "weight"] => return Some(("quantizer.codebook".to_string(), Layout::Same)),
        ["quant_conv", leaf] => (Layer::Pointwise, "to_code".to_string(), leaf),
        ["post_quant_conv", leaf] => (Layer::Pointwise, "from_code".to_string(), leaf),
        [side @ ("encoder" | "decoder"), conv @ ("conv_in" | "conv_out"), leaf] => (Layer::Convolution, format!("{side}.{conv}"), leaf),
        [side @ ("encoder" | "decoder"), "conv_norm_out", leaf] => (Layer::Norm, format!("{side}.norm_out"), leaf),
        [side @ ("encoder" | "decoder"), "mid_block", "resnets", index @ ("0" | "1"), inner, leaf] => {
            let (layer, inner) = block_layer(inner)?;
            let part = if *index == "0" { "block_1" } else { "block_2" };
            (layer, format!("{side}.middle.{part}.{inner}"), leaf)
        }
        [side @ ("encoder" | "decoder"), "mid_block", "attentions", "0", inner @ .., leaf] => {
            let (layer, inner) = diffusers_attention_layer(inner)?;
            (layer, format!("{side}.middle.attention.{inner}"), leaf)
        }
        [side @ "encoder", "down_blocks", level, rest @ .., leaf] | [side @ "decoder", "up_blocks", level, rest @ .., leaf] => {
            let (layer, ours) = match rest {
                ["resnets", index, inner] => block_layer(inner).map(|(layer, inner)| (layer, format!("blocks.{index}.{inner}")))?,
                ["attentions", index, inner @ ..] => diffusers_attention_layer(inner).map(|(layer, inner)| (layer, format!("attentions.{index}.{inner}")))?,
                ["downsamplers", "0", "conv"] => (Layer::Convolution, "downsample".to_string()),
                ["upsamplers", "0", "conv"] => (Layer::Convolution, "upsample".to_string()),
                _ => return None,
            };
            (layer, format!("{side}.levels.{level}.{ours}"), leaf)
        }
        _ => return None,
    };
    layer.named(&ours, leaf)
}

/// The layers of a residual block: taming calls the 1x1 convolution on the shortcut `nin_shortcut`, diffusers `conv_shortcut`.
fn block_layer(name: &str) -> Option<(Layer, &'static str)> {
    Some(match name {
        "norm1" => (Layer::Norm, "norm_1"),
        "conv1" => (Layer::Convolution, "conv_1"),
        "norm2" => (Layer::Norm, "norm_2"),
        "conv2" => (Layer::Convolution, "conv_2"),
        "nin_shortcut" | "conv_shortcut" => (Layer::Pointwise, "shortcut"),
        _ => return None,
    })
}

fn taming_attention_layer(name: &str) -> Option<(Layer, &'static str)> {
    Some(match name {
        "norm" => (Layer::Norm, "norm"),
        "q" => (Layer::Pointwise, "query"),
        "k" => (Layer::Pointwise, "key"),
        "v" => (Layer::Pointwise, "value"),
        "proj_out" => (Layer::Pointwise, "output"),
        _ => return None,
    })
}

/// Today's names and those of diffusers before 0.18.
fn diffusers_attention_layer(name: &[&str]) -> Option<(Layer, &'static str)> {
    Some(match name {
        ["group_norm"] => (Layer::Norm, "norm"),
        ["to_q"] | ["query"] => (Layer::Pointwise, "query"),
        ["to_k"] | ["key"] => (Layer::Pointwise, "key"),
        ["to_v"] | ["value"] => (Layer::Pointwise, "value"),
        ["to_out", "0"] | ["proj_attn"] => (Layer::Pointwise, "output"),
        _ => return None,
    })
}

/// The sizes of a network of taming or latent-diffusion, from the shapes of its weights under our names ([`taming`]): their checkpoints hold no config.
pub fn taming_config(tensors: &NamedTensors) -> Result<Config, ConfigError> {
    let size = |name: &str, axis: usize| {
        let shape = tensors.get(name).map(|tensor| tensor.shape.as_slice());
        let found = || shape.map_or_else(|| "no such tensor".to_string(), |shape| format!("shape {shape:?}"));
        shape.and_then(|shape| shape.get(axis).copied()).ok_or_else(|| ConfigError::new(format!("tensor `{name}`"), "a VQGAN's", found()))
    };
    let count = |name: &dyn Fn(usize) -> String| (0..).take_while(|&index| tensors.contains_key(&name(index))).count();
    let base_channels = size("encoder.conv_in.weight", 3)?;
    let level_count = count(&|level| format!("encoder.levels.{level}.blocks.0.conv_2.bias"));
    let channel_multipliers = (0..level_count).map(|level| {
        let name = format!("encoder.levels.{level}.blocks.0.conv_2.bias");
        let channels = size(&name, 0)?;
        let divides = base_channels > 0 && channels.is_multiple_of(base_channels);
        ConfigError::check(divides, format!("tensor `{name}`"), format!("a multiple of {base_channels} channels"), channels)?;
        Ok(channels / base_channels)
    });
    let network = convolutional::Config {
        picture_channels: size("encoder.conv_in.weight", 2)?,
        base_channels,
        channel_multipliers: channel_multipliers.collect::<Result<_, ConfigError>>()?,
        residual_block_count: count(&|index| format!("encoder.levels.0.blocks.{index}.conv_2.bias")),
        attention_levels: (0..level_count).filter(|level| tensors.contains_key(&format!("encoder.levels.{level}.attentions.0.norm.scale"))).collect(),
        middle_attention: tensors.contains_key("encoder.middle.attention.norm.scale"),
        group_count: TAMING_GROUP_COUNT,
        latent_channels: size("encoder.conv_out.bias", 0)?,
    };
    let (code_count, code_channels) = (size("quantizer.codebook", 0)?, size("quantizer.codebook", 1)?);
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
    let file: DiffusersConfig = serde_json::from_str(json).map_err(|error| ConfigError::new("config.json", "the config of a VQModel", error))?;
    let check = |holds: bool, key: &str, expected: &str, found: String| ConfigError::check(holds, format!("config.json: {key}"), expected, found);
    check(file.class_name == "VQModel", "_class_name", "`VQModel`", format!("`{}`", file.class_name))?;
    check(file.act_fn == "silu", "act_fn", "`silu`", format!("`{}`", file.act_fn))?;
    check(file.norm_type == "group", "norm_type", "`group`", format!("`{}`", file.norm_type))?;
    check(!file.lookup_from_codebook, "lookup_from_codebook", "false", "true".to_string())?;
    check(file.out_channels == file.in_channels, "out_channels", "as many as in_channels", file.out_channels.to_string())?;
    let attention_levels = levels(&file.down_block_types, "DownEncoderBlock2D", "AttnDownEncoderBlock2D", "down_block_types")?;
    let mut upward = levels(&file.up_block_types, "UpDecoderBlock2D", "AttnUpDecoderBlock2D", "up_block_types")?;
    upward.iter_mut().for_each(|level| *level = file.up_block_types.len() - 1 - *level);
    upward.reverse();
    let level_count = file.block_out_channels.len();
    let same = file.down_block_types.len() == level_count && file.up_block_types.len() == level_count && upward == attention_levels;
    check(same, "up_block_types", "the mirror picture of down_block_types, one for each of block_out_channels", format!("{:?}", file.up_block_types))?;
    let base_channels = file.block_out_channels.first().copied().unwrap_or(0);
    let multiples = base_channels > 0 && file.block_out_channels.iter().all(|channels| channels.is_multiple_of(base_channels));
    check(multiples, "block_out_channels", "multiples of the first", format!("{:?}", file.block_out_channels))?;
    let network = convolutional::Config {
        picture_channels: file.in_channels,
        base_channels,
        channel_multipliers: file.block_out_channels.iter().map(|channels| channels / base_channels).collect(),
        residual_block_count: file.layers_per_block,
        attention_levels,
        middle_attention: file.mid_block_add_attention,
        group_count: file.norm_num_groups,
        latent_channels: file.latent_channels,
    };
    let config = Config { network, quantizer: vector::Config::learned(file.num_vq_embeddings, file.vq_embed_dim.unwrap_or(file.latent_channels)) };
    config.validate()?;
    Ok(config)
}

/// Which of `blocks` attend; every one must be `plain` or `attending`.
fn levels(blocks: &[String], plain: &str, attending: &str, key: &str) -> Result<Vec<usize>, ConfigError> {
    let unknown = blocks.iter().find(|block| *block != plain && *block != attending);
    if let Some(block) = unknown {
        return Err(ConfigError::new(format!("config.json: {key}"), format!("`{plain}` or `{attending}`"), format!("`{block}`")));
    }
    Ok((0..blocks.len()).filter(|&level| blocks[level] == attending).collect())
}

/// The keys that decide about shapes or formulas, with the defaults of diffusers' `VQModel`; others (sizes of training pictures, scale factor) do not.
#[derive(Deserialize)]
struct DiffusersConfig {
    #[serde(rename = "_class_name")]
    class_name: String,
    #[serde(default = "silu")]
    act_fn: String,
    block_out_channels: Vec<usize>,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    #[serde(default = "three")]
    in_channels: usize,
    #[serde(default = "three")]
    out_channels: usize,
    #[serde(default = "three")]
    latent_channels: usize,
    #[serde(default = "one")]
    layers_per_block: usize,
    #[serde(default)]
    lookup_from_codebook: bool,
    #[serde(default = "yes")]
    mid_block_add_attention: bool,
    #[serde(default = "thirty_two")]
    norm_num_groups: usize,
    #[serde(default = "group")]
    norm_type: String,
    num_vq_embeddings: usize,
    vq_embed_dim: Option<usize>,
}

fn silu() -> String {
    "silu".to_string()
}

fn group() -> String {
    "group".to_string()
}

fn yes() -> bool {
    true
}

fn one() -> usize {
    1
}

fn three() -> usize {
    3
}

fn thirty_two() -> usize {
    32
}
