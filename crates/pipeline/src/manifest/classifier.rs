//! What a bundle says of a classifier of noisy canvases: what it was trained on, which a diffusion network that it guides must share.

use super::{Canvas, Provenance, WeightsFile};
use serde::{Deserialize, Serialize};
use smalti_generation::diffusion::Process;
use smalti_models::ConfigError;
use smalti_models::classifier::noisy::{self, Pooling};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierEntry {
    pub weights: WeightsFile,
    pub model: ClassifierModel,
    #[serde(default)]
    pub provenance: Provenance,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassifierModel {
    Noisy(ClassifierConfig),
}

impl ClassifierModel {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Noisy(_) => "noisy",
        }
    }
}

/// A network, the canvases and the process it was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierConfig {
    /// Side in pixels of the pictures (of what an image tokenizer decodes, for a classifier of latents).
    pub image_size: usize,
    pub canvas: Canvas,
    /// Of a classifier of latents: what they were multiplied with. Measured on data, it also tells one image tokenizer from another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent_scale: Option<f32>,
    pub process: Process,
    /// Names of classes, in the order of their numbers.
    pub classes: Vec<String>,
    pub network: noisy::Config,
}

impl ClassifierConfig {
    /// Whether the parts of the config fit each other; an impossible one is an error that names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.network.validate().map_err(|error| ConfigError { key: format!("network.{}", error.key), ..error })?;
        self.process.validate().map_err(|error| ConfigError::new(format!("process.{}", error.key), error.expected, error.found))?;
        ConfigError::check((1..=1 << 14).contains(&self.image_size), "image_size", "1 to 16384", self.image_size)?;
        let (names, expected) = (self.classes.len(), self.network.class_count);
        ConfigError::check(names == expected, "classes", format!("{expected} names, as the network has classes"), names)?;
        if let Some(name) = self.classes.iter().enumerate().find_map(|(place, name)| (self.class_number(name) != Some(place)).then_some(name)) {
            return Err(ConfigError::new("classes", "names that differ by more than upper and lower case", name));
        }
        let scaled = self.latent_scale.is_some();
        ConfigError::check(scaled == (self.canvas == Canvas::Latents), "latent_scale", "a number just where latents are classified", scaled)?;
        match self.canvas {
            Canvas::Pixels => self.check_side(self.image_size),
            Canvas::Latents => Ok(()),
        }
    }

    /// Whether canvases of this side can be classified; that of latents is known where their image tokenizer is.
    pub fn check_side(&self, side: usize) -> Result<(), ConfigError> {
        let divisor = self.network.side_divisor();
        ConfigError::check(side.is_multiple_of(divisor), "image_size", format!("a canvas whose side is a multiple of {divisor}"), side)?;
        match self.network.pooling {
            Pooling::Attention { side: found } if found != side / divisor => {
                Err(ConfigError::new("network.pooling.attention.side", format!("{}, as a canvas of {side} is on the last level", side / divisor), found))
            }
            _ => Ok(()),
        }
    }

    /// The number of a class by its name, in upper or lower case.
    pub fn class_number(&self, name: &str) -> Option<usize> {
        self.classes.iter().position(|class| class.eq_ignore_ascii_case(name))
    }
}
