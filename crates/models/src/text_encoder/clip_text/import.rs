//! Others' CLIP text encoders: names, layouts and configs of `transformers` (`CLIPTextModel`, `CLIPTextModelWithProjection`, the text half of a `CLIPModel`).
//!
//! The tower's own names are those of [`crate::contrastive::clip::import`].

use super::{Config, State};
use crate::ConfigError;
use crate::contrastive::clip::config::TextTowerConfig;
use crate::contrastive::clip::import::{self as clip, TextConfigFile};
use serde::Deserialize;
use smalti_nn::weights::NamedTensors;

/// A checkpoint under our names.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    pub tensors: NamedTensors,
    /// Foreign names that were left out on purpose: the other half of a `CLIPModel`, and a projection that the config does not have.
    pub ignored: Vec<String>,
}

/// A checkpoint of `transformers`. A name that is not a text tower's keeps its name, so that strict loading reports it.
pub fn hugging_face(tensors: NamedTensors, config: &Config) -> Imported {
    let mut imported = Imported { tensors: NamedTensors::new(), ignored: Vec::new() };
    let mut tower = NamedTensors::new();
    for (name, tensor) in tensors {
        let other_half = name.starts_with("vision_model.") || name == "visual_projection.weight" || name == "logit_scale";
        if other_half || (name == "text_projection.weight" && config.projection_channels.is_none()) {
            imported.ignored.push(name);
            continue;
        }
        // transformers 5 writes a bare tower's names without `text_model.`.
        let bare = ["embeddings.", "encoder.", "final_layer_norm."].iter().any(|start| name.starts_with(start));
        tower.insert(if bare { format!("text_model.{name}") } else { name }, tensor);
    }
    let renamed = clip::hugging_face(tower).into_iter();
    imported.tensors = renamed.map(|(name, tensor)| (name.strip_prefix("text.").map_or(name.clone(), str::to_string), tensor)).collect();
    imported
}

/// The text of a `config.json`. Whether there is a projection is told by its `architectures`; which state counts is the generator's choice.
pub fn hugging_face_config(json: &str, state: State) -> Result<Config, ConfigError> {
    let unreadable = |error: serde_json::Error| ConfigError::new("config.json", "the config of a CLIP text model", error);
    let file: ConfigFile = serde_json::from_str(json).map_err(unreadable)?;
    let (tower, table): (TextConfigFile, _) = match (file.model_type.as_str(), file.text_config) {
        ("clip", Some(text)) => (text, "text_config."),
        ("clip_text_model", _) => (serde_json::from_str(json).map_err(unreadable)?, ""),
        _ => return Err(ConfigError::new("config.json: model_type", "`clip_text_model` or `clip`", format!("`{}`", file.model_type))),
    };
    let TextTowerConfig { vocabulary_size, context_length, transformer } = tower.tower(table)?;
    let projects = file.architectures.iter().any(|name| name == "CLIPTextModelWithProjection");
    let projection_channels = projects.then_some(file.projection_dim);
    let config = Config { vocabulary_size, context_length, transformer, projection_channels, state };
    config.validate()?;
    Ok(config)
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    model_type: String,
    #[serde(default)]
    architectures: Vec<String>,
    text_config: Option<TextConfigFile>,
    /// with the default of `transformers`
    #[serde(default = "default_projection")]
    projection_dim: usize,
}

fn default_projection() -> usize {
    512
}
