//! Others' CLIP checkpoints: names, layouts and configs of Hugging Face `CLIPModel` and of OpenAI's own files.

use super::config::{
    Config, FeedForwardActivation, ImageTowerConfig, OPEN_AI_PIXEL_MEAN, OPEN_AI_PIXEL_STANDARD_DEVIATION, TextTowerConfig, TransformerConfig,
};
use crate::ConfigError;
use serde::Deserialize;
use smalti_nn::weights::{HostTensor, NamedTensors};

/// Buffers of position indices 0, 1, 2, ... that older versions of `transformers` saved: no weights.
const HUGGING_FACE_SKIPPED: [&str; 2] = ["text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"];

/// Scalars beside the weights in OpenAI's files; the shapes of the weights say the same.
const OPEN_AI_SKIPPED: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];

/// What a Hugging Face `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct HuggingFaceConfig {
    pub config: Config,
    /// Index of the end token, at whose first occurrence the text is pooled.
    ///
    /// Files written before transformers 4.32 say 2, which no CLIP text tokenizer uses; there the highest index of a row is pooled instead, and that is
    /// the end token 49407, the last of the vocabulary (transformers PR 24773). It is reported as that.
    pub end_token: u32,
}

/// Reads the text of a Hugging Face `config.json` of a `CLIPModel`. Pixel statistics, which it does not hold, are OpenAI's, as in nearly every published CLIP.
pub fn hugging_face_config(json: &str) -> Result<HuggingFaceConfig, ConfigError> {
    let file: ConfigFile = serde_json::from_str(json).map_err(|error| ConfigError::new("config.json", "the config of a CLIPModel", error))?;
    let ConfigFile { projection_dim, text_config: text, vision_config: vision } = file;
    if vision.num_channels != 3 {
        return Err(ConfigError::new("config.json: vision_config.num_channels", "3", vision.num_channels));
    }
    let config = Config {
        embedding_channels: projection_dim,
        image: ImageTowerConfig {
            image_size: vision.image_size,
            patch_size: vision.patch_size,
            pixel_mean: OPEN_AI_PIXEL_MEAN,
            pixel_standard_deviation: OPEN_AI_PIXEL_STANDARD_DEVIATION,
            transformer: TransformerConfig {
                channels: vision.hidden_size,
                layer_count: vision.num_hidden_layers,
                head_count: vision.num_attention_heads,
                feed_forward_channels: vision.intermediate_size,
                activation: activation("vision_config.", &vision.hidden_act)?,
                layer_norm_epsilon: vision.layer_norm_eps,
            },
        },
        text: text.tower("text_config.")?,
    };
    config.validate()?;
    let end_token = text.end_token();
    Ok(HuggingFaceConfig { config, end_token })
}

const LEGACY_END_TOKEN: u32 = 2;

/// `table` ends with a dot where it is not empty.
fn activation(table: &str, name: &str) -> Result<FeedForwardActivation, ConfigError> {
    match name {
        "quick_gelu" => Ok(FeedForwardActivation::QuickGelu),
        "gelu" => Ok(FeedForwardActivation::Gelu),
        _ => Err(ConfigError::new(format!("config.json: {table}hidden_act"), "`quick_gelu` or `gelu`", format!("`{name}`"))),
    }
}

/// The weights of a Hugging Face `CLIPModel` (`model.safetensors`, `pytorch_model.bin`) under our names. A name that is not CLIP's keeps its name, so that
/// strict loading reports it.
pub fn hugging_face(tensors: NamedTensors) -> NamedTensors {
    tensors.into_iter().flat_map(|(name, tensor)| rename_hugging_face(&name, tensor)).collect()
}

