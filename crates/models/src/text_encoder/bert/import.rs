//! Others' BERT checkpoints: names, layouts and configs of `transformers` (`BertModel`, with or without the `bert.` of models that contain one).

use super::Config;
use crate::ConfigError;
use serde::Deserialize;
use smalti_nn::weights::{HostTensor, NamedTensors};

/// A checkpoint under our names.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    pub tensors: NamedTensors,
    /// Foreign names that were left out on purpose: the pooler of the first token, heads of the training tasks (`cls.`), and position indices.
    pub ignored: Vec<String>,
}

/// A checkpoint of `transformers`. A name that is not BERT's keeps its name, so that strict loading reports it.
pub fn hugging_face(tensors: NamedTensors) -> Imported {
    let mut imported = Imported { tensors: NamedTensors::new(), ignored: Vec::new() };
    for (name, tensor) in tensors {
        let inner = name.strip_prefix("bert.").unwrap_or(&name);
        if inner.starts_with("pooler.") || inner.starts_with("cls.") || inner == "embeddings.position_ids" {
            imported.ignored.push(name);
            continue;
        }
        match rename(inner) {
            Some((ours, true)) => imported.tensors.insert(ours, transposed(tensor)),
            Some((ours, false)) => imported.tensors.insert(ours, tensor),
            None => imported.tensors.insert(name, tensor),
        };
    }
    imported
}

/// Our name, and whether it is the matrix of a linear map, stored [output, input].
fn rename(name: &str) -> Option<(String, bool)> {
    let whole = match name {
        "embeddings.word_embeddings.weight" => Some("token_embedding.weight"),
        "embeddings.position_embeddings.weight" => Some("positions"),
        "embeddings.token_type_embeddings.weight" => Some("segments"),
        _ => None,
    };
    if let Some(ours) = whole {
        return Some((ours.to_string(), false));
    }
    let (module, leaf) = name.rsplit_once('.')?;
    let (ours, is_norm) = match module.strip_prefix("encoder.layer.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => {
            let (part, is_norm) = match part {
                "attention.self.query" => ("query", false),
                "attention.self.key" => ("key", false),
                "attention.self.value" => ("value", false),
                "attention.output.dense" => ("attention_output", false),
                "attention.output.LayerNorm" => ("attention_norm", true),
                "intermediate.dense" => ("feed_forward_input", false),
                "output.dense" => ("feed_forward_output", false),
                "output.LayerNorm" => ("feed_forward_norm", true),
                _ => return None,
            };
            (format!("blocks.{layer}.{part}"), is_norm)
        }
        None if module == "embeddings.LayerNorm" => ("input_norm".to_string(), true),
        None => return None,
    };
    // Checkpoints converted from TensorFlow call scale and bias of a norm gamma and beta.
    match (is_norm, leaf) {
        (true, "weight" | "gamma") => Some((format!("{ours}.scale"), false)),
        (true, "bias" | "beta") | (false, "bias") => Some((format!("{ours}.bias"), false)),
        (false, "weight") => Some((format!("{ours}.weight"), true)),
        _ => None,
    }
}

/// [output, input] -> [input, output]. Another rank is left as it is, for strict loading to report.
fn transposed(tensor: HostTensor) -> HostTensor {
    if tensor.shape.len() == 2 { tensor.permute(&[1, 0]) } else { tensor }
}

/// The text of a `config.json` of a BERT model.
pub fn hugging_face_config(json: &str) -> Result<Config, ConfigError> {
    let file: ConfigFile = serde_json::from_str(json).map_err(|error| ConfigError::new("config.json", "the config of a BERT model", error))?;
    let check = |holds: bool, key: &str, expected: &str, found: &str| ConfigError::check(holds, format!("config.json: {key}"), expected, format!("`{found}`"));
    check(file.model_type == "bert", "model_type", "`bert`", &file.model_type)?;
    check(file.hidden_act == "gelu", "hidden_act", "`gelu`", &file.hidden_act)?;
    check(file.position_embedding_type == "absolute", "position_embedding_type", "`absolute`", &file.position_embedding_type)?;
    let config = Config {
        vocabulary_size: file.vocab_size,
        context_length: file.max_position_embeddings,
        segment_count: file.type_vocab_size,
        channels: file.hidden_size,
        layer_count: file.num_hidden_layers,
        head_count: file.num_attention_heads,
        feed_forward_channels: file.intermediate_size,
        norm_epsilon: file.layer_norm_eps,
    };
    config.validate()?;
    Ok(config)
}

/// With the defaults of `transformers.BertConfig`.
#[derive(Deserialize)]
#[serde(default)]
struct ConfigFile {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    position_embedding_type: String,
}

impl Default for ConfigFile {
    fn default() -> Self {
        Self {
            model_type: String::new(),
            vocab_size: 30_522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".into(),
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            position_embedding_type: "absolute".into(),
        }
    }
}
