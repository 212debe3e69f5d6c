//! Others' checkpoints: names, layouts and configs of diffusers' `UNet2DModel` (DDPM, OpenAI's networks) and `UNet2DConditionModel` as Stable Diffusion 1.x
//! and 2.x have it.
//!
//! A name that is not the network's keeps its name, so that strict loading reports it. A config is read as strictly: every key must be one whose meaning is
//! implemented here, or hold the one value at which it changes nothing.

mod config_file;

pub use config_file::diffusers_config;

use smalti_nn::weights::{HostTensor, NamedTensors};

/// The weights of `diffusion_pytorch_model.safetensors` (or `.bin`) under our names.
pub fn diffusers(tensors: NamedTensors) -> NamedTensors {
    let mut renamed = NamedTensors::new();
    for (name, tensor) in tensors {
        if let Some((path, leaf)) = name.rsplit_once(".ff.net.0.proj.").filter(|_| tensor.shape.first().is_some_and(|rows| rows.is_multiple_of(2)))
            && let Some((ours, _)) = place(path).filter(|(_, rest)| rest == "transformer.")
        {
            // One map there is two here: what is gated, then the gate.
            let (input, gate) = halves(tensor);
            for (part, tensor) in [("input", input), ("gate", gate)] {
                renamed.insert(format!("{ours}.feed_forward.{part}.{leaf}"), pointwise(tensor));
            }
            continue;
        }
        let (name, tensor) = renamed_tensor(&name).map_or_else(|| (name.clone(), tensor.clone()), |(ours, convert)| (ours, convert(tensor.clone())));
        renamed.insert(name, tensor);
    }
    renamed
}

type Convert = fn(HostTensor) -> HostTensor;

/// Our name of a foreign tensor and how its layout is turned into ours.
fn renamed_tensor(name: &str) -> Option<(String, Convert)> {
    let (path, leaf) = name.rsplit_once('.')?;
    let (start, rest) = place(path)?;
    let dotted = |layer: &str| if start.is_empty() { layer.to_string() } else { format!("{start}.{layer}") };
    if path == "class_embedding" && leaf == "weight" {
        return Some(("class_embedding.weight".into(), |tensor| tensor));
    }
    for (foreign, ours, kind) in LAYERS {
        if *foreign == rest {
            let (leaf, convert): (&str, Convert) = match (kind, leaf) {
                (_, "bias") => ("bias", |tensor| tensor),
                (Kind::Norm, "weight") => ("scale", |tensor| tensor),
                (Kind::Convolution, "weight") => ("weight", convolution),
                (Kind::Pointwise, "weight") => ("weight", pointwise),
                _ => return None,
            };
            return Some((format!("{}.{leaf}", dotted(ours)), convert));
        }
    }
    None
}

/// What a layer is, which says how its weight is named and laid out.
#[derive(Clone, Copy)]
enum Kind {
    Norm,
    Convolution,
    Pointwise,
}

