//! `system = "diffusion"` as a recipe says it. DDPM, latent diffusion and each stage of Imagen's cascade are one training: they differ in what is drawn on
//! (pixels or latents) and in what the network is told (nothing, a class, text, a smaller picture).

use crate::learning_rate::Schedule;
use crate::pictures::PictureSettings;
use crate::recipe_file::{RecipeError, RecipeFile};
use crate::settings::{self, OptimizerSettings, TrainSettings, expect_range};
use crate::train_loop::LoopSettings;
use serde::{Deserialize, Serialize};
use smalti_generation::diffusion::losses::min_snr_weight;
use smalti_generation::diffusion::{End, Level, Parameterization, Process, Sampler, Spacing, Threshold, Variance};
use smalti_models::generator::efficient_unet;
use smalti_models::generator::unet::{self, DownsamplingPadding, TextConfig, TimeUse, time_embedding};
use smalti_pipeline::manifest::{Canvas, DiffusionConfig, LowResolutionCondition, NetworkConfig, SamplingDefaults, TextCondition};
use std::path::PathBuf;

/// A recipe with `system = "diffusion"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionRecipe {
    pub system: String,
    /// The run is `runs/<name>` unless the command line says otherwise.
    pub name: String,
    /// The bundle with the frozen image tokenizer whose latents are drawn; without one pixels are.
    pub image_tokenizer: Option<PathBuf>,
    /// The bundle with the frozen text encoder; a bundle without one lends the text tower of its contrastive part. A stage of a cascade reads by the encoder
    /// of the stage below.
    pub text_encoder: Option<PathBuf>,
    /// A cascade: the bundle whose pictures this network enlarges. The exported bundle is that one with this stage on top.
    pub stage_below: Option<PathBuf>,
    /// A bundle whose classifier can lead pictures to a class; it becomes part of the exported bundle.
    pub classifier: Option<PathBuf>,
    /// A bundle whose contrastive part will rank pictures; it becomes part of the exported bundle.
    pub contrastive: Option<PathBuf>,
    /// A bundle whose contrastive part, trained from another seed, will measure pictures and never rank them.
    pub judge: Option<PathBuf>,
    pub data: PictureSettings,
    #[serde(default)]
    pub conditions: ConditionSettings,
    pub process: Process,
    pub model: ModelSettings,
    pub loss: LossSettings,
    pub samples: SampleSettings,
    pub optimizer: OptimizerSettings,
    pub schedule: Schedule,
    pub train: TrainSettings,
}

/// `[conditions]`: what the network is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConditionSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<TextCondition>,
    /// The field of a picture's description that names its class, such as `style`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low_resolution: Option<LowResolutionCondition>,
    /// The share of pictures whose caption or class is withheld, without which a guidance scale has no meaning (0.1 in Ho and Salimans 2022).
    pub drop_rate: f64,
    /// Where the states of all captions are kept, which the frozen text encoder makes once; "" keeps none and encodes at every step, as does a training with
    /// fewer examples than there are captions.
    pub text_state_cache: PathBuf,
}

impl Default for ConditionSettings {
    fn default() -> Self {
        Self { text: None, class_field: None, low_resolution: None, drop_rate: 0.0, text_state_cache: PathBuf::from("runs/text_states") }
    }
}

/// `[model.unet]` or `[model.efficient_unet]`; channels of input, text and classes are known from the rest of the recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelSettings {
    Unet(UnetSettings),
    EfficientUnet(EfficientUnetSettings),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnetSettings {
    /// Channels of each level, from the canvas's own size down.
    pub level_channels: Vec<usize>,
    pub residual_block_count: usize,
    pub attention_levels: Vec<usize>,
    #[serde(default = "yes")]
    pub middle_attention: bool,
    /// Channels of one head of attention.
    pub head_channels: usize,
    /// Transformer blocks at each place of attention to text.
    #[serde(default = "one")]
    pub text_block_count: usize,
    pub time_use: TimeUse,
    pub group_count: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EfficientUnetSettings {
    pub base_channels: usize,
    pub levels: Vec<efficient_unet::Level>,
    pub middle: bool,
    pub per: efficient_unet::Per,
    pub head_channels: usize,
    pub group_count: usize,
}

fn yes() -> bool {
    true
}

fn one() -> usize {
    1
}

/// `[loss]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossSettings {
    pub parameterization: Parameterization,
    pub variance: Variance,
    pub weighting: Weighting,
    /// Rectified flow and EDM: mean and standard deviation of the normal number that chooses a level (logit-normal, log-normal).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level_normal: Option<[f64; 2]>,
}

