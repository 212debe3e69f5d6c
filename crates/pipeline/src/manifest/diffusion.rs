//! What a bundle says of a diffusion network: the process it was trained on, what it draws on, what it is told, how it is usually walked.

use serde::{Deserialize, Serialize};
use smalti_generation::diffusion::{End, Parameterization, Plan, Process, Sampler, Spacing, Threshold, Variance};
use smalti_models::ConfigError;
use smalti_models::generator::{efficient_unet, unet};
use std::fmt;

/// A denoising network, the process it was trained on, and how it is usually walked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionConfig {
    /// Side in pixels of the pictures it makes (of what its image tokenizer decodes, for one that makes latents).
    pub image_size: usize,
    pub canvas: Canvas,
    /// Of a network of latents: what they were multiplied with. Measured on data, it also tells one image tokenizer from another. (Bundles from before it
    /// was recorded have none.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent_scale: Option<f32>,
    pub parameterization: Parameterization,
    pub variance: Variance,
    pub process: Process,
    /// Captions as conditions; their states come from the bundle's text encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextCondition>,
    /// Names of classes, in the order of their numbers; one more number means "no class".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Super-resolution: the picture of the stage below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_resolution: Option<LowResolutionCondition>,
    pub sampling: SamplingDefaults,
    pub network: NetworkConfig,
}

/// What a diffusion network draws on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Canvas {
    Pixels,
    /// The latents of the bundle's image tokenizer, times its latent scale.
    Latents,
}

impl fmt::Display for Canvas {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Pixels => write!(f, "pixels"),
            Self::Latents => write!(f, "latents"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextCondition {
    /// Every caption is padded or cut to so many text tokens.
    pub token_count: usize,
    /// Whether the network attends to padding, as Stable Diffusion does and Imagen does not.
    pub attend_to_padding: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowResolutionCondition {
    /// Side in pixels of the picture that is enlarged.
    pub image_size: usize,
    /// Noise added to it when sampling, as a share of the steps of the process, in [0, 1] (Imagen's aug_level).
    pub noise_level: f64,
}

/// How a generator is walked unless one asks for another way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingDefaults {
    pub sampler: Sampler,
    pub steps: usize,
    pub guidance_scale: f32,
    pub threshold: Threshold,
    /// Which of the trained steps are walked; of variance-preserving processes.
    #[serde(default = "trailing", skip_serializing_if = "is_trailing")]
    pub spacing: Spacing,
    /// Where DDIM ends, of variance-preserving processes. Every other sampler ends on the clean picture, as `diffusers` has it.
    #[serde(default = "clean", skip_serializing_if = "is_clean")]
    pub end: End,
}

fn trailing() -> Spacing {
    Spacing::Trailing
}

fn is_trailing(spacing: &Spacing) -> bool {
    *spacing == Spacing::Trailing
}

fn clean() -> End {
    End::Clean
}

fn is_clean(end: &End) -> bool {
    *end == End::Clean
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkConfig {
    Unet(unet::Config),
    EfficientUnet(efficient_unet::Config),
}

impl NetworkConfig {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unet(_) => "unet",
            Self::EfficientUnet(_) => "efficient_unet",
        }
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::Unet(config) => config.validate(),
            Self::EfficientUnet(config) => config.validate(),
        }
    }

    /// Channels of what it draws on.
    pub fn channels(&self) -> usize {
        match self {
            Self::Unet(config) => config.output_channels,
            Self::EfficientUnet(config) => config.picture_channels,
        }
    }

    pub fn text_channels(&self) -> Option<usize> {
        match self {
            Self::Unet(config) => config.text.as_ref().map(|text| text.channels),
            Self::EfficientUnet(config) => config.text_channels,
        }
    }

    pub fn class_count(&self) -> Option<usize> {
        match self {
            Self::Unet(config) => config.class_count,
            Self::EfficientUnet(_) => None,
        }
    }

