//! WebDataset tar shards whose bytes depend on nothing but their content: fixed order, no times, no owners.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::{DataError, atomic_write};

/// One captioned picture of a shard.
pub(crate) struct Member<'a> {
    pub key: &'a str,
    pub png: &'a [u8],
    /// JSON.
    pub description: String,
}

/// How shards are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shards<'a> {
    /// First part of the file names.
    pub name: &'a str,
    /// Pictures in a shard.
    pub size: usize,
    /// `.tar.gz`
    pub compress: bool,
}

impl Shards<'_> {
    /// Writes `OUT/SPLIT/NAME-SPLIT-NNNN.tar`; nothing where there are no members.
    pub fn write(self, mut members: Vec<Member>, split: &str, out: &Path) -> Result<(), DataError> {
        if members.is_empty() {
            return Ok(());
        }
        // By hash: a reader that goes straight through meets everything mixed.
        members.sort_by_cached_key(|member| <[u8; 32]>::from(Sha256::digest(member.key)));
        let folder = out.join(split);
        fs::create_dir_all(&folder).map_err(|error| DataError::io(&folder, error))?;
        for (number, members) in members.chunks(self.size).enumerate() {
            let ending = if self.compress { "tar.gz" } else { "tar" };
            let path = folder.join(format!("{}-{split}-{number:04}.{ending}", self.name));
            let files = members
                .iter()
                .flat_map(|member| [(format!("{}.png", member.key), member.png), (format!("{}.json", member.key), member.description.as_bytes())]);
            let bytes = tar(files, self.compress).map_err(|error| DataError::io(&path, error))?;
            atomic_write::write(&path, &bytes)?;
        }
        Ok(())
    }
}

/// An archive of files in the order given.
pub(crate) fn tar<'a>(files: impl Iterator<Item = (String, &'a [u8])>, compress: bool) -> std::io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, name, bytes)?;
    }
    let bytes = tar.into_inner()?;
    if !compress {
        return Ok(bytes);
    }
    // No name and no time in the gzip header either.
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    gzip.write_all(&bytes)?;
    gzip.finish()
}
