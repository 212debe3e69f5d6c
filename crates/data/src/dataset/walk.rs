//! The files below a folder, in a fixed order.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Problem, ProblemKind};
use crate::{DataError, picture};

/// One file below the root.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub path: PathBuf,
    /// Relative to the root, parts joined by `/`.
    pub relative: String,
    /// Bytes.
    pub size: u64,
    /// Why it cannot be a file of the data set.
    problem: Option<String>,
}

impl Found {
    /// The ending in lower case, without its dot; empty when there is none, or when the file cannot be one of the data set.
    pub fn extension(&self) -> String {
        if self.problem.is_some() {
            return String::new();
        }
        self.path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
    }

    pub fn is_picture(&self) -> bool {
        picture::EXTENSIONS.contains(&self.extension().as_str())
    }

    /// The relative path without its ending.
    pub fn key(&self) -> String {
        let ending = self.path.extension().map_or(0, |extension| extension.to_string_lossy().len() + 1);
        self.relative[..self.relative.len() - ending].to_owned()
    }
}

/// Pictures and tables in formats that are not read, and what is no file at all: named, so that nobody trains on half a folder unawares.
pub(super) fn unsupported(files: &[Found]) -> impl Iterator<Item = Problem> {
    files.iter().filter_map(|file| {
        let is_picture = picture::UNSUPPORTED_EXTENSIONS.contains(&file.extension().as_str());
        let is_table = file.relative.rsplit('/').next() == Some("metadata.parquet");
        let table = || ProblemKind::Unreadable("expected metadata.jsonl or metadata.csv; hint: convert it".into());
        let unreadable = || file.problem.clone().map(ProblemKind::Unreadable);
        let kind = unreadable().or_else(|| is_picture.then(unsupported_format)).or_else(|| is_table.then(table))?;
        Some(Problem { place: file.relative.clone(), kind })
    })
}

pub(super) fn unsupported_format() -> ProblemKind {
    ProblemKind::Unreadable("expected a PNG, JPEG, WebP or SVG picture; hint: convert it".into())
}

/// Every file below `root` whose name does not start with a dot, sorted by relative path. Links are followed, each folder once.
pub(super) fn files(root: &Path) -> Result<Vec<Found>, DataError> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    visit(root, "", &mut seen, &mut found)?;
    found.sort_by(|one, other| one.relative.cmp(&other.relative));
    Ok(found)
}

fn visit(folder: &Path, prefix: &str, seen: &mut BTreeSet<PathBuf>, found: &mut Vec<Found>) -> Result<(), DataError> {
    let real = fs::canonicalize(folder).map_err(|error| DataError::io(folder, error))?;
    if !seen.insert(real) {
        return Ok(());
    }
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| DataError::io(folder, error))? {
        entries.push(entry.map_err(|error| DataError::io(folder, error))?);
    }
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let relative = format!("{prefix}{}", name.to_string_lossy());
        let (size, problem) = match fs::metadata(&path) {
            _ if name.to_str().is_none() => (0, Some("expected a name in UTF-8".to_string())),
            Ok(metadata) if metadata.is_dir() => {
                visit(&path, &format!("{relative}/"), seen, found)?;
                continue;
            }
            Ok(metadata) if metadata.is_file() => (metadata.len(), None),
            Ok(_) => (0, Some("expected a file or a folder, found a pipe, a socket or a device".to_string())),
            Err(error) => (0, Some(error.to_string())),
        };
        found.push(Found { path, relative, size, problem });
    }
    Ok(())
}