fn rename_hugging_face(name: &str, tensor: HostTensor) -> Option<(String, HostTensor)> {
    if HUGGING_FACE_SKIPPED.contains(&name) {
        return None;
    }
    let block = |rest: &str, tower: &str| {
        let (layer, rest) = rest.split_once('.')?;
        let ours = match rest {
            "layer_norm1.weight" => "attention_norm.scale",
            "layer_norm1.bias" => "attention_norm.bias",
            "self_attn.q_proj.weight" => "query.weight",
            "self_attn.q_proj.bias" => "query.bias",
            "self_attn.k_proj.weight" => "key.weight",
            "self_attn.k_proj.bias" => "key.bias",
            "self_attn.v_proj.weight" => "value.weight",
            "self_attn.v_proj.bias" => "value.bias",
            "self_attn.out_proj.weight" => "attention_output.weight",
            "self_attn.out_proj.bias" => "attention_output.bias",
            "layer_norm2.weight" => "feed_forward_norm.scale",
            "layer_norm2.bias" => "feed_forward_norm.bias",
            "mlp.fc1.weight" => "feed_forward_input.weight",
            "mlp.fc1.bias" => "feed_forward_input.bias",
            "mlp.fc2.weight" => "feed_forward_output.weight",
            "mlp.fc2.bias" => "feed_forward_output.bias",
            _ => return None,
        };
        Some(format!("{tower}.blocks.{layer}.{ours}"))
    };
    let ours = match name {
        "logit_scale" => "logit_scale",
        "visual_projection.weight" => "image.projection.weight",
        "text_projection.weight" => "text.projection.weight",
        "vision_model.embeddings.class_embedding" => "image.class_token",
        "vision_model.embeddings.patch_embedding.weight" => "image.patch_projection.weight",
        "vision_model.embeddings.position_embedding.weight" => "image.positions",
        "vision_model.pre_layrnorm.weight" => "image.input_norm.scale",
        "vision_model.pre_layrnorm.bias" => "image.input_norm.bias",
        "vision_model.post_layernorm.weight" => "image.output_norm.scale",
        "vision_model.post_layernorm.bias" => "image.output_norm.bias",
        "text_model.embeddings.token_embedding.weight" => "text.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight" => "text.positions",
        "text_model.final_layer_norm.weight" => "text.output_norm.scale",
        "text_model.final_layer_norm.bias" => "text.output_norm.bias",
        _ => {
            let image = name.strip_prefix("vision_model.encoder.layers.").and_then(|rest| block(rest, "image"));
            let ours = image.or_else(|| name.strip_prefix("text_model.encoder.layers.").and_then(|rest| block(rest, "text")));
            return Some(match ours {
                Some(ours) => (ours, if name.ends_with(".weight") { transposed(tensor) } else { tensor }),
                None => (name.to_string(), tensor),
            });
        }
    };
    let tensor = match ours {
        "image.projection.weight" | "text.projection.weight" => transposed(tensor),
        "image.patch_projection.weight" => flattened_patch(tensor),
        "logit_scale" => vector(tensor),
        _ => tensor,
    };
    Some((ours.to_string(), tensor))
}

/// Sizes of an OpenAI checkpoint, which holds no config, from the shapes of its weights. Heads have 64 channels and activations are quick GELU in all of them.
pub fn open_ai_config(tensors: &NamedTensors) -> Result<Config, ConfigError> {
    let size = |name: &str, axis: usize| {
        let shape = tensors.get(name).map(|tensor| tensor.shape.as_slice()).unwrap_or_default();
        shape.get(axis).copied().ok_or_else(|| ConfigError::new(format!("tensor `{name}`"), "a CLIP ViT's", format!("shape {shape:?}")))
    };
    let layer_count = |prefix: &str| {
        let of_tower = |name: &&String| name.starts_with(prefix) && name.ends_with(".attn.in_proj_weight");
        tensors.keys().filter(of_tower).count()
    };
    let patch_size = size("visual.conv1.weight", 2)?;
    let patch_count = size("visual.positional_embedding", 0)?.saturating_sub(1);
    let config = Config {
        embedding_channels: size("visual.proj", 1)?,
        image: ImageTowerConfig {
            image_size: patch_count.isqrt() * patch_size,
            patch_size,
            pixel_mean: OPEN_AI_PIXEL_MEAN,
            pixel_standard_deviation: OPEN_AI_PIXEL_STANDARD_DEVIATION,
            transformer: TransformerConfig::quick_gelu(size("visual.conv1.weight", 0)?, layer_count("visual.transformer.resblocks.")),
        },
        text: TextTowerConfig {
            vocabulary_size: size("token_embedding.weight", 0)?,
            context_length: size("positional_embedding", 0)?,
            transformer: TransformerConfig::quick_gelu(size("ln_final.weight", 0)?, layer_count("transformer.resblocks.")),
        },
    };
    config.validate()?;
    Ok(config)
}