/// The weight of a level's squared error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// 1 everywhere: L_simple.
    Uniform,
    /// Hang et al. 2023 (2303.09556); gamma is 5 there.
    MinSnr { gamma: f64 },
}

impl Weighting {
    pub fn weight(self, parameterization: Parameterization, level: &Level) -> f64 {
        match self {
            Self::Uniform => 1.0,
            Self::MinSnr { gamma } => min_snr_weight(parameterization, level, gamma),
        }
    }
}

/// `[samples]`: what the sheets show, and how the bundle is drawn with unless one asks for another way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleSettings {
    /// Empty: captions of evaluation pictures, every class, or nothing.
    #[serde(default)]
    pub prompts: Vec<String>,
    /// Pictures of each prompt.
    pub count: usize,
    pub guidance_scale: f32,
    pub sampler: Sampler,
    pub steps: usize,
    #[serde(default = "unthresholded")]
    pub threshold: Threshold,
}

fn unthresholded() -> Threshold {
    Threshold::None
}

/// Mean and standard deviation of what chooses a level, where a process draws its levels so.
pub fn validate_level_normal(file: &RecipeFile, key: &str, normal: Option<[f64; 2]>, process: &Process) -> Result<(), RecipeError> {
    let Some([mean, deviation]) = normal else { return Ok(()) };
    expect_range(file, key, mean, -100.0, 100.0)?;
    expect_range(file, key, deviation, 0.0, 100.0)?;
    if matches!(process, Process::VariancePreserving(_)) {
        return Err(file.reject(key, "expected a flow or EDM process: the steps of this one are drawn evenly"));
    }
    Ok(())
}

impl DiffusionRecipe {
    pub fn canvas(&self) -> Canvas {
        if self.image_tokenizer.is_some() { Canvas::Latents } else { Canvas::Pixels }
    }

    pub fn validate(&self, file: &RecipeFile) -> Result<(), RecipeError> {
        settings::validate(file, &self.optimizer, &self.schedule, &self.train)?;
        self.data.validate(file)?;
        let needs = |key: &str, other: &str| Err(file.reject(key, format!("expected `{other}` beside it, found none")));
        let ConditionSettings { text, class_field, low_resolution, drop_rate, .. } = &self.conditions;
        match (text, &self.text_encoder, &self.stage_below) {
            (Some(_), None, None) => return needs("conditions.text", "text_encoder"),
            (None, Some(_), _) => return needs("text_encoder", "conditions.text"),
            (_, Some(_), Some(_)) => return Err(file.reject("text_encoder", "expected none: a stage reads text by the encoder of its `stage_below`")),
            _ => {}
        }
        match (low_resolution, &self.stage_below) {
            (Some(_), None) => return needs("conditions.low_resolution", "stage_below"),
            (None, Some(_)) => return needs("stage_below", "conditions.low_resolution"),
            _ => {}
        }
        if class_field.is_some() && text.is_some() {
            return Err(file.reject("conditions.class_field", "expected either classes or text, found both"));
        }
        if low_resolution.is_some() && self.image_tokenizer.is_some() {
            return Err(file.reject("conditions.low_resolution", "expected pixels to enlarge, found an `image_tokenizer`"));
        }
        if class_field.is_some() && matches!(self.model, ModelSettings::EfficientUnet(_)) {
            return Err(file.reject("conditions.class_field", "expected [model.unet], as the Efficient U-Net is told no classes"));
        }
        expect_range(file, "conditions.drop_rate", *drop_rate, 0.0, 1.0)?;
        if let Weighting::MinSnr { gamma } = self.loss.weighting {
            expect_range(file, "loss.weighting.min_snr.gamma", gamma, f64::MIN_POSITIVE, 1e6)?;
        }
        validate_level_normal(file, "loss.level_normal", self.loss.level_normal, &self.process)?;
        if self.loss.variance == Variance::Learned && !matches!(self.process, Process::VariancePreserving(_)) {
            return Err(file.reject("loss.variance", "expected a fixed one: only variance-preserving processes have the bound it learns from"));
        }
        if self.canvas() == Canvas::Latents && self.samples.threshold != Threshold::None {
            return Err(file.reject("samples.threshold", "expected none: latents have no range to be kept in"));
        }
        if !(1..=64).contains(&self.samples.count) {
            return Err(file.reject("samples.count", format!("expected 1 to 64, found {}", self.samples.count)));
        }
        if !self.samples.guidance_scale.is_finite() {
            return Err(file.reject("samples.guidance_scale", format!("expected a number, found {}", self.samples.guidance_scale)));
        }
        // Channels and classes are only known with the data: with likely ones, sizes that cannot be are found before anything is loaded.
        let classes = if class_field.is_some() { vec![String::new()] } else { Vec::new() };
        let checked = self.config(self.canvas_channels(None), text.as_ref().map(|_| 64), classes).validate();
        checked.map_err(|error| {
            let key = error.key.replace("network.", "model.").replace("sampling.parameterization", "loss.parameterization").replace("sampling.", "samples.");
            file.reject(&key, format!("expected {}, found {}", error.expected, error.found))
        })
    }

