//! Reads files out of npm packages: straight from `NAME-VERSION.tgz` as `npm pack` writes it, or from an unpacked folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::config::PackageConfig;
use crate::DataError;

/// The largest file wanted is the 60 MB `icons.json` of the shaded set.
const FILE_LIMIT: u64 = 1 << 28;

/// The files of a package whose path inside it satisfies `wanted`, by that path.
pub(super) fn read_files(pinned: &PackageConfig, source_folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<u8>>, DataError> {
    let stem = format!("{}-{}", pinned.package.trim_start_matches('@').replace('/', "-"), pinned.version);
    let archive = source_folder.join(format!("{stem}.tgz"));
    if archive.is_file() {
        verify(&archive, &pinned.sha256)?;
        return from_archive(&archive, wanted);
    }
    let unpacked = [source_folder.join(&stem).join("package"), source_folder.join(&stem), source_folder.join("node_modules").join(&pinned.package)];
    match unpacked.into_iter().find(|folder| folder.join("package.json").is_file()) {
        Some(folder) => {
            check_version(&folder, pinned)?;
            from_folder(&folder, wanted)
        }
        None => {
            let reason = format!("expected {stem}.tgz (npm pack {}@{}); hint: run tools/fetch_pictograms.sh", pinned.package, pinned.version);
            Err(DataError::Source { path: source_folder.to_path_buf(), reason })
        }
    }
}

/// One file that must be there.
pub(super) fn read_file(pinned: &PackageConfig, source_folder: &Path, name: &str) -> Result<Vec<u8>, DataError> {
    let missing =
        || DataError::Source { path: source_folder.to_path_buf(), reason: format!("package {}: expected the file {name}, found none", pinned.package) };
    read_files(pinned, source_folder, |path| path == name)?.remove(name).ok_or_else(missing)
}

/// Parses a JSON file of a package.
pub(super) fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], pinned: &PackageConfig, name: &str) -> Result<T, DataError> {
    let path = PathBuf::from(&pinned.package).join(name);
    serde_json::from_slice(bytes).map_err(|error| DataError::Source { path, reason: error.to_string() })
}

fn verify(archive: &Path, expected: &str) -> Result<(), DataError> {
    let bytes = fs::read(archive).map_err(|error| DataError::io(archive, error))?;
    let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if found == expected.to_lowercase() {
        return Ok(());
    }
    Err(DataError::Source { path: archive.to_path_buf(), reason: format!("expected SHA-256 {expected}, found {found}; hint: fetch it again") })
}

fn check_version(folder: &Path, pinned: &PackageConfig) -> Result<(), DataError> {
    let path = folder.join("package.json");
    let bytes = fs::read(&path).map_err(|error| DataError::io(&path, error))?;
    let description: serde_json::Value = parse(&bytes, pinned, "package.json")?;
    let found = description.get("version").and_then(|version| version.as_str()).unwrap_or("no version");
    if found == pinned.version {
        return Ok(());
    }
    Err(DataError::Source { path, reason: format!("expected version {}, found {found}", pinned.version) })
}

fn from_archive(archive: &Path, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<u8>>, DataError> {
    let read = || -> io::Result<BTreeMap<String, Vec<u8>>> {
        let mut files = BTreeMap::new();
        let mut tar = tar::Archive::new(MultiGzDecoder::new(BufReader::new(File::open(archive)?)));
        for entry in tar.entries()? {
            let mut entry = entry?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            // npm puts everything below one folder, by custom `package`.
            let Some((_, inside)) = path.split_once('/') else { continue };
            if entry.header().entry_type().is_file() && wanted(inside) {
                if entry.size() > FILE_LIMIT {
                    return Err(io::Error::other(format!("{inside}: expected at most {FILE_LIMIT} bytes, found {}", entry.size())));
                }
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                files.insert(inside.to_owned(), bytes);
            }
        }
        Ok(files)
    };
    read().map_err(|error| DataError::io(archive, error))
}

fn from_folder(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<u8>>, DataError> {
    let mut files = BTreeMap::new();
    let mut folders = vec![(folder.to_path_buf(), String::new())];
    while let Some((place, prefix)) = folders.pop() {
        for entry in fs::read_dir(&place).map_err(|error| DataError::io(&place, error))? {
            let entry = entry.map_err(|error| DataError::io(&place, error))?;
            let (path, inside) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
            if path.is_dir() {
                folders.push((path, format!("{inside}/")));
            } else if wanted(&inside) {
                files.insert(inside, fs::read(&path).map_err(|error| DataError::io(&path, error))?);
            }
        }
    }
    Ok(files)
}
