//! The data recipe: which parts, in what words, and which combinations are held out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::captions;
use crate::DataError;

/// A data recipe as written in TOML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub kind: Kind,
    /// First part of the shard names and of the pictures' keys.
    pub name: String,
    /// Where the parts are, relative to the working folder: one folder of PNGs for each attribute.
    pub source_folder: PathBuf,
    /// Side of the pictures in pixels, a multiple of the parts' own.
    pub size: usize,
    pub background: [u8; 3],
    /// Another word, other dolls and other splits.
    pub seed: String,
    pub train_count: usize,
    /// Dolls with at least one held-out combination.
    pub held_out_count: usize,
    /// Part of all combinations of two values of different attributes that no training doll has.
    pub held_out_combinations: f64,
    /// Pictures in a shard.
    pub shard_size: usize,
    /// Shards as `.tar.gz`.
    pub compress: bool,
    /// Templates with `{subject}` and `{others}`; the first, with the others in the order of the attributes, is the canonical caption.
    pub captions: Vec<String>,
    /// The attribute that is the `{subject}` of a caption.
    pub subject: String,
    /// Where the parts come from, for ATTRIBUTION.md.
    pub source: String,
    /// SPDX.
    pub licence: String,
    pub attribution: String,
    /// From the back of the picture to its front.
    pub attributes: Vec<AttributeConfig>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Dolls,
}

/// What a doll has one of, or none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeConfig {
    /// Also the name of the field in the shards.
    pub name: String,
    /// Below `source_folder`.
    pub folder: String,
    /// Part of the dolls without it.
    #[serde(default)]
    pub absent: f64,
    /// File name without `.png` -> the words for it in a caption.
    pub values: BTreeMap<String, String>,
}

impl Config {
    /// Names the first impossible value.
    pub fn validate(&self) -> Result<(), DataError> {
        let wrong = |key, expected: &str, found: String| Err(DataError::Config { key, expected: expected.into(), found });
        if !(8..=4096).contains(&self.size) {
            return wrong("size", "8 to 4096 pixels", self.size.to_string());
        }
        for (key, count) in [("shard_size", self.shard_size), ("train_count", self.train_count), ("held_out_count", self.held_out_count)] {
            if !(1..=10_000_000).contains(&count) {
                return wrong(key, "1 to 10,000,000", count.to_string());
            }
        }
        if self.name.is_empty() || !self.name.chars().all(|character| character.is_ascii_alphanumeric() || "-_".contains(character)) {
            return wrong("name", "letters, digits, - and _", format!("`{}`", self.name));
        }
        if !(0.001..=0.5).contains(&self.held_out_combinations) {
            return wrong("held_out_combinations", "a part in [0.001, 0.5]", self.held_out_combinations.to_string());
        }
        let mut words = BTreeSet::new();
        for attribute in &self.attributes {
            let name = &attribute.name;
            if name.is_empty() || ["captions", "text", "caption", "split", "licence", "source"].contains(&name.as_str()) {
                return wrong("attributes.name", "a word that is no other field of the shards", format!("`{name}`"));
            }
            if self.attributes.iter().filter(|other| other.name == *name).count() > 1 {
                return wrong("attributes.name", "a different word for each attribute", format!("`{name}` twice"));
            }
            if !(0.0..=0.9).contains(&attribute.absent) {
                return wrong("attributes.absent", "a part in [0, 0.9]", attribute.absent.to_string());
            }
            if attribute.values.len() < 2 {
                return wrong("attributes.values", "at least two", format!("{} of `{name}`", attribute.values.len()));
            }
            if let Some(repeated) = attribute.values.values().find(|value| value.trim().is_empty() || !words.insert(value.as_str())) {
                return wrong("attributes.values", "different words for each part", format!("`{repeated}`"));
            }
        }
        match self.attributes.iter().find(|attribute| attribute.name == self.subject) {
            None => return wrong("subject", "the name of an attribute", format!("`{}`", self.subject)),
            Some(subject) if subject.absent > 0.0 => return wrong("subject", "an attribute that every doll has", format!("`{}`", self.subject)),
            Some(_) => {}
        }
        if !self.attributes.iter().any(|attribute| attribute.name != self.subject && attribute.absent == 0.0) {
            return wrong("attributes.absent", "0 for one attribute beside the subject, so that every caption has something to tell", "none".into());
        }
        if self.captions.is_empty() {
            return wrong("captions", "at least one template", "none".into());
        }
        for template in &self.captions {
            if captions::PLACEHOLDERS.iter().any(|placeholder| template.matches(placeholder).count() != 1) {
                return wrong("captions", &format!("each of {} once", captions::PLACEHOLDERS.join(" and ")), format!("`{template}`"));
            }
        }
        Ok(())
    }
}
