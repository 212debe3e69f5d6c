//! What can be wrong with pictures, captions and data recipes.

use std::path::{Path, PathBuf};

/// Why one picture cannot be used. Carries no name: whoever knows the file or key adds it ([`DataError::Picture`]).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PictureError {
    #[error("expected a PNG, JPEG, WebP or SVG picture, found {found}")]
    UnknownFormat { found: String },
    #[error("expected at most {limit} pixels, found {width}x{height}; hint: raise `pixel_limit` if this picture is meant to be that large")]
    TooManyPixels { width: u64, height: u64, limit: u64 },
    #[error("{format} picture is damaged or cut short: {reason}")]
    Damaged { format: &'static str, reason: String },
    #[error("expected width and height of at least 1, found {width}x{height}")]
    Empty { width: u64, height: u64 },
    #[error("expected {expected} values for {width}x{height} RGB, found {found}")]
    WrongLength { width: usize, height: usize, expected: usize, found: usize },
    #[error("picture text key `{key}`: {reason}")]
    Text { key: String, reason: String },
}

/// Everything the data crate reports; each message names the path, key, line or field.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{}: {reason}", path.display())]
    Io { path: PathBuf, reason: String },
    #[error("picture `{key}`: {reason}")]
    Picture { key: String, reason: PictureError },
    #[error("picture `{key}`: expected a caption, found a blank one")]
    BlankCaption { key: String },
    #[error("{}: expected a folder of pictures, a metadata.jsonl, or .tar shards, found {found}; hint: {hint}", path.display())]
    NoPictures { path: PathBuf, found: String, hint: &'static str },
    #[error("shard {}: {reason}", path.display())]
    Shard { path: PathBuf, reason: String },
    #[error("{}:{line}: {reason}", path.display())]
    Metadata { path: PathBuf, line: usize, reason: String },
    #[error("{}: {count} problems found, limit is {limit}; one is {first}; hint: mend the data, or raise `problem_limit`", path.display())]
    TooManyProblems { path: PathBuf, count: usize, limit: usize, first: String },
    #[error("{count} broken pictures, `broken_limit` is {limit}; the last is `{key}`: {reason}")]
    TooManyBroken { count: usize, limit: usize, key: String, reason: String },
    #[error("every one of the {count} pictures is broken; the last is `{key}`: {reason}")]
    AllBroken { count: usize, key: String, reason: String },
    #[error("`{key}`: expected {expected}, found {found}")]
    Config { key: &'static str, expected: String, found: String },
    #[error("text tokenizer{}: {reason}", path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
    TextTokenizer { path: Option<PathBuf>, reason: String },
    #[error("data recipe {}: {reason}", path.display())]
    Recipe { path: PathBuf, reason: String },
    #[error("pictogram source {}: {reason}", path.display())]
    Source { path: PathBuf, reason: String },
    #[error("a loader worker stopped unexpectedly; the run cannot go on")]
    WorkerLost,
}

impl DataError {
    /// An input or output error with the path it happened at.
    pub fn io(path: &Path, error: impl std::fmt::Display) -> Self {
        Self::Io { path: path.to_path_buf(), reason: error.to_string() }
    }
}