/// The weights of an OpenAI checkpoint (also `open_clip`'s ViT files of that layout) under our names; unknown names stay, so that strict loading reports them.
pub fn open_ai(tensors: NamedTensors) -> NamedTensors {
    tensors.into_iter().flat_map(|(name, tensor)| rename_open_ai(&name, tensor)).collect()
}

fn rename_open_ai(name: &str, tensor: HostTensor) -> Vec<(String, HostTensor)> {
    if OPEN_AI_SKIPPED.contains(&name) {
        return Vec::new();
    }
    let one = |ours: &str, tensor| vec![(ours.to_string(), tensor)];
    match name {
        "logit_scale" => one("logit_scale", vector(tensor)),
        "visual.class_embedding" => one("image.class_token", tensor),
        "visual.positional_embedding" => one("image.positions", tensor),
        "visual.conv1.weight" => one("image.patch_projection.weight", flattened_patch(tensor)),
        "visual.ln_pre.weight" => one("image.input_norm.scale", tensor),
        "visual.ln_pre.bias" => one("image.input_norm.bias", tensor),
        "visual.ln_post.weight" => one("image.output_norm.scale", tensor),
        "visual.ln_post.bias" => one("image.output_norm.bias", tensor),
        // Both projections are parameters multiplied from the right, stored [input, output] as ours are.
        "visual.proj" => one("image.projection.weight", tensor),
        "text_projection" => one("text.projection.weight", tensor),
        "token_embedding.weight" => one("text.token_embedding.weight", tensor),
        "positional_embedding" => one("text.positions", tensor),
        "ln_final.weight" => one("text.output_norm.scale", tensor),
        "ln_final.bias" => one("text.output_norm.bias", tensor),
        _ => match name.strip_prefix("visual.transformer.resblocks.").map(|rest| ("image", rest)) {
            Some((tower, rest)) => rename_open_ai_block(name, tower, rest, tensor),
            None => match name.strip_prefix("transformer.resblocks.") {
                Some(rest) => rename_open_ai_block(name, "text", rest, tensor),
                None => one(name, tensor),
            },
        },
    }
}

fn rename_open_ai_block(name: &str, tower: &str, rest: &str, tensor: HostTensor) -> Vec<(String, HostTensor)> {
    let Some((layer, part)) = rest.split_once('.') else { return vec![(name.to_string(), tensor)] };
    let ours = |part: &str| format!("{tower}.blocks.{layer}.{part}");
    match part {
        "ln_1.weight" => vec![(ours("attention_norm.scale"), tensor)],
        "ln_1.bias" => vec![(ours("attention_norm.bias"), tensor)],
        "attn.in_proj_weight" => {
            thirds(tensor).zip(["query", "key", "value"]).map(|(part, role)| (ours(&format!("{role}.weight")), transposed(part))).collect()
        }
        "attn.in_proj_bias" => thirds(tensor).zip(["query", "key", "value"]).map(|(part, role)| (ours(&format!("{role}.bias")), part)).collect(),
        "attn.out_proj.weight" => vec![(ours("attention_output.weight"), transposed(tensor))],
        "attn.out_proj.bias" => vec![(ours("attention_output.bias"), tensor)],
        "ln_2.weight" => vec![(ours("feed_forward_norm.scale"), tensor)],
        "ln_2.bias" => vec![(ours("feed_forward_norm.bias"), tensor)],
        "mlp.c_fc.weight" => vec![(ours("feed_forward_input.weight"), transposed(tensor))],
        "mlp.c_fc.bias" => vec![(ours("feed_forward_input.bias"), tensor)],
        "mlp.c_proj.weight" => vec![(ours("feed_forward_output.weight"), transposed(tensor))],
        "mlp.c_proj.bias" => vec![(ours("feed_forward_output.bias"), tensor)],
        _ => vec![(name.to_string(), tensor)],
    }
}

