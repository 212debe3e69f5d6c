//! Tar shards whose bytes depend on nothing but their content: fixed order, no times, no owners.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::{Compression, GzBuilder};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::captions;
use super::config::Config;
use super::rasterise::Drawn;
use super::splits::Split;
use crate::{DataError, atomic_write};

/// Writes `OUT/SPLIT/NAME-SPLIT-NNNN.tar` for each split that has pictures.
pub(super) fn write_all(config: &Config, drawn: &[Drawn], assigned: &[Split], out: &Path) -> Result<(), DataError> {
    for split in Split::ALL {
        let mut members: Vec<&Drawn> = drawn.iter().zip(assigned).filter(|(_, assigned)| **assigned == split).map(|(one, _)| one).collect();
        // By hash: a reader that goes straight through meets the styles and concepts mixed.
        members.sort_by_cached_key(|one| <[u8; 32]>::from(Sha256::digest(&one.key)));
        if members.is_empty() {
            continue;
        }
        let folder = out.join(split.name());
        fs::create_dir_all(&folder).map_err(|error| DataError::io(&folder, error))?;
        for (number, members) in members.chunks(config.shard_size).enumerate() {
            let ending = if config.compress { "tar.gz" } else { "tar" };
            let path = folder.join(format!("{}-{}-{number:04}.{ending}", config.name, split.name()));
            let bytes = shard(config, members, split, &path)?;
            atomic_write::write(&path, &bytes)?;
        }
    }
    Ok(())
}

fn shard(config: &Config, members: &[&Drawn], split: Split, path: &Path) -> Result<Vec<u8>, DataError> {
    let failed = |error: std::io::Error| DataError::io(path, error);
    let mut tar = Builder::new(Vec::new());
    for one in members {
        append(&mut tar, &format!("{}.png", one.key), &one.png).map_err(failed)?;
        append(&mut tar, &format!("{}.json", one.key), description(config, one, split).as_bytes()).map_err(failed)?;
    }
    let bytes = tar.into_inner().map_err(failed)?;
    if !config.compress {
        return Ok(bytes);
    }
    // No name and no time in the gzip header either.
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    gzip.write_all(&bytes).map_err(failed)?;
    gzip.finish().map_err(failed)
}

fn append(tar: &mut Builder<Vec<u8>>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, name, bytes)
}

fn description(config: &Config, one: &Drawn, split: Split) -> String {
    let source = &config.sources[one.source];
    json!({
        "captions": captions::write(&config.captions, &one.meaning, &source.style),
        "label": one.meaning.label,
        "concept": one.meaning.concept,
        "style": source.style,
        "split": split.name(),
        "licence": source.licence,
        "source": format!("{} {}", source.package, source.version),
    })
    .to_string()
}