    /// Whether it enlarges a smaller picture.
    pub fn low_resolution(&self) -> bool {
        match self {
            Self::Unet(_) => false,
            Self::EfficientUnet(config) => config.low_resolution,
        }
    }

    /// What the sides of the canvas must be divisible by.
    pub fn side_divisor(&self) -> usize {
        match self {
            Self::Unet(config) => config.side_divisor(),
            Self::EfficientUnet(config) => config.side_divisor(),
        }
    }

    pub fn learned_variance(&self) -> bool {
        match self {
            Self::Unet(config) => config.learned_variance,
            Self::EfficientUnet(_) => false,
        }
    }
}

impl DiffusionConfig {
    /// Whether the parts of the config fit each other; an impossible one is an error that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.network.validate().map_err(|error| ConfigError { key: format!("network.{}.{}", self.network.kind(), error.key), ..error })?;
        self.process.validate().map_err(|error| ConfigError::new(format!("process.{}", error.key), error.expected, error.found))?;
        self.plan().validate().map_err(|error| ConfigError::new(format!("sampling.{}", error.key), error.expected, error.found))?;
        ConfigError::check((1..=1 << 14).contains(&self.image_size), "image_size", "1 to 16384", self.image_size)?;
        let scaled = self.latent_scale.is_some();
        ConfigError::check(!scaled || self.canvas == Canvas::Latents, "latent_scale", "a number only where latents are drawn", scaled)?;
        let guidance = self.sampling.guidance_scale;
        ConfigError::check(guidance.is_finite(), "sampling.guidance_scale", "a finite number", guidance)?;
        let learned = self.variance == Variance::Learned;
        ConfigError::check(self.network.learned_variance() == learned, "variance", "learned just where the network has outputs for it", learned)?;
        let (text, network_text) = (self.text.is_some(), self.network.text_channels().is_some());
        ConfigError::check(text == network_text, "text", "a table [text] just where the network attends to text", text)?;
        if let Some(text) = &self.text {
            ConfigError::check((1..=4096).contains(&text.token_count), "text.token_count", "1 to 4096", text.token_count)?;
        }
        let (classes, expected) = (self.classes.len(), self.network.class_count().map_or(0, |count| count - 1));
        ConfigError::check(classes == expected, "classes", format!("{expected} names, one fewer than the network has classes"), classes)?;
        let enlarges = self.low_resolution.is_some();
        ConfigError::check(self.network.low_resolution() == enlarges, "low_resolution", "a table just where the network enlarges a picture", enlarges)?;
        if let Some(low_resolution) = &self.low_resolution {
            let (expected, found) = (format!("1 to {}, below image_size", self.image_size - 1), low_resolution.image_size);
            ConfigError::check((1..self.image_size).contains(&found), "low_resolution.image_size", expected, found)?;
            let level = low_resolution.noise_level;
            ConfigError::check((0.0..=1.0).contains(&level), "low_resolution.noise_level", "0 to 1", level)?;
        }
        Ok(())
    }

    /// Height, width and channels of what is drawn on; an image tokenizer makes its latents `factor` times smaller than pictures.
    pub fn canvas_shape(&self, factor: usize) -> [usize; 3] {
        let side = match self.canvas {
            Canvas::Pixels => self.image_size,
            Canvas::Latents => self.image_size / factor,
        };
        [side, side, self.network.channels()]
    }

    /// The usual walk.
    pub fn plan(&self) -> Plan {
        self.plan_with(self.sampling.sampler)
    }

    /// The usual walk, by another sampler.
    pub fn plan_with(&self, sampler: Sampler) -> Plan {
        let SamplingDefaults { steps, threshold, spacing, end, .. } = self.sampling;
        let end = if matches!(sampler, Sampler::Ddim { .. }) { end } else { End::Clean };
        Plan { variance: self.variance, threshold, spacing, end, ..Plan::new(self.process.clone(), self.parameterization, sampler, steps) }
    }
}