/// [output, input] -> [input, output]. Another rank is left as it is, for strict loading to report.
fn transposed(tensor: HostTensor) -> HostTensor {
    if tensor.shape.len() == 2 { tensor.permute(&[1, 0]) } else { tensor }
}

/// Convolution [output, 3, patch, patch] -> linear [patch * patch * 3, output], rows in the order height, width, colour.
fn flattened_patch(tensor: HostTensor) -> HostTensor {
    match *tensor.shape.as_slice() {
        [output, colours, height, width] => tensor.permute(&[2, 3, 1, 0]).reshape([height * width * colours, output]),
        _ => tensor,
    }
}

/// A scalar of shape [] -> [1].
fn vector(tensor: HostTensor) -> HostTensor {
    if tensor.shape.is_empty() { tensor.reshape([1]) } else { tensor }
}

/// The three parts of the first axis, in order: query, key, value. An axis that three does not divide comes back whole and alone, for strict loading to report.
fn thirds(tensor: HostTensor) -> impl Iterator<Item = HostTensor> {
    let rows = tensor.shape.first().copied().unwrap_or(0);
    let parts = if rows > 0 && rows.is_multiple_of(3) { 3 } else { 1 };
    let mut shape = tensor.shape.clone();
    if let Some(first) = shape.first_mut() {
        *first /= parts;
    }
    let size = tensor.values.len() / parts;
    (0..parts).map(move |part| HostTensor::new(shape.clone(), tensor.values[part * size..(part + 1) * size].to_vec()))
}

/// `config.json`, with the defaults of `transformers` for keys that are left out (`CLIPTextConfig`, `CLIPVisionConfig`).
#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default = "default_projection")]
    projection_dim: usize,
    #[serde(default)]
    text_config: TextConfigFile,
    #[serde(default)]
    vision_config: VisionConfigFile,
}

fn default_projection() -> usize {
    512
}

/// The part about the text tower; in the `config.json` of a `CLIPTextModel` it is the whole.
#[derive(Deserialize)]
#[serde(default)]
pub(crate) struct TextConfigFile {
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: String,
    layer_norm_eps: f32,
    eos_token_id: u32,
}

impl TextConfigFile {
    /// `table` is where it stands in the file, for errors: empty or with a dot at its end.
    pub(crate) fn tower(&self, table: &str) -> Result<TextTowerConfig, ConfigError> {
        Ok(TextTowerConfig {
            vocabulary_size: self.vocab_size,
            context_length: self.max_position_embeddings,
            transformer: TransformerConfig {
                channels: self.hidden_size,
                layer_count: self.num_hidden_layers,
                head_count: self.num_attention_heads,
                feed_forward_channels: self.intermediate_size,
                activation: activation(table, &self.hidden_act)?,
                layer_norm_epsilon: self.layer_norm_eps,
            },
        })
    }

    fn end_token(&self) -> u32 {
        if self.eos_token_id == LEGACY_END_TOKEN { (self.vocab_size as u32).saturating_sub(1) } else { self.eos_token_id }
    }
}

impl Default for TextConfigFile {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            max_position_embeddings: 77,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
            eos_token_id: 49_407,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct VisionConfigFile {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: String,
    layer_norm_eps: f32,
}

impl Default for VisionConfigFile {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}
