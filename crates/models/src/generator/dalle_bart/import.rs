//! Others' checkpoints: names, layouts and configs of min-dalle's DalleBart (mini and mega) and of Hugging Face `BartForConditionalGeneration`.
//!
//! A name that is not the model's keeps its name, so that strict loading reports it.

use super::config::{Config, FeedForward, Norms, StackConfig, Vocabularies};
use crate::ConfigError;
use serde::Deserialize;
use smalti_nn::weights::{HostTensor, NamedTensors};

/// Codes of DALL-E mini's image tokenizer (VQGAN f16); what follows them in the image tokens' table is special.
const DALLE_CODE_COUNT: usize = 16_384;
/// Channels of a head in DALL-E mini and mega; the weights' shapes do not tell.
const DALLE_HEAD_CHANNELS: usize = 64;

/// The config of min-dalle's `encoder*.pt` and `decoder*.pt`, which hold none, from the shapes of their weights.
///
/// The start token is 16384, with which DALL-E mini was trained (its `decoder_start_token_id`). min-dalle 0.4.11 itself starts with code 16383, which it
/// also fills unfinished pictures with.
pub fn min_dalle_config(encoder: &NamedTensors, decoder: &NamedTensors) -> Result<Config, ConfigError> {
    min_dalle_config_of(encoder, decoder, DALLE_CODE_COUNT, DALLE_HEAD_CHANNELS)
}

pub(super) fn min_dalle_config_of(encoder: &NamedTensors, decoder: &NamedTensors, code_count: usize, head_channels: usize) -> Result<Config, ConfigError> {
    let [text_vocabulary, channels] = matrix(encoder, "encoder", "embed_tokens.weight")?;
    let [text_token_count, _] = matrix(encoder, "encoder", "embed_positions.weight")?;
    let [image_table_size, _] = matrix(decoder, "decoder", "embed_tokens.weight")?;
    let [image_token_count, _] = matrix(decoder, "decoder", "embed_positions.weight")?;
    let Some(special_token_count) = image_table_size.checked_sub(code_count) else {
        return Err(ConfigError::new("decoder tensor `embed_tokens.weight`", format!("at least {code_count} rows"), image_table_size));
    };
    let stack = |tensors: &NamedTensors, file: &str| {
        let [feed_forward_channels, _] = matrix(tensors, file, "layers.0.glu.fc0.weight")?;
        let block_count = tensors.keys().filter(|name| name.starts_with("layers.") && name.ends_with(".glu.fc0.weight")).count();
        Ok(StackConfig { block_count, head_count: channels / head_channels, feed_forward_channels })
    };
    let config = Config {
        text_vocabulary,
        text_token_count,
        image_vocabulary: code_count,
        image_token_count,
        special_token_count,
        start_token: code_count,
        channels,
        encoder: stack(encoder, "encoder")?,
        decoder: stack(decoder, "decoder")?,
        ..Config::dalle()
    };
    config.validate()?;
    Ok(config)
}

fn matrix(tensors: &NamedTensors, file: &str, name: &str) -> Result<[usize; 2], ConfigError> {
    let shape = tensors.get(name).map(|tensor| tensor.shape.as_slice());
    let found = || shape.map_or("no such tensor".to_string(), |shape| format!("shape {shape:?}"));
    shape.and_then(|shape| shape.try_into().ok()).ok_or_else(|| ConfigError::new(format!("{file} tensor `{name}`"), "a matrix of DalleBart", found()))
}

/// The weights of min-dalle's `encoder*.pt` and `decoder*.pt` under our names.
///
/// Norms that a linear map follows were trained without a scale (dalle-mini, `modeling.py`, `force_ln_scale`) and the published files lack it: there the
/// scale is 1. min-dalle does the same by loading loosely.
pub fn min_dalle(encoder: NamedTensors, decoder: NamedTensors) -> NamedTensors {
    let encoder = encoder.into_iter().map(|(name, tensor)| rename_min_dalle("encoder", "text_table", &name, tensor));
    let decoder = decoder.into_iter().map(|(name, tensor)| rename_min_dalle("decoder", "image_table", &name, tensor));
    let mut tensors: NamedTensors = encoder.chain(decoder).collect();
    let unscaled: Vec<(String, HostTensor)> = tensors.iter().filter_map(|(name, bias)| scale_of_one(name, bias)).collect();
    for (name, scale) in unscaled {
        tensors.entry(name).or_insert(scale);
    }
    tensors
}

/// For the bias of a norm that may lack its scale: the scale's name, and ones.
fn scale_of_one(name: &str, bias: &HostTensor) -> Option<(String, HostTensor)> {
    let norm = name.strip_suffix(".bias")?;
    let followed_by_linear = [".before", ".middle_norm", ".output_norm"].iter().any(|end| norm.ends_with(end));
    followed_by_linear.then(|| (format!("{norm}.scale"), HostTensor::new(bias.shape.clone(), vec![1.0; bias.values.len()])))
}

