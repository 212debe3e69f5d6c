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

use crate::PipelineError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smalti_data::text_tokenizer::{SpecialTokens, TextTokenizer};
use smalti_models::{contrastive::clip, generator::dalle_bart, image_tokenizer::vqgan};
use smalti_nn::weights::safetensors::Storage;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

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
    pub generator: Option<GeneratorEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contrastive: Option<ContrastiveEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<ContrastiveEntry>,
}

/// The parts a bundle may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    ImageTokenizer,
    Generator,
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
            Self::Generator => "generator",
            Self::Contrastive => "contrastive",
            Self::Judge => "judge",
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
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorEntry {
    pub weights: WeightsFile,
    /// Absent in imported weights whose text tokenizer was not given: they can be looked at and trained on, not prompted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_tokenizer: Option<TextTokenizerFile>,
    pub model: GeneratorModel,
    #[serde(default)]
    pub provenance: Provenance,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GeneratorModel {
    DalleBart(dalle_bart::Config),
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
        [
            (Part::ImageTokenizer, self.image_tokenizer.is_some()),
            (Part::Generator, self.generator.is_some()),
            (Part::Contrastive, self.contrastive.is_some()),
            (Part::Judge, self.judge.is_some()),
        ]
        .into_iter()
        .filter_map(|(part, there)| there.then_some(part))
        .collect()
    }

    /// The weights, kind of network and provenance of a part.
    pub fn summary(&self, part: Part) -> Option<(&WeightsFile, &'static str, &Provenance)> {
        let clip = |entry: &ContrastiveEntry| match entry.model {
            ContrastiveModel::Clip(_) => "clip",
        };
        match part {
            Part::ImageTokenizer => self.image_tokenizer.as_ref().map(|entry| match entry.model {
                ImageTokenizerModel::Vqgan(_) => (&entry.weights, "vqgan", &entry.provenance),
            }),
            Part::Generator => self.generator.as_ref().map(|entry| match entry.model {
                GeneratorModel::DalleBart(_) => (&entry.weights, "dalle_bart", &entry.provenance),
            }),
            Part::Contrastive => self.contrastive.as_ref().map(|entry| (&entry.weights, clip(entry), &entry.provenance)),
            Part::Judge => self.judge.as_ref().map(|entry| (&entry.weights, clip(entry), &entry.provenance)),
        }
    }

    /// One for each part that has one; parts may share a file.
    pub fn text_tokenizers(&self) -> impl Iterator<Item = &TextTokenizerFile> {
        let contrastive = [&self.contrastive, &self.judge].into_iter().flatten().filter_map(|entry| entry.text_tokenizer.as_ref());
        self.generator.iter().filter_map(|entry| entry.text_tokenizer.as_ref()).chain(contrastive)
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
