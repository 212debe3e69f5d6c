//! `bundle.toml`: what a bundle says about itself.
//!
//! ```toml
//! version = 1
//! name = "pictograms"
//!
//! [image_tokenizer]
//! file = "image_tokenizer.safetensors"
//! sha256 = "9f86d0..."
//! parameter_count = 6543210
//! storage = "f16"
//! image_size = 64
//! [image_tokenizer.model.vqgan.network]     # the kind of network, with its typed config
//! ...
//! [image_tokenizer.provenance]
//! steps = 20000
//! ```

mod classifier;
mod diffusion;

use crate::PipelineError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smalti_data::text_tokenizer::{SpecialTokens, TextTokenizer};
use smalti_models::ConfigError;
use smalti_models::contrastive::clip;
use smalti_models::generator::dalle_bart;
use smalti_models::image_tokenizer::{autoencoder_kl, autoencoder_tiny, vqgan};
use smalti_models::text_encoder::{bert, clip_text, t5};
use smalti_nn::weights::safetensors::Storage;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

pub use classifier::{ClassifierConfig, ClassifierEntry, ClassifierModel};
pub use diffusion::{Canvas, DiffusionConfig, LowResolutionCondition, NetworkConfig, SamplingDefaults, TextCondition};

/// Name of the manifest in a bundle's folder.
pub const FILE_NAME: &str = "bundle.toml";
/// The format this program writes and reads.
pub const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub version: u32,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_tokenizer: Option<ImageTokenizerEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_encoder: Option<TextEncoderEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generator: Option<GeneratorEntry>,
    /// The further stages of a cascade, from the smallest picture up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub super_resolution: Vec<GeneratorEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classifier: Option<ClassifierEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contrastive: Option<ContrastiveEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<ContrastiveEntry>,
}

/// The parts a bundle may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    ImageTokenizer,
    /// Text tokens to states that a diffusion network attends to.
    TextEncoder,
    Generator,
    /// A further stage of a cascade, counted from 0.
    SuperResolution(usize),
    /// Leads a diffusion network to a class.
    Classifier,
    /// Ranks pictures.
    Contrastive,
    /// Measures pictures, and never ranks them: a measure that was optimised measures nothing.
    Judge,
}