fn rename_min_dalle(side: &str, table: &str, name: &str, tensor: HostTensor) -> (String, HostTensor) {
    let (start, rest) = match name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
        Some((layer, rest)) => (format!("{side}.blocks.{layer}."), rest),
        None => (format!("{side}."), name),
    };
    let ours = match (name == rest, rest) {
        (true, "embed_tokens.weight") => return (format!("{table}.weight"), tensor),
        (true, "lm_head.weight") => return ("head.weight".into(), transposed(tensor)),
        (true, "embed_positions.weight") => Some("positions.table".into()),
        (true, _) => norm_part(rest, &[("layernorm_embedding", "input_norm"), ("final_ln", "output_norm")]),
        (false, _) => norm_part(
            rest,
            &[
                ("pre_self_attn_layer_norm", "self_attention_norms.before"),
                ("self_attn_layer_norm", "self_attention_norms.inside"),
                ("pre_encoder_attn_layer_norm", "text_attention_norms.before"),
                ("encoder_attn_layer_norm", "text_attention_norms.inside"),
                ("glu.ln0", "feed_forward_norms.before"),
                ("glu.ln1", "feed_forward.middle_norm"),
            ],
        )
        .or_else(|| linear_part(rest, &[("glu.fc0", "feed_forward.input"), ("glu.fc1", "feed_forward.gate"), ("glu.fc2", "feed_forward.output")])),
    };
    finish(name, &start, ours, tensor)
}

/// Reads the text of a Hugging Face `config.json` of `model_type` `bart`.
pub fn hugging_face_config(json: &str) -> Result<Config, ConfigError> {
    let file: ConfigFile =
        serde_json::from_str(json).map_err(|error| ConfigError::new("config.json", "the config of a BartForConditionalGeneration", error))?;
    if file.activation_function != "gelu" {
        return Err(ConfigError::new("config.json: activation_function", "`gelu`", format!("`{}`", file.activation_function)));
    }
    let config = Config {
        text_vocabulary: file.vocab_size,
        text_token_count: file.max_position_embeddings,
        image_vocabulary: file.vocab_size,
        image_token_count: file.max_position_embeddings,
        special_token_count: 0,
        start_token: file.decoder_start_token_id,
        channels: file.d_model,
        vocabularies: if file.tie_word_embeddings { Vocabularies::Shared } else { Vocabularies::Separate },
        norms: Norms::Post,
        feed_forward: FeedForward::Gelu,
        linear_bias: true,
        logits_bias: true,
        position_offset: 2,
        scale_embedding: file.scale_embedding,
        encoder: StackConfig { block_count: file.encoder_layers, head_count: file.encoder_attention_heads, feed_forward_channels: file.encoder_ffn_dim },
        decoder: StackConfig { block_count: file.decoder_layers, head_count: file.decoder_attention_heads, feed_forward_channels: file.decoder_ffn_dim },
    };
    config.validate()?;
    Ok(config)
}

/// The weights of a Hugging Face `BartForConditionalGeneration` or `BartModel` under our names.
///
/// Copies of the shared table under the names of its users are dropped when they are equal to it. A `BartModel`, which has no logits, gets a bias of zeros.
pub fn hugging_face(tensors: NamedTensors, config: &Config) -> NamedTensors {
    let name_of = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_string();
    let mut tensors: NamedTensors = tensors.into_iter().map(|(name, tensor)| (name_of(&name), tensor)).collect();
    if config.vocabularies == Vocabularies::Shared {
        share_table(&mut tensors);
    } else {
        // Untied, `shared` is the table of nobody: encoder and decoder hold their own.
        tensors.remove("shared.weight");
    }
    let size = config.image_table_size();
    let bias = tensors.remove("final_logits_bias").unwrap_or_else(|| HostTensor::new([1, size], vec![0.0; size]));
    let mut ours: NamedTensors = tensors.into_iter().map(|(name, tensor)| rename_hugging_face(&name, tensor)).collect();
    ours.insert("logits_bias".into(), if bias.shape.len() == 2 && bias.shape[0] == 1 { HostTensor::new([bias.values.len()], bias.values) } else { bias });
    ours
}

/// Leaves one name, `encoder.embed_tokens.weight`, for a table that has up to four.
fn share_table(tensors: &mut NamedTensors) {
    const NAMES: [&str; 4] = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"];
    let Some(table) = NAMES.iter().find_map(|name| tensors.get(*name)).cloned() else { return };
    for name in NAMES {
        if tensors.get(name) == Some(&table) {
            tensors.remove(name);
        }
    }
    // One that is not equal stays and is reported; it must not be taken for the table.
    if let Some(other) = tensors.remove(NAMES[1]) {
        tensors.insert(format!("model.{}", NAMES[1]), other);
    }
    tensors.insert(NAMES[1].into(), table);
}

