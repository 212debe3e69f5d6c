//! Files appear whole or not at all: written under a temporary name in the same folder, flushed to disk, then renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::DataError;

/// Writes `bytes` to `path`, replacing what was there in one step. On error nothing new is left behind.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    write_with(path, |file| file.write_all(bytes).map_err(|error| DataError::io(path, error)))
}

/// As [`write`], for contents that are produced piece by piece.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut File) -> Result<(), DataError>) -> Result<(), DataError> {
    let temporary = temporary_name(path)?;
    let written = (|| {
        let mut file = File::create(&temporary).map_err(|error| DataError::io(path, error))?;
        fill(&mut file)?;
        file.sync_all().map_err(|error| DataError::io(path, error))?;
        fs::rename(&temporary, path).map_err(|error| DataError::io(path, error))?;
        // The new name too must survive a crash; systems that cannot open a folder (Windows) see to it on their own.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if cfg!(unix) { File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| DataError::io(path, error)) } else { Ok(()) }
    })();
    if written.is_err() {
        // The first error is the one worth reporting; a leftover `.tmp` is never taken for the real file.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Unlike for every process, so that two programs writing the same file do not write into each other's temporary.
fn temporary_name(path: &Path) -> Result<PathBuf, DataError> {
    let name = path.file_name().ok_or_else(|| DataError::io(path, "expected the name of a file"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", std::process::id()));
    Ok(path.with_file_name(temporary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_and_leaves_nothing_on_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let failed = write_with(&path, |file| {
            file.write_all(b"half").map_err(|error| DataError::io(&path, error))?;
            Err(DataError::io(&path, "disk full"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn unwritable_place_is_named() {
        let message = write(Path::new("/nonexistent-folder/a.png"), b"x").unwrap_err().to_string();
        assert!(message.starts_with("/nonexistent-folder/a.png"), "{message}");
    }
}
