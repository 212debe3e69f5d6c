//! `system = "noisy_classifier"` as a recipe says it.

use crate::learning_rate::Schedule;
use crate::pictures::PictureSettings;
use crate::recipe_file::{RecipeError, RecipeFile};
use crate::recipes::diffusion::settings::validate_level_normal;
use crate::settings::{self, OptimizerSettings, TrainSettings};
use crate::train_loop::LoopSettings;
use serde::{Deserialize, Serialize};
use smalti_generation::diffusion::Process;
use smalti_models::classifier::noisy::{self, Pooling};
use smalti_models::generator::unet::{TimeUse, time_embedding};
use smalti_pipeline::manifest::{Canvas, ClassifierConfig};
use std::path::PathBuf;

/// A recipe with `system = "noisy_classifier"`. Canvas, size and process must be those of the diffusion network that it will guide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoisyClassifierRecipe {
    pub system: String,
    /// The run is `runs/<name>` unless the command line says otherwise.
    pub name: String,
    /// The bundle with the frozen image tokenizer whose latents are classified; without one pixels are.
    pub image_tokenizer: Option<PathBuf>,
    pub data: PictureSettings,
    /// The field of a picture's description that names its class, such as `style`. Pictures without it teach nothing.
    pub class_field: String,
    pub process: Process,
    pub model: ModelSettings,
    /// Rectified flow and EDM: mean and standard deviation of the normal number that chooses a level (logit-normal, log-normal).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level_normal: Option<[f64; 2]>,
    pub optimizer: OptimizerSettings,
    pub schedule: Schedule,
    pub train: TrainSettings,
}

/// `[model]`: the way down of a U-Net; channels of the input and the number of classes are known from elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// Channels of each level, from the canvas's own size down.
    pub level_channels: Vec<usize>,
    pub residual_block_count: usize,
    pub attention_levels: Vec<usize>,
    /// Channels of one head of attention.
    pub head_channels: usize,
    pub time_use: TimeUse,
    pub group_count: usize,
    pub pooling: PoolingKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolingKind {
    Mean,
    /// As Dhariwal and Nichol do.
    Attention,
}

/// What a recipe cannot know before the data and the image tokenizer are there.
pub struct Facts {
    pub classes: Vec<String>,
    /// Latent channels, pixels a latent stands for, and the latent scale.
    pub latents: Option<(usize, usize, f32)>,
}

impl NoisyClassifierRecipe {
    pub fn canvas(&self) -> Canvas {
        if self.image_tokenizer.is_some() { Canvas::Latents } else { Canvas::Pixels }
    }

    pub fn validate(&self, file: &RecipeFile) -> Result<(), RecipeError> {
        settings::validate(file, &self.optimizer, &self.schedule, &self.train)?;
        self.data.validate(file)?;
        if self.class_field.trim().is_empty() {
            return Err(file.reject("class_field", "expected the name of a field of the pictures' descriptions, found none"));
        }
        validate_level_normal(file, "level_normal", self.level_normal, &self.process)?;
        // With likely facts, sizes that cannot be are found before anything is loaded.
        let likely = Facts { classes: vec!["a".to_string(), "b".to_string()], latents: self.image_tokenizer.as_ref().map(|_| (4, 1, 1.0)) };
        self.config(likely).validate().map_err(|error| {
            let key = error.key.replace("network.", "model.").replace("image_size", "data.image_size");
            file.reject(&key, format!("expected {}, found {}", error.expected, error.found))
        })
    }

    /// What the bundle will say.
    pub fn config(&self, facts: Facts) -> ClassifierConfig {
        let Facts { classes, latents } = facts;
        let (channels, factor) = latents.map_or((3, 1), |(channels, factor, _)| (channels, factor));
        ClassifierConfig {
            image_size: self.data.image_size,
            canvas: self.canvas(),
            latent_scale: latents.map(|(.., scale)| scale),
            process: self.process.clone(),
            network: self.network(channels, self.data.image_size / factor.max(1), classes.len()),
            classes,
        }
    }

    fn network(&self, input_channels: usize, side: usize, class_count: usize) -> noisy::Config {
        let model = &self.model;
        let heads = |channels: &usize| (channels / model.head_channels.max(1)).max(1);
        noisy::Config {
            input_channels,
            class_count,
            level_channels: model.level_channels.clone(),
            residual_block_count: model.residual_block_count,
            attention_levels: model.attention_levels.clone(),
            head_counts: model.level_channels.iter().map(heads).collect(),
            time: time_embedding::Config::latent_diffusion(model.level_channels.first().copied().unwrap_or(0)),
            time_use: model.time_use,
            group_count: model.group_count,
            norm_epsilon: 1e-5,
            pooling: match model.pooling {
                PoolingKind::Mean => Pooling::Mean,
                PoolingKind::Attention => Pooling::Attention { side: side >> model.level_channels.len().saturating_sub(1).min(63) },
            },
        }
    }

    pub fn loop_settings(&self, recipe: String) -> LoopSettings {
        LoopSettings { train: self.train.clone(), optimizer: self.optimizer.clone(), schedule: self.schedule.clone(), recipe }
    }
}
