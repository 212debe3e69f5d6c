//! What can go wrong between a bundle on disk and a picture.

use crate::Part;
use smalti_data::{DataError, PictureError};
use smalti_generation::autoregressive::SampleError;
use smalti_generation::diffusion;
use smalti_models::ConfigError;
use smalti_models::generator::dalle_bart::CaptionError;
use smalti_nn::weights::WeightsError;
use std::convert::Infallible;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: expected a bundle (a folder with bundle.toml), found {found}; hint: {hint}", path.display())]
    NotABundle { path: PathBuf, found: &'static str, hint: &'static str },
    #[error("{}: expected a new or empty folder or a bundle to replace, found other files; hint: choose another folder", path.display())]
    WouldOverwrite { path: PathBuf },
    #[error("{}{}: {reason}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
    Manifest { path: PathBuf, line: Option<usize>, reason: String },
    #[error("{}: expected bundle version {expected}, found {found}; hint: this bundle was written by a newer smalti", path.display())]
    Version { path: PathBuf, expected: u32, found: i64 },
    #[error("{}: expected checksum {expected}, found {found}; hint: the file was changed or damaged after the bundle was written", path.display())]
    Checksum { path: PathBuf, expected: String, found: String },
    #[error("{}: this bundle has no {part}, which is needed to {purpose}; hint: it has {}", path.display(), parts_or_nothing(has))]
    MissingPart { path: PathBuf, part: Part, purpose: &'static str, has: Vec<Part> },
    #[error("{part}: {source}")]
    Config { part: Part, source: ConfigError },
    #[error("{part}: {source}")]
    Weights { part: Part, source: WeightsError },
    #[error("{part}: {source}")]
    TextTokenizer { part: Part, source: DataError },
    /// Two parts of a bundle that cannot work together.
    #[error("{part}: `{key}`: expected {expected}, found {found}")]
    Disagreement { part: Part, key: &'static str, expected: String, found: String },
    #[error("prompt: expected some words, found none; hint: say what to draw")]
    EmptyPrompt,
    #[error("{key}: expected {expected}, found {found}{}", hint.map(|hint| format!("; hint: {hint}")).unwrap_or_default())]
    Request { key: &'static str, expected: String, found: String, hint: Option<&'static str> },
    /// A foreign checkpoint that does not become a part.
    #[error("{}: {reason}", path.display())]
    Import { path: PathBuf, reason: String },
    #[error(transparent)]
    Caption(#[from] CaptionError),
    #[error(transparent)]
    Sampling(#[from] SampleError<Infallible>),
    #[error(transparent)]
    Diffusion(#[from] diffusion::SampleError<Infallible>),
    #[error("{what}: expected finite numbers, found {value}; hint: the weights are damaged or were trained to overflow")]
    NotFinite { what: &'static str, value: f32 },
    #[error(transparent)]
    Picture(#[from] PictureError),
    #[error(transparent)]
    Data(#[from] DataError),
}

impl PipelineError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    /// Whether the one who asked can mend it by asking differently; otherwise a file is wrong.
    pub fn is_wrong_request(&self) -> bool {
        matches!(self, Self::EmptyPrompt | Self::Request { .. } | Self::Sampling(SampleError::Options(_)))
    }
}

fn parts_or_nothing(parts: &[Part]) -> String {
    if parts.is_empty() { "no parts at all".to_string() } else { parts.iter().map(Part::to_string).collect::<Vec<_>>().join(", ") }
}