/// Layers by their place: in the network itself, in a residual block, in an attention, in a transformer or its blocks.
const LAYERS: &[(&str, &str, Kind)] = &[
    ("conv_in", "conv_in", Kind::Convolution),
    ("conv_out", "conv_out", Kind::Convolution),
    ("conv_norm_out", "norm_out", Kind::Norm),
    ("time_embedding.linear_1", "time_embedding.input", Kind::Pointwise),
    ("time_embedding.linear_2", "time_embedding.output", Kind::Pointwise),
    ("downsamplers.0.conv", "downsample", Kind::Convolution),
    ("upsamplers.0.conv", "upsample", Kind::Convolution),
    // residual blocks
    ("norm1", "norm_1", Kind::Norm),
    ("conv1", "conv_1", Kind::Convolution),
    ("time_emb_proj", "time", Kind::Pointwise),
    ("norm2", "norm_2", Kind::Norm),
    ("conv2", "conv_2", Kind::Convolution),
    ("conv_shortcut", "shortcut", Kind::Pointwise),
    // attention without text: today's names and those of diffusers before 0.18
    ("group_norm", "attention.norm", Kind::Norm),
    ("to_q", "attention.attention.query", Kind::Pointwise),
    ("to_k", "attention.attention.key", Kind::Pointwise),
    ("to_v", "attention.attention.value", Kind::Pointwise),
    ("to_out.0", "attention.attention.output", Kind::Pointwise),
    ("query", "attention.attention.query", Kind::Pointwise),
    ("key", "attention.attention.key", Kind::Pointwise),
    ("value", "attention.attention.value", Kind::Pointwise),
    ("proj_attn", "attention.attention.output", Kind::Pointwise),
    // transformers: their 1x1 convolutions (Stable Diffusion 1.x) are linear maps (2.x) written otherwise
    ("norm", "transformer.norm", Kind::Norm),
    ("proj_in", "transformer.input", Kind::Pointwise),
    ("proj_out", "transformer.output", Kind::Pointwise),
    // their blocks
    ("transformer.norm1", "self_attention_norm", Kind::Norm),
    ("transformer.attn1.to_q", "self_attention.query", Kind::Pointwise),
    ("transformer.attn1.to_k", "self_attention.key", Kind::Pointwise),
    ("transformer.attn1.to_v", "self_attention.value", Kind::Pointwise),
    ("transformer.attn1.to_out.0", "self_attention.output", Kind::Pointwise),
    ("transformer.norm2", "text_attention_norm", Kind::Norm),
    ("transformer.attn2.to_q", "text_attention.query", Kind::Pointwise),
    ("transformer.attn2.to_k", "text_attention.key", Kind::Pointwise),
    ("transformer.attn2.to_v", "text_attention.value", Kind::Pointwise),
    ("transformer.attn2.to_out.0", "text_attention.output", Kind::Pointwise),
    ("transformer.norm3", "feed_forward_norm", Kind::Norm),
    ("transformer.ff.net.2", "feed_forward.output", Kind::Pointwise),
];

/// Splits the path of a layer: where it is, in our words, and the rest, which [`LAYERS`] knows.
fn place(path: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = path.split('.').collect();
    let (start, rest): (String, &[&str]) = match parts.as_slice() {
        ["down_blocks", level, rest @ ..] => (format!("down.{level}"), rest),
        ["up_blocks", level, rest @ ..] => (format!("up.{level}"), rest),
        ["mid_block", rest @ ..] => ("middle".into(), rest),
        _ => return Some((String::new(), path.to_string())),
    };
    let in_middle = start == "middle";
    let stage = |index: &str| if in_middle { format!("{start}.stage") } else { format!("{start}.stages.{index}") };
    Some(match rest {
        ["resnets", "1", rest @ ..] if in_middle => ("middle.block".into(), rest.join(".")),
        ["resnets", index, rest @ ..] if !in_middle || *index == "0" => (format!("{}.block", stage(index)), rest.join(".")),
        ["attentions", index, inner @ ..] if !in_middle || *index == "0" => match inner {
            ["transformer_blocks", block, rest @ ..] => (format!("{}.transformer.blocks.{block}", stage(index)), format!("transformer.{}", rest.join("."))),
            _ => (stage(index), inner.join(".")),
        },
        _ if !in_middle => (start, rest.join(".")),
        _ => return None,
    })
}

/// [output, input, kernel, kernel] -> [kernel, kernel, input, output]. Another rank is left as it is, for strict loading to report.
fn convolution(tensor: HostTensor) -> HostTensor {
    if tensor.shape.len() == 4 { tensor.permute(&[2, 3, 1, 0]) } else { tensor }
}

/// [output, input] or [output, input, 1, 1] -> [input, output]; biases stay as they are.
fn pointwise(tensor: HostTensor) -> HostTensor {
    match *tensor.shape {
        [output, input] | [output, input, 1, 1] => tensor.reshape([output, input]).permute(&[1, 0]),
        _ => tensor,
    }
}

/// The first and the second half of the rows.
fn halves(mut tensor: HostTensor) -> (HostTensor, HostTensor) {
    let second = tensor.values.split_off(tensor.values.len() / 2);
    tensor.shape[0] /= 2;
    let shape = tensor.shape.clone();
    (tensor, HostTensor::new(shape, second))
}
