//! A data set on disk: an index of captioned pictures, each read when asked for.
//!
//! | kind | on disk | captions |
//! |---|---|---|
//! | `folder` | pictures at any depth | `NAME.txt` beside `NAME.png`, one caption a line |
//! | `metadata_jsonl` | pictures and one `metadata.jsonl` | `text` (or `caption`, `captions`): a string or a list |
//! | `image_folder` | Hugging Face imagefolder | `metadata.jsonl` / `metadata.csv` in any folder, else the name of the class folder |
//! | `web_dataset` | tar shards (`.tar`, `.tar.gz`, `.tgz`) | `.txt`, or `.json` with `captions`, `caption` or `text` |
//!
//! [`open`] reads names and sizes (and the captions of metadata files), never pictures. Anything odd is a [`Problem`]: named, counted,
//! and over `problem_limit` an error.

mod caption_record;
mod detect;
mod folder;
mod image_folder;
mod metadata;
mod walk;
mod web_dataset;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::DataError;
pub use caption_record::Description;

/// Which layout on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetKind {
    Folder,
    MetadataJsonl,
    ImageFolder,
    WebDataset,
}

/// Whether a picture may come without a caption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptionRule {
    /// It is kept, with no captions: right for training an image tokenizer.
    #[default]
    Optional,
    /// It is a problem, left out and counted: right for training from captions.
    Required,
}

/// Where a data set is and what it may lack. Part of every training recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetConfig {
    /// A folder, or one tar shard.
    pub path: PathBuf,
    /// Without it the layout is recognised; with it nothing is guessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<DatasetKind>,
    #[serde(default)]
    pub captions: CaptionRule,
    /// How many problems (a caption without picture, a key used twice ...) are skipped before it is an error.
    #[serde(default)]
    pub problem_limit: usize,
}

impl DatasetConfig {
    /// Kind recognised, captions optional, no problem tolerated.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), kind: None, captions: CaptionRule::Optional, problem_limit: 0 }
    }
}

/// One thing wrong with a data set; the entry it names is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A path, or `shard/key`.
    pub place: String,
    pub kind: ProblemKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    CaptionWithoutPicture,
    PictureWithoutCaption,
    /// The key was used before; the first one counts.
    DuplicateKey,
    /// A metadata line or file that cannot be read, in words.
    Unreadable(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            ProblemKind::CaptionWithoutPicture => write!(formatter, "`{}`: caption without picture", self.place),
            ProblemKind::PictureWithoutCaption => write!(formatter, "`{}`: picture without caption", self.place),
            ProblemKind::DuplicateKey => write!(formatter, "`{}`: key used more than once", self.place),
            ProblemKind::Unreadable(reason) => write!(formatter, "`{}`: {reason}", self.place),
        }
    }
}

/// One captioned picture, still encoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Unique within the data set: the path without its ending, or `shard/key`.
    pub key: String,
    /// PNG, JPEG, WebP or SVG bytes.
    pub picture: Vec<u8>,
    /// None, one or several.
    pub captions: Vec<String>,
    /// Further facts such as `concept`, `style`, `split`, `class`.
    pub fields: BTreeMap<String, String>,
}

/// An opened data set. Reading is `&self` and may happen on many threads.
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    kind: DatasetKind,
    keys: Vec<String>,
    picture_sizes: Vec<u64>,
    problems: Vec<Problem>,
    source: Source,
    captions: CaptionRule,
    problem_limit: usize,
}

/// Where sample i is read from.
#[derive(Debug)]
enum Source {
    Files(Vec<FileEntry>),
    Shards(web_dataset::Shards),
}

/// A picture file and what is known about it without opening it.
#[derive(Debug)]
struct FileEntry {
    picture: PathBuf,
    captions: CaptionSource,
}

#[derive(Debug)]
enum CaptionSource {
    None,
    /// A text file, one caption a line.
    TextFile(PathBuf),
    Known(Description),
}

/// What a reader hands to [`open`].
struct Index {
    keys: Vec<String>,
    picture_sizes: Vec<u64>,
    source: Source,
    problems: Vec<Problem>,
}