    /// Channels of the canvas: those of the latents, or of a picture.
    pub fn canvas_channels(&self, latent_channels: Option<usize>) -> usize {
        match self.canvas() {
            Canvas::Pixels => 3,
            Canvas::Latents => latent_channels.unwrap_or(4),
        }
    }

    /// What the bundle will say.
    pub fn config(&self, channels: usize, text_channels: Option<usize>, classes: Vec<String>) -> DiffusionConfig {
        let SampleSettings { sampler, steps, guidance_scale, threshold, .. } = self.samples;
        let class_count = (!classes.is_empty()).then_some(classes.len() + 1);
        DiffusionConfig {
            image_size: self.data.image_size,
            canvas: self.canvas(),
            latent_scale: None,
            parameterization: self.loss.parameterization,
            variance: self.loss.variance,
            process: self.process.clone(),
            text: self.conditions.text.clone(),
            classes,
            low_resolution: self.conditions.low_resolution.clone(),
            sampling: SamplingDefaults { sampler, steps, guidance_scale, threshold, spacing: Spacing::Trailing, end: End::Clean },
            network: self.network(channels, text_channels, class_count),
        }
    }

    fn network(&self, channels: usize, text_channels: Option<usize>, class_count: Option<usize>) -> NetworkConfig {
        match &self.model {
            ModelSettings::Unet(model) => {
                let heads = |channels: &usize| (channels / model.head_channels.max(1)).max(1);
                NetworkConfig::Unet(unet::Config {
                    input_channels: channels,
                    output_channels: channels,
                    learned_variance: self.loss.variance == Variance::Learned,
                    level_channels: model.level_channels.clone(),
                    residual_block_count: model.residual_block_count,
                    attention_levels: model.attention_levels.clone(),
                    middle_attention: model.middle_attention,
                    head_counts: model.level_channels.iter().map(heads).collect(),
                    text: text_channels.map(|channels| TextConfig { channels, block_count: model.text_block_count }),
                    class_count,
                    time: time_embedding::Config::latent_diffusion(model.level_channels.first().copied().unwrap_or(0)),
                    time_use: model.time_use,
                    downsampling_padding: DownsamplingPadding::AllSides,
                    group_count: model.group_count,
                    norm_epsilon: 1e-5,
                })
            }
            ModelSettings::EfficientUnet(model) => NetworkConfig::EfficientUnet(efficient_unet::Config {
                picture_channels: channels,
                low_resolution: self.conditions.low_resolution.is_some(),
                base_channels: model.base_channels,
                levels: model.levels.clone(),
                middle: model.middle,
                per: model.per,
                head_channels: model.head_channels,
                text_channels,
                time: time_embedding::Config::latent_diffusion(model.base_channels),
                group_count: model.group_count,
            }),
        }
    }

    pub fn loop_settings(&self, recipe: String) -> LoopSettings {
        LoopSettings { train: self.train.clone(), optimizer: self.optimizer.clone(), schedule: self.schedule.clone(), recipe }
    }

    /// What the recipe allows but its author should know.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let conditional = self.conditions.text.is_some() || self.conditions.class_field.is_some();
        if conditional && self.conditions.drop_rate == 0.0 {
            warnings
                .push("conditions.drop_rate is 0: this network will not know what no condition means, so use it with a guidance scale of 1 only".to_string());
        }
        if self.canvas() == Canvas::Latents && self.data.transform().is_random() && self.data.encoded_variants == 1 {
            let use_them = "data.encoded_variants = 4 keeps three changed versions beside the plain picture";
            warnings.push(format!("[data] has random changes of the pictures: latents are made once, without them; {use_them}"));
        }
        warnings
    }
}
