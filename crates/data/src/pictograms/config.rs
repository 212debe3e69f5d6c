//! The data recipe: which packages, which styles, what captions, how to split.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::captions;
use crate::{DataError, atomic_write};

/// A data recipe as written in TOML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub kind: Kind,
    /// First part of the shard names.
    pub name: String,
    /// Where the packages are, relative to the working folder.
    pub source_folder: PathBuf,
    /// Side of the pictures in pixels.
    pub size: u32,
    pub background: [u8; 3],
    pub tones: Tones,
    /// Keep only this many concepts, chosen by hash among those that most styles draw. For small samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concept_count: Option<usize>,
    /// Pictures in a shard.
    pub shard_size: usize,
    /// Shards as `.tar.gz`: half the size on disk, slower to enter.
    pub compress: bool,
    /// Drawings that may fail to be drawn before it is an error.
    pub broken_limit: usize,
    /// Templates with `{label}`, `{a_label}`, `{keywords}`, `{style}`; the first is the canonical caption.
    pub captions: Vec<String>,
    pub splits: SplitConfig,
    /// English names of all emoji: npm `emojibase-data`.
    pub labels: PackageConfig,
    /// Keywords of all emoji: npm `emojilib`.
    pub keywords: PackageConfig,
    pub sources: Vec<SourceConfig>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Pictograms,
}

/// Whether each skin tone is a picture of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tones {
    All,
    None,
}

/// What is held out of training, in parts of all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitConfig {
    /// Another word, other splits.
    pub seed: String,
    /// Part of the concepts that is seen in no style.
    pub concepts: f64,
    /// Part of the (concept, style) pairs of the other concepts that is not seen, while both are.
    pub pairs: f64,
}

/// One npm package, pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageConfig {
    pub package: String,
    pub version: String,
    /// Of the `.tgz`, hexadecimal.
    pub sha256: String,
}

/// One set of drawings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    pub package: String,
    pub version: String,
    pub sha256: String,
    pub layout: Layout,
    /// The word in the captions.
    pub style: String,
    /// SPDX.
    pub licence: String,
    /// Who drew it, for ATTRIBUTION.md.
    pub attribution: String,
    /// Iconify only: a sister package with the same names, where this one does not list its code points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names_from: Option<PackageConfig>,
}

/// How a package keeps its drawings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `icons.json` and `chars.json` of `@iconify-json/*`.
    Iconify,
    /// `color/svg/*.svg` and `data/openmoji.json` of `openmoji`.
    Openmoji,
}

impl SourceConfig {
    pub(super) fn pinned(&self) -> PackageConfig {
        PackageConfig { package: self.package.clone(), version: self.version.clone(), sha256: self.sha256.clone() }
    }
}

impl Config {
    /// Writes the recipe; the file appears whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        let text = toml::to_string(self).map_err(|error| DataError::Recipe { path: path.to_path_buf(), reason: error.to_string() })?;
        atomic_write::write(path, text.as_bytes())
    }

    /// Names the first impossible value.
    pub fn validate(&self) -> Result<(), DataError> {
        let wrong = |key, expected: &str, found: String| Err(DataError::Config { key, expected: expected.into(), found });
        if !(8..=4096).contains(&self.size) {
            return wrong("size", "8 to 4096 pixels", self.size.to_string());
        }
        if self.shard_size == 0 {
            return wrong("shard_size", "at least 1", "0".into());
        }
        if self.name.is_empty() || !self.name.chars().all(|character| character.is_ascii_alphanumeric() || "-_".contains(character)) {
            return wrong("name", "letters, digits, - and _", format!("`{}`", self.name));
        }
        for (key, part) in [("splits.concepts", self.splits.concepts), ("splits.pairs", self.splits.pairs)] {
            if !(0.0..=0.5).contains(&part) {
                return wrong(key, "a part in [0, 0.5]", part.to_string());
            }
        }
        if self.sources.is_empty() {
            return wrong("sources", "at least one", "none".into());
        }
        if let Some(style) = self.sources.iter().enumerate().find_map(|(place, source)| {
            let repeated = self.sources[..place].iter().any(|earlier| earlier.style == source.style);
            (repeated || source.style.trim().is_empty()).then_some(&source.style)
        }) {
            return wrong("sources.style", "a different word for each source", format!("`{style}`"));
        }
        if self.captions.is_empty() {
            return wrong("captions", "at least one template", "none".into());
        }
        for template in &self.captions {
            if let Some(unknown) = captions::unknown_placeholder(template) {
                return wrong("captions", &format!("placeholders {}", captions::PLACEHOLDERS.join(" ")), format!("`{unknown}` in `{template}`"));
            }
        }
        Ok(())
    }
}