fn rename_hugging_face(name: &str, tensor: HostTensor) -> (String, HostTensor) {
    let Some((side, inner)) = name.split_once('.').filter(|(side, _)| ["encoder", "decoder"].contains(side)) else {
        return if name == "lm_head.weight" { ("head.weight".into(), transposed(tensor)) } else { (name.to_string(), tensor) };
    };
    let (start, rest) = match inner.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
        Some((layer, rest)) => (format!("{side}.blocks.{layer}."), rest),
        None => (format!("{side}."), inner),
    };
    let ours = match (inner == rest, rest) {
        (true, "embed_tokens.weight") => return (if side == "encoder" { "text_table.weight" } else { "image_table.weight" }.into(), tensor),
        (true, "embed_positions.weight") => Some("positions.table".into()),
        (true, _) => norm_part(rest, &[("layernorm_embedding", "input_norm")]),
        (false, _) => norm_part(
            rest,
            &[
                ("self_attn_layer_norm", "self_attention_norms.after"),
                ("encoder_attn_layer_norm", "text_attention_norms.after"),
                ("final_layer_norm", "feed_forward_norms.after"),
            ],
        )
        .or_else(|| linear_part(rest, &[("fc1", "feed_forward.input"), ("fc2", "feed_forward.output")])),
    };
    finish(name, &start, ours, tensor)
}

/// Our name and our layout, or the foreign name and layout where there is none of ours.
fn finish(foreign: &str, start: &str, ours: Option<String>, tensor: HostTensor) -> (String, HostTensor) {
    match ours {
        // Linear weights are stored [output, input] there and [input, output] here; norms end in `.scale`.
        Some(ours) if ours.ends_with(".weight") => (format!("{start}{ours}"), transposed(tensor)),
        Some(ours) => (format!("{start}{ours}"), tensor),
        None => (foreign.to_string(), tensor),
    }
}

/// `layer_norm.weight` -> `norm.scale`, `layer_norm.bias` -> `norm.bias`, for the norms in `names`.
fn norm_part(name: &str, names: &[(&str, &str)]) -> Option<String> {
    let (layer, part) = name.rsplit_once('.')?;
    let (_, ours) = names.iter().find(|(foreign, _)| *foreign == layer)?;
    match part {
        "weight" => Some(format!("{ours}.scale")),
        "bias" => Some(format!("{ours}.bias")),
        _ => None,
    }
}

/// As [`norm_part`], for the linear maps in `names` and those of both attentions.
fn linear_part(name: &str, names: &[(&str, &str)]) -> Option<String> {
    const PROJECTIONS: [(&str, &str); 4] = [("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output")];
    let (layer, part) = name.rsplit_once('.').filter(|(_, part)| ["weight", "bias"].contains(part))?;
    if let Some((_, ours)) = names.iter().find(|(foreign, _)| *foreign == layer) {
        return Some(format!("{ours}.{part}"));
    }
    let (attention, projection) = layer.split_once('.')?;
    let attention = match attention {
        "self_attn" => "self_attention",
        "encoder_attn" => "text_attention",
        _ => return None,
    };
    let (_, projection) = PROJECTIONS.iter().find(|(foreign, _)| *foreign == projection)?;
    Some(format!("{attention}.{projection}.{part}"))
}

/// [output, input] -> [input, output]; [output, input, 1, 1] likewise, as min-dalle's first versions kept the projections of the attention, which were
/// convolutions there. Another shape is left as it is, for strict loading to report.
fn transposed(tensor: HostTensor) -> HostTensor {
    match *tensor.shape.as_slice() {
        [output, input] | [output, input, 1, 1] => tensor.reshape([output, input]).permute(&[1, 0]),
        _ => tensor,
    }
}

/// `config.json`, with the defaults of `transformers` for keys that are left out (`BartConfig`).
#[derive(Deserialize)]
#[serde(default)]
struct ConfigFile {
    vocab_size: usize,
    max_position_embeddings: usize,
    d_model: usize,
    encoder_layers: usize,
    encoder_attention_heads: usize,
    encoder_ffn_dim: usize,
    decoder_layers: usize,
    decoder_attention_heads: usize,
    decoder_ffn_dim: usize,
    decoder_start_token_id: usize,
    activation_function: String,
    scale_embedding: bool,
    tie_word_embeddings: bool,
}

impl Default for ConfigFile {
    fn default() -> Self {
        Self {
            vocab_size: 50_265,
            max_position_embeddings: 1024,
            d_model: 1024,
            encoder_layers: 12,
            encoder_attention_heads: 16,
            encoder_ffn_dim: 4096,
            decoder_layers: 12,
            decoder_attention_heads: 16,
            decoder_ffn_dim: 4096,
            decoder_start_token_id: 2,
            activation_function: "gelu".into(),
            scale_embedding: false,
            tie_word_embeddings: true,
        }
    }
}
