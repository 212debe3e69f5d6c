//! Folders that appear whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use crate::DataError;

/// Fills `out`, which must not exist or be empty, by way of a temporary folder beside it. On error `out` is left as it was.
pub(crate) fn fill(out: &Path, write: impl FnOnce(&Path) -> Result<(), DataError>) -> Result<(), DataError> {
    check_free(out)?;
    let unfinished = unfinished_name(out)?;
    let written = fs::create_dir_all(&unfinished)
        .map_err(|error| DataError::io(&unfinished, error))
        .and_then(|()| write(&unfinished))
        .and_then(|()| put_in_place(&unfinished, out));
    if written.is_err() {
        // The first error is the one worth reporting.
        let _ = fs::remove_dir_all(&unfinished);
    }
    written
}

/// Says early what [`fill`] would refuse.
pub(crate) fn check_free(out: &Path) -> Result<(), DataError> {
    let mut entries = match fs::read_dir(out) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(DataError::io(out, error)),
        Ok(entries) => entries,
    };
    if entries.next().is_some() {
        return Err(DataError::io(out, "expected a new or empty folder, found files in it; hint: remove it or choose another --out"));
    }
    Ok(())
}

fn unfinished_name(out: &Path) -> Result<PathBuf, DataError> {
    let name = out.file_name().ok_or_else(|| DataError::io(out, "expected the name of a folder"))?;
    Ok(out.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id())))
}

fn put_in_place(unfinished: &Path, out: &Path) -> Result<(), DataError> {
    if out.exists() {
        fs::remove_dir(out).map_err(|error| DataError::io(out, error))?;
    }
    fs::rename(unfinished, out).map_err(|error| DataError::io(out, error))
}
