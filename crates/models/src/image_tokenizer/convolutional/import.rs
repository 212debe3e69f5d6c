//! The convolutional encoder and decoder in others' checkpoints: names, layouts and sizes of taming-transformers and latent-diffusion, and of diffusers.
//!
//! What surrounds the two networks (a codebook, the maps to and from latents) is renamed by the model they are part of.

use super::Config;
use crate::ConfigError;
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

impl Imported {
    /// Nothing yet.
    pub(crate) fn empty() -> Self {
        Self { tensors: NamedTensors::new(), ignored: Vec::new() }
    }

    /// A tensor under its new name and layout; without one it keeps its own name, so that strict loading reports it.
    pub(crate) fn insert(&mut self, renamed: Option<(String, Layout)>, name: String, tensor: HostTensor) {
        let (name, tensor) = match renamed {
            Some((ours, layout)) => (ours, layout.converted(tensor)),
            None => (name, tensor),
        };
        self.tensors.insert(name, tensor);
    }
}

/// How the foreign tensor lies in memory.
#[derive(Clone, Copy)]
pub(crate) enum Layout {
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
pub(crate) enum Layer {
    Norm,
    Convolution,
    Pointwise,
}

impl Layer {
    pub(crate) fn named(self, ours: &str, leaf: &str) -> Option<(String, Layout)> {
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

/// A layer of the two networks as taming-transformers and latent-diffusion name it; `last_level` is that of the decoder ([`taming_last_level`]).
pub(crate) fn taming_name(name: &str, last_level: usize) -> Option<(String, Layout)> {
    let parts: Vec<&str> = name.split('.').collect();
    let (layer, ours, leaf) = match parts.as_slice() {
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

/// A layer of the two networks as diffusers' `Encoder` and `Decoder` name it.
pub(crate) fn diffusers_name(name: &str) -> Option<(String, Layout)> {
    let parts: Vec<&str> = name.split('.').collect();
    let (layer, ours, leaf) = match parts.as_slice() {
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

/// The name without Lightning's wrapping.
pub(crate) fn unwrapped(name: &str) -> &str {
    name.strip_prefix(STATE).unwrap_or(name)
}

/// What of a checkpoint is the model's state, with Lightning's wrapping or without it, and the names of the rest: training state, discriminator, averages.
pub(crate) fn taming_state(tensors: NamedTensors) -> (NamedTensors, Vec<String>) {
    let wrapped = tensors.keys().any(|name| name.starts_with(STATE));
    let is_state = |name: &str| (!wrapped || name.starts_with(STATE)) && !TAMING_IGNORED.iter().any(|ignored| unwrapped(name).starts_with(ignored));
    let (state, rest): (NamedTensors, NamedTensors) = tensors.into_iter().partition(|(name, _)| is_state(name));
    (state, rest.into_keys().collect())
}

/// The last level of the decoder, by the names of its weights without any prefix.
pub(crate) fn taming_last_level<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names.filter_map(|name| name.strip_prefix("decoder.up.")?.split('.').next()?.parse::<usize>().ok()).max().unwrap_or(0)
}

/// The sizes of the two networks, from the shapes of their weights under our names: checkpoints of taming and latent-diffusion hold no config. `owner`
/// says in errors whose tensors were expected ("a VQGAN's"). `latent_channels` is what the encoder gives.
pub(crate) fn taming_network(tensors: &NamedTensors, owner: &str) -> Result<Config, ConfigError> {
    let size = |name: &str, axis: usize| size(tensors, name, axis, owner);
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
    Ok(Config {
        picture_channels: size("encoder.conv_in.weight", 2)?,
        base_channels,
        channel_multipliers: channel_multipliers.collect::<Result<_, ConfigError>>()?,
        residual_block_count: count(&|index| format!("encoder.levels.0.blocks.{index}.conv_2.bias")),
        attention_levels: (0..level_count).filter(|level| tensors.contains_key(&format!("encoder.levels.{level}.attentions.0.norm.scale"))).collect(),
        middle_attention: tensors.contains_key("encoder.middle.attention.norm.scale"),
        group_count: TAMING_GROUP_COUNT,
        latent_channels: size("encoder.conv_out.bias", 0)?,
    })
}

/// The size of one axis of a tensor that must be there.
pub(crate) fn size(tensors: &NamedTensors, name: &str, axis: usize, owner: &str) -> Result<usize, ConfigError> {
    let shape = tensors.get(name).map(|tensor| tensor.shape.as_slice());
    let found = || shape.map_or_else(|| "no such tensor".to_string(), |shape| format!("shape {shape:?}"));
    shape.and_then(|shape| shape.get(axis).copied()).ok_or_else(|| ConfigError::new(format!("tensor `{name}`"), owner, found()))
}

/// The two networks of a diffusers `config.json` whose `_class_name` must be `class_name`.
pub(crate) fn diffusers_network(json: &str, class_name: &str) -> Result<Config, ConfigError> {
    let file: DiffusersConfig = diffusers_json(json, class_name)?;
    let check = |holds: bool, key: &str, expected: &str, found: String| ConfigError::check(holds, format!("config.json: {key}"), expected, found);
    check(file.class_name == class_name, "_class_name", &format!("`{class_name}`"), format!("`{}`", file.class_name))?;
    check(file.act_fn == "silu", "act_fn", "`silu`", format!("`{}`", file.act_fn))?;
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
    Ok(Config {
        picture_channels: file.in_channels,
        base_channels,
        channel_multipliers: file.block_out_channels.iter().map(|channels| channels / base_channels).collect(),
        residual_block_count: file.layers_per_block,
        attention_levels,
        middle_attention: file.mid_block_add_attention,
        group_count: file.norm_num_groups,
        latent_channels: file.latent_channels,
    })
}

/// A `config.json` as one model's keys.
pub(crate) fn diffusers_json<T: for<'a> Deserialize<'a>>(json: &str, class_name: &str) -> Result<T, ConfigError> {
    let article = if class_name.starts_with('A') { "an" } else { "a" };
    serde_json::from_str(json).map_err(|error| ConfigError::new("config.json", format!("the config of {article} {class_name}"), error))
}

/// Which of `blocks` attend; every one must be `plain` or `attending`.
fn levels(blocks: &[String], plain: &str, attending: &str, key: &str) -> Result<Vec<usize>, ConfigError> {
    let unknown = blocks.iter().find(|block| *block != plain && *block != attending);
    if let Some(block) = unknown {
        return Err(ConfigError::new(format!("config.json: {key}"), format!("`{plain}` or `{attending}`"), format!("`{block}`")));
    }
    Ok((0..blocks.len()).filter(|&level| blocks[level] == attending).collect())
}

/// The keys that decide about the two networks, with diffusers' defaults.
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
    latent_channels: usize,
    #[serde(default = "one")]
    layers_per_block: usize,
    #[serde(default = "yes")]
    mid_block_add_attention: bool,
    #[serde(default = "thirty_two")]
    norm_num_groups: usize,
}

fn silu() -> String {
    "silu".to_string()
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