/// Opens a data set: finds its pictures and captions and reports everything that does not fit.
///
/// Errors: a missing or empty place, a shard cut short, more problems than `problem_limit`.
pub fn open(config: &DatasetConfig) -> Result<Dataset, DataError> {
    let path = &config.path;
    if let Err(error) = std::fs::metadata(path) {
        return Err(DataError::NoPictures { path: path.clone(), found: error.to_string(), hint: "check `path`" });
    }
    let kind = match config.kind {
        Some(kind) => kind,
        None => detect::kind_of(path)?,
    };
    let index = match kind {
        DatasetKind::Folder => folder::index(path, config.captions)?,
        DatasetKind::MetadataJsonl => metadata::index(path, config.captions)?,
        DatasetKind::ImageFolder => image_folder::index(path, config.captions)?,
        DatasetKind::WebDataset => web_dataset::index(path, config.captions)?,
    };
    if index.problems.len() > config.problem_limit {
        let first = index.problems[0].to_string();
        return Err(DataError::TooManyProblems { path: path.clone(), count: index.problems.len(), limit: config.problem_limit, first });
    }
    if index.keys.is_empty() {
        let hint = "pictures are .png, .jpg, .jpeg, .webp and .svg";
        return Err(DataError::NoPictures { path: path.clone(), found: "no picture".into(), hint });
    }
    let Index { keys, picture_sizes, source, problems } = index;
    let DatasetConfig { captions, problem_limit, .. } = *config;
    Ok(Dataset { path: path.clone(), kind, keys, picture_sizes, problems, source, captions, problem_limit })
}

impl Dataset {
    /// How many pictures. At least 1.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Never true: [`open`] refuses an empty place.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn kind(&self) -> DatasetKind {
        self.kind
    }

    /// The key of picture `index`. Panics when `index >= len()`.
    pub fn key(&self, index: usize) -> &str {
        &self.keys[index]
    }

    /// Bytes of picture `index` as it lies on the disk. Panics when `index >= len()`.
    pub fn picture_size(&self, index: usize) -> u64 {
        self.picture_sizes[index]
    }

    /// What was left out, within `problem_limit`.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Reads picture `index` with its captions. Panics when `index >= len()`.
    pub fn sample(&self, index: usize) -> Result<Sample, DataError> {
        let picture = match &self.source {
            Source::Files(entries) => {
                let path = &entries[index].picture;
                std::fs::read(path).map_err(|error| DataError::io(path, error))?
            }
            Source::Shards(shards) => shards.picture(index)?,
        };
        let Description { captions, fields } = self.description(index)?;
        Ok(Sample { key: self.keys[index].clone(), picture, captions, fields })
    }

    /// Captions and fields of picture `index`, without reading the picture. Panics when `index >= len()`.
    ///
    /// Errors: unreadable, or blank where captions are required.
    pub fn description(&self, index: usize) -> Result<Description, DataError> {
        let description = self.read_description(index)?;
        if self.captions == CaptionRule::Required && description.captions.is_empty() {
            return Err(DataError::BlankCaption { key: self.keys[index].clone() });
        }
        Ok(description)
    }

    fn read_description(&self, index: usize) -> Result<Description, DataError> {
        match &self.source {
            Source::Files(entries) => match &entries[index].captions {
                CaptionSource::None => Ok(Description::default()),
                CaptionSource::Known(description) => Ok(description.clone()),
                CaptionSource::TextFile(path) => {
                    let bytes = std::fs::read(path).map_err(|error| DataError::io(path, error))?;
                    Description::from_text(&bytes).map_err(|reason| DataError::io(path, reason))
                }
            },
            Source::Shards(shards) => shards.description(index),
        }
    }

    /// Every caption of every picture, in order: what a text tokenizer is trained on. Captions that cannot be read count as problems:
    /// passed over within `problem_limit`, an error above it.
    pub fn captions(&self) -> Result<Vec<String>, DataError> {
        let (mut captions, mut unreadable_count) = (Vec::new(), 0);
        for index in 0..self.len() {
            match self.description(index) {
                Ok(description) => captions.extend(description.captions),
                Err(error) => {
                    unreadable_count += 1;
                    let count = self.problems.len() + unreadable_count;
                    if count > self.problem_limit {
                        let (path, limit, first) = (self.path.clone(), self.problem_limit, error.to_string());
                        return Err(DataError::TooManyProblems { path, count, limit, first });
                    }
                }
            }
        }
        Ok(captions)
    }

    /// SHA-256 over kind, keys and picture sizes in bytes: changes when pictures come, go or are replaced by others of another size.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(format!("{:?}", self.kind));
        for (key, size) in self.keys.iter().zip(&self.picture_sizes) {
            hasher.update((key.len() as u64).to_le_bytes());
            hasher.update(key.as_bytes());
            hasher.update(size.to_le_bytes());
        }
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Ranges of indices within which reading in any order is cheap. One range, unless the shards are compressed: a compressed shard is
    /// unpacked in memory whole, so each is a range of its own and a loader finishes one before the next.
    pub fn blocks(&self) -> Vec<Range<usize>> {
        match &self.source {
            Source::Files(_) => std::iter::once(0..self.len()).collect(),
            Source::Shards(shards) => shards.blocks(),
        }
    }
}

#[cfg(test)]
mod tests;