impl Part {
    /// Its key in the manifest.
    pub fn key(self) -> &'static str {
        match self {
            Self::ImageTokenizer => "image_tokenizer",
            Self::TextEncoder => "text_encoder",
            Self::Generator => "generator",
            Self::SuperResolution(_) => "super_resolution",
            Self::Classifier => "classifier",
            Self::Contrastive => "contrastive",
            Self::Judge => "judge",
        }
    }

    /// What its files are called.
    pub(crate) fn file_stem(self) -> String {
        match self {
            Self::SuperResolution(stage) => format!("super_resolution_{}", stage + 1),
            _ => self.key().to_string(),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}`", self.key())
    }
}

/// A file of weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsFile {
    pub file: String,
    pub sha256: String,
    pub parameter_count: usize,
    pub storage: Storage,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextTokenizerFile {
    pub file: String,
    pub sha256: String,
    pub pad_token: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_token: Option<u32>,
    pub end_token: u32,
}

impl TextTokenizerFile {
    pub(crate) fn new(file: String, text_tokenizer: &TextTokenizer) -> Self {
        let SpecialTokens { pad, start, end } = text_tokenizer.special_tokens();
        Self { file, sha256: text_tokenizer.sha256(), pad_token: pad, start_token: start, end_token: end }
    }

    pub(crate) fn special_tokens(&self) -> SpecialTokens {
        SpecialTokens { pad: self.pad_token, start: self.start_token, end: self.end_token }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageTokenizerEntry {
    pub weights: WeightsFile,
    /// Side in pixels of the square pictures it was trained on.
    pub image_size: usize,
    /// What brings latents to unit variance, measured on data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent_scale: Option<f32>,
    pub model: ImageTokenizerModel,
    #[serde(default)]
    pub provenance: Provenance,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageTokenizerModel {
    Vqgan(vqgan::Config),
    AutoencoderKl(autoencoder_kl::Config),
    AutoencoderTiny(autoencoder_tiny::Config),
}

impl ImageTokenizerModel {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vqgan(_) => "vqgan",
            Self::AutoencoderKl(_) => "autoencoder_kl",
            Self::AutoencoderTiny(_) => "autoencoder_tiny",
        }
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::Vqgan(config) => config.validate(),
            Self::AutoencoderKl(config) => config.validate(),
            Self::AutoencoderTiny(config) => config.validate(),
        }
    }

    /// A picture has so many times the side of its latents.
    pub fn downsampling_factor(&self) -> usize {
        match self {
            Self::Vqgan(config) => config.network.downsampling_factor(),
            Self::AutoencoderKl(config) => config.network.downsampling_factor(),
            Self::AutoencoderTiny(config) => config.downsampling_factor(),
        }
    }

    pub fn latent_channels(&self) -> usize {
        match self {
            // What the generator sees is what the codebook would replace.
            Self::Vqgan(config) => config.quantizer.code_channels,
            Self::AutoencoderKl(config) => config.network.latent_channels,
            Self::AutoencoderTiny(config) => config.latent_channels,
        }
    }

    /// Codes of the codebook; `None` where latents are continuous.
    pub fn code_count(&self) -> Option<usize> {
        match self {
            Self::Vqgan(config) => Some(config.quantizer.code_count),
            Self::AutoencoderKl(_) | Self::AutoencoderTiny(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorEntry {
    pub weights: WeightsFile,
    /// Absent in imported weights whose text tokenizer was not given: they can be looked at and trained on, not prompted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_tokenizer: Option<TextTokenizerFile>,
    pub model: GeneratorModel,
    /// How image tokens are usually drawn; a diffusion network's model says it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<ImageTokenSampling>,
    #[serde(default)]
    pub provenance: Provenance,
}

/// How a generator of image tokens is drawn with unless a request says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageTokenSampling {
    pub guidance_scale: f64,
    pub temperature: f64,
    /// All image tokens where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
}

impl Default for ImageTokenSampling {
    /// For bundles that say nothing.
    fn default() -> Self {
        Self { guidance_scale: 3.0, temperature: 1.0, top_k: None }
    }
}

impl ImageTokenSampling {
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { guidance_scale, temperature, top_k } = *self;
        ConfigError::check(guidance_scale.is_finite(), "sampling.guidance_scale", "a finite number", guidance_scale)?;
        ConfigError::check(temperature.is_finite() && temperature > 0.0, "sampling.temperature", "a number above 0", temperature)?;
        ConfigError::check(top_k != Some(0), "sampling.top_k", "at least 1", 0)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GeneratorModel {
    DalleBart(dalle_bart::Config),
    Diffusion(Box<DiffusionConfig>),
}

impl GeneratorModel {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::DalleBart(_) => "dalle_bart",
            Self::Diffusion(config) => config.network.kind(),
        }
    }

    /// Entries of the text vocabulary, where the generator reads text tokens itself.
    pub fn text_vocabulary(&self) -> Option<usize> {
        match self {
            Self::DalleBart(config) => Some(config.text_vocabulary),
            Self::Diffusion(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoderEntry {
    pub weights: WeightsFile,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_tokenizer: Option<TextTokenizerFile>,
    pub model: TextEncoderModel,
    #[serde(default)]
    pub provenance: Provenance,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextEncoderModel {
    ClipText(clip_text::Config),
    T5(t5::Config),
    Bert(bert::Config),
}

impl TextEncoderModel {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ClipText(_) => "clip_text",
            Self::T5(_) => "t5",
            Self::Bert(_) => "bert",
        }
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::ClipText(config) => config.validate(),
            Self::T5(config) => config.validate(),
            Self::Bert(config) => config.validate(),
        }
    }

    /// Channels of each state.
    pub fn channels(&self) -> usize {
        match self {
            Self::ClipText(config) => config.transformer.channels,
            Self::T5(config) => config.channels,
            Self::Bert(config) => config.channels,
        }
    }

    /// Entries of the text vocabulary.
    pub fn vocabulary_size(&self) -> usize {
        match self {
            Self::ClipText(config) => config.vocabulary_size,
            Self::T5(config) => config.vocabulary_size,
            Self::Bert(config) => config.vocabulary_size,
        }
    }

    /// The most text tokens it reads; `None` where places are relative and any number goes.
    pub fn context_length(&self) -> Option<usize> {
        match self {
            Self::ClipText(config) => Some(config.context_length),
            Self::T5(_) => None,
            Self::Bert(config) => Some(config.context_length),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContrastiveEntry {
    pub weights: WeightsFile,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_tokenizer: Option<TextTokenizerFile>,
    pub model: ContrastiveModel,
    #[serde(default)]
    pub provenance: Provenance,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContrastiveModel {
    Clip(clip::Config),
}

/// Where weights come from and what they can do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Provenance {
    /// What was imported, for weights that were not trained here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The training data, as the recipe names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// The recipe with every override, as TOML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// Measured results by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub results: BTreeMap<String, f64>,
}

impl Manifest {
    /// Reads `bundle.toml`; `path` names it in errors. Unknown keys are errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, PipelineError> {
        let line_of = |error: &toml::de::Error| error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let wrong =
            |error: toml::de::Error| PipelineError::Manifest { path: path.to_path_buf(), line: line_of(&error), reason: error.message().trim().to_string() };
        let table: toml::Table = toml::from_str(text).map_err(wrong)?;
        // The version comes first: a newer format may have any other keys.
        if let Some(found) = table.get("version").and_then(toml::Value::as_integer).filter(|&found| found != i64::from(VERSION)) {
            return Err(PipelineError::Version { path: path.to_path_buf(), expected: VERSION, found });
        }
        let manifest: Self = toml::from_str(text).map_err(wrong)?;
        manifest.check_file_names(path)?;
        Ok(manifest)
    }

    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a manifest holds only what TOML can say")
    }

    /// The name and the start of the manifest's checksum, which covers every weight: `pictograms-3f2a91c07b1e`.
    pub fn id(&self) -> String {
        format!("{}-{}", self.name, &sha256(self.to_toml().as_bytes())[..12])
    }

    /// The parts that are there, in the order in which a picture is made.
    pub fn parts(&self) -> Vec<Part> {
        let there = |part: Part, there: bool| there.then_some(part);
        let before = [
            there(Part::ImageTokenizer, self.image_tokenizer.is_some()),
            there(Part::TextEncoder, self.text_encoder.is_some()),
            there(Part::Generator, self.generator.is_some()),
        ];
        let after = [
            there(Part::Classifier, self.classifier.is_some()),
            there(Part::Contrastive, self.contrastive.is_some()),
            there(Part::Judge, self.judge.is_some()),
        ];
        let stages = (0..self.super_resolution.len()).map(Part::SuperResolution);
        before.into_iter().flatten().chain(stages).chain(after.into_iter().flatten()).collect()
    }

    /// Height, width and channels of the noise that a diffusion network starts from (the first, in a cascade); `None` for other generators.
    pub fn canvas(&self) -> Option<[usize; 3]> {
        let GeneratorModel::Diffusion(config) = &self.generator.as_ref()?.model else { return None };
        Some(config.canvas_shape(self.image_tokenizer.as_ref().map_or(1, |entry| entry.model.downsampling_factor())))
    }

    /// The weights, kind of network and provenance of a part.
    pub fn summary(&self, part: Part) -> Option<(&WeightsFile, &'static str, &Provenance)> {
        let clip = |entry: &ContrastiveEntry| match entry.model {
            ContrastiveModel::Clip(_) => "clip",
        };
        match part {
            Part::ImageTokenizer => self.image_tokenizer.as_ref().map(|entry| (&entry.weights, entry.model.kind(), &entry.provenance)),
            Part::TextEncoder => self.text_encoder.as_ref().map(|entry| (&entry.weights, entry.model.kind(), &entry.provenance)),
            Part::Generator => self.generator.as_ref().map(|entry| (&entry.weights, entry.model.kind(), &entry.provenance)),
            Part::SuperResolution(stage) => self.super_resolution.get(stage).map(|entry| (&entry.weights, entry.model.kind(), &entry.provenance)),
            Part::Classifier => self.classifier.as_ref().map(|entry| (&entry.weights, entry.model.kind(), &entry.provenance)),
            Part::Contrastive => self.contrastive.as_ref().map(|entry| (&entry.weights, clip(entry), &entry.provenance)),
            Part::Judge => self.judge.as_ref().map(|entry| (&entry.weights, clip(entry), &entry.provenance)),
        }
    }

    /// One for each part that has one; parts may share a file.
    pub fn text_tokenizers(&self) -> impl Iterator<Item = &TextTokenizerFile> {
        let encoder = self.text_encoder.iter().filter_map(|entry| entry.text_tokenizer.as_ref());
        let contrastive = [&self.contrastive, &self.judge].into_iter().flatten().filter_map(|entry| entry.text_tokenizer.as_ref());
        encoder.chain(self.generator.iter().filter_map(|entry| entry.text_tokenizer.as_ref())).chain(contrastive)
    }

    /// Files lie in the bundle's own folder: a manifest cannot point at anything else on the disk.
    fn check_file_names(&self, path: &Path) -> Result<(), PipelineError> {
        let weights = self.parts().into_iter().filter_map(|part| self.summary(part)).map(|(weights, _, _)| &weights.file);
        for file in weights.chain(self.text_tokenizers().map(|entry| &entry.file)) {
            if file.is_empty() || file.starts_with('.') || file.contains(['/', '\\', ':', '\0']) {
                let reason = format!("`file`: expected the name of a file beside the manifest, found `{file}`");
                return Err(PipelineError::Manifest { path: path.to_path_buf(), line: None, reason });
            }
        }
        Ok(())
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
