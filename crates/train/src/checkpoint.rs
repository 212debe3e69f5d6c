//! Checkpoints: folders that are whole or not there, and checked before they are believed.
//!
//! `checkpoints/step-00000100/` holds the files of every learner, the recipe's own state and `checkpoint.json`: progress, and size and SHA-256 of every
//! other file. It is written under a temporary name, flushed to the disk and renamed. Reading goes from the newest to the oldest and takes the first that
//! is whole; the others are named in warnings. After a rollback the same step is saved again with the lower rate, as `step-00000100-rollback-1`.

use crate::TrainError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smalti_nn::weights::{flush_folder, write_atomically};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// How far a run has come. Everything random is derived from the recipe's seed and `step`, and so is the place in the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// Times the run went back to a checkpoint because a loss was not finite.
    pub rollbacks: usize,
    /// What those left of the learning rate.
    pub rate_factor: f64,
    /// Time spent training, for the log.
    pub seconds: f64,
}

impl Progress {
    pub fn start() -> Self {
        Self { step: 0, rollbacks: 0, rate_factor: 1.0, seconds: 0.0 }
    }

    fn folder_name(&self) -> String {
        match self.rollbacks {
            0 => format!("step-{:08}", self.step),
            rollbacks => format!("step-{:08}-rollback-{rollbacks}", self.step),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    progress: Progress,
    /// file name -> size in bytes and SHA-256
    files: BTreeMap<String, (u64, String)>,
}

const MANIFEST: &str = "checkpoint.json";

/// Writes a checkpoint: `write` fills the folder it is given. Then the oldest are removed until `keep` are left, this one among them. Newer ones are broken, or the
/// run would have gone on from them; they do not count, and are overwritten when the run comes to their step.
pub fn save(checkpoints: &Path, progress: &Progress, keep: usize, write: impl FnOnce(&Path) -> Result<(), TrainError>) -> Result<PathBuf, TrainError> {
    let folder = checkpoints.join(progress.folder_name());
    let temporary = checkpoints.join(format!(".{}.tmp", progress.folder_name()));
    let failed = |reason: String| TrainError::CheckpointWrite { path: folder.clone(), reason };
    let written = start_folder(&temporary).map_err(|error| failed(error.to_string())).and_then(|()| {
        write(&temporary).map_err(|error| failed(error.to_string()))?;
        seal(&temporary, progress).and_then(|()| replace(&temporary, &folder)).map_err(|error| failed(error.to_string()))
    });
    if let Err(error) = written {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&temporary);
        return Err(error);
    }
    for old in list(checkpoints)?.into_iter().filter(|old| order(old) <= order(&folder)).skip(keep.max(1)) {
        remove(&old).map_err(|source| TrainError::io(&old, source))?;
    }
    Ok(folder)
}

/// The newest whole checkpoint; each broken one that is newer is given to `warn`. Removes what a crash left half-written.
pub fn newest(checkpoints: &Path, warn: &mut dyn FnMut(String)) -> Result<Option<(PathBuf, Progress)>, TrainError> {
    let half_written = |name: &str| name.starts_with(".step-") && name.ends_with(".tmp");
    for entry in entries(checkpoints)? {
        if entry.is_dir() && entry.file_name().is_some_and(|name| half_written(&name.to_string_lossy())) {
            fs::remove_dir_all(&entry).map_err(|source| TrainError::io(&entry, source))?;
        }
    }
    for folder in list(checkpoints)? {
        match verify(&folder) {
            Ok(progress) => return Ok(Some((folder, progress))),
            Err(reason) => warn(format!("checkpoint {}: {reason}; skipped", folder.display())),
        }
    }
    Ok(None)
}

/// Compares every file with the manifest.
fn verify(folder: &Path) -> Result<Progress, String> {
    let text = fs::read_to_string(folder.join(MANIFEST)).map_err(|error| format!("{MANIFEST}: {error}"))?;
    let (checksum, body) = text.split_once('\n').ok_or_else(|| format!("{MANIFEST}: cut short"))?;
    if checksum != hex(&Sha256::digest(body)) {
        return Err(format!("{MANIFEST}: its checksum does not fit its text"));
    }
    let manifest: Manifest = serde_json::from_str(body).map_err(|error| format!("{MANIFEST}: {error}"))?;
    for (name, (size, checksum)) in &manifest.files {
        let path = folder.join(name);
        let found = fs::metadata(&path).map_err(|error| format!("{name}: {error}"))?.len();
        if found != *size {
            return Err(format!("{name}: expected {size} bytes, found {found}"));
        }
        if digest(&path).map_err(|error| format!("{name}: {error}"))? != *checksum {
            return Err(format!("{name}: its bytes do not fit their checksum"));
        }
    }
    Ok(manifest.progress)
}

fn start_folder(temporary: &Path) -> io::Result<()> {
    if temporary.exists() {
        fs::remove_dir_all(temporary)?;
    }
    fs::create_dir_all(temporary)
}

fn seal(folder: &Path, progress: &Progress) -> io::Result<()> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), (entry.metadata()?.len(), digest(&entry.path())?));
    }
    let body = serde_json::to_string_pretty(&Manifest { progress: progress.clone(), files }).map_err(io::Error::other)?;
    let text = format!("{}\n{body}", hex(&Sha256::digest(&body)));
    write_atomically(&folder.join(MANIFEST), |writer| writer.write_all(text.as_bytes()))
}

fn replace(temporary: &Path, folder: &Path) -> io::Result<()> {
    if folder.exists() {
        remove(folder)?;
    }
    fs::rename(temporary, folder)?;
    flush_folder(folder.parent().unwrap_or(Path::new(".")))
}

/// Renames first, so that a crash in between leaves nothing that looks like a checkpoint.
fn remove(folder: &Path) -> io::Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let doomed = folder.with_file_name(format!(".{name}.old.tmp"));
    fs::rename(folder, &doomed)?;
    fs::remove_dir_all(&doomed)
}

/// Every checkpoint folder, newest first.
fn list(checkpoints: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let mut found: Vec<_> = entries(checkpoints)?.into_iter().filter_map(|path| Some((order(&path)?, path))).collect();
    found.sort();
    Ok(found.into_iter().rev().map(|(_, path)| path).collect())
}

fn entries(checkpoints: &Path) -> Result<Vec<PathBuf>, TrainError> {
    if !checkpoints.exists() {
        return Ok(Vec::new());
    }
    let failed = |source| TrainError::io(checkpoints, source);
    fs::read_dir(checkpoints).map_err(failed)?.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
}

/// `step-00000100-rollback-1` -> (rollbacks, step): a run that went back has left what came after behind.
fn order(path: &Path) -> Option<(usize, usize)> {
    let name = path.file_name()?.to_str()?.strip_prefix("step-")?;
    let (step, rollbacks) = name.split_once("-rollback-").unwrap_or((name, "0"));
    Some((rollbacks.parse().ok()?, step.parse().ok()?))
}

fn digest(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
