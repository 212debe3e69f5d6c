//! Others' T5 checkpoints: names, layouts and configs of `transformers` (`T5EncoderModel`, or the encoder of a whole `T5ForConditionalGeneration`).

use super::{Config, FeedForward};
use crate::ConfigError;
use serde::Deserialize;
use smalti_nn::weights::{HostTensor, NamedTensors};

/// A checkpoint under our names.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    pub tensors: NamedTensors,
    /// Foreign names that were left out on purpose: the decoder and its output table, and copies of the token table.
    pub ignored: Vec<String>,
}

/// A checkpoint of `transformers`. A name that is not T5's keeps its name, so that strict loading reports it.
pub fn hugging_face(tensors: NamedTensors) -> Imported {
    let mut imported = Imported { tensors: NamedTensors::new(), ignored: Vec::new() };
    let has_shared = tensors.contains_key("shared.weight");
    for (name, tensor) in tensors {
        let copy = name == "encoder.embed_tokens.weight" && has_shared;
        if copy || name == "lm_head.weight" || name.starts_with("decoder.") {
            imported.ignored.push(name);
            continue;
        }
        match rename(&name) {
            Some((ours, true)) => imported.tensors.insert(ours, transposed(tensor)),
            Some((ours, false)) => imported.tensors.insert(ours, tensor),
            None => imported.tensors.insert(name, tensor),
        };
    }
    imported
}

/// Our name, and whether it is a linear map, stored [output, input].
fn rename(name: &str) -> Option<(String, bool)> {
    match name {
        "shared.weight" | "encoder.embed_tokens.weight" => return Some(("token_embedding.weight".into(), false)),
        "encoder.final_layer_norm.weight" => return Some(("output_norm.scale".into(), false)),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" => return Some(("relative_bias".into(), false)),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("encoder.block.")?.split_once('.')?;
    let (ours, linear) = match rest {
        "layer.0.layer_norm.weight" => ("attention_norm.scale", false),
        "layer.0.SelfAttention.q.weight" => ("query.weight", true),
        "layer.0.SelfAttention.k.weight" => ("key.weight", true),
        "layer.0.SelfAttention.v.weight" => ("value.weight", true),
        "layer.0.SelfAttention.o.weight" => ("attention_output.weight", true),
        "layer.1.layer_norm.weight" => ("feed_forward_norm.scale", false),
        "layer.1.DenseReluDense.wi.weight" | "layer.1.DenseReluDense.wi_0.weight" => ("feed_forward_input.weight", true),
        "layer.1.DenseReluDense.wi_1.weight" => ("feed_forward_linear.weight", true),
        "layer.1.DenseReluDense.wo.weight" => ("feed_forward_output.weight", true),
        _ => return None,
    };
    Some((format!("blocks.{layer}.{ours}"), linear))
}

/// [output, input] -> [input, output]. Another rank is left as it is, for strict loading to report.
fn transposed(tensor: HostTensor) -> HostTensor {
    if tensor.shape.len() == 2 { tensor.permute(&[1, 0]) } else { tensor }
}

/// The text of a `config.json` of a T5 model.
pub fn hugging_face_config(json: &str) -> Result<Config, ConfigError> {
    let file: ConfigFile = serde_json::from_str(json).map_err(|error| ConfigError::new("config.json", "the config of a T5 model", error))?;
    ConfigError::check(file.model_type == "t5", "config.json: model_type", "`t5`", format!("`{}`", file.model_type))?;
    let feed_forward = match file.feed_forward_proj.as_str() {
        "relu" => FeedForward::Relu,
        "gated-gelu" => FeedForward::GatedGelu,
        other => return Err(ConfigError::new("config.json: feed_forward_proj", "`relu` or `gated-gelu`", format!("`{other}`"))),
    };
    let config = Config {
        vocabulary_size: file.vocab_size,
        channels: file.d_model,
        layer_count: file.num_layers,
        head_count: file.num_heads,
        head_channels: file.d_kv,
        feed_forward_channels: file.d_ff,
        feed_forward,
        bucket_count: file.relative_attention_num_buckets,
        distance_limit: file.relative_attention_max_distance,
        norm_epsilon: file.layer_norm_epsilon,
    };
    config.validate()?;
    Ok(config)
}

/// With the defaults of `transformers.T5Config`, which the published files rely on for what came later than they did.
#[derive(Deserialize)]
#[serde(default)]
struct ConfigFile {
    model_type: String,
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    relative_attention_num_buckets: usize,
    relative_attention_max_distance: usize,
    layer_norm_epsilon: f32,
    feed_forward_proj: String,
}

impl Default for ConfigFile {
    fn default() -> Self {
        Self {
            model_type: String::new(),
            vocab_size: 32_128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".into(),
        }
    }
}
