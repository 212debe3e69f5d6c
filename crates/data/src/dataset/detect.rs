//! Which layout a place has, from its file names alone.

use std::path::Path;

use super::{DatasetKind, walk, web_dataset};
use crate::DataError;

/// In this order: a shard or a folder with shards (and no pictures beside them, for one of the two would not be meant); `metadata.jsonl` at the top; a metadata
/// file below; class folders (pictures only in sub-folders, no `.txt`); else a folder of pictures.
pub(super) fn kind_of(path: &Path) -> Result<DatasetKind, DataError> {
    if path.is_file() {
        if web_dataset::is_shard(path) {
            return Ok(DatasetKind::WebDataset);
        }
        let hint = "name the folder, or a .tar, .tar.gz or .tgz shard";
        return Err(DataError::NoPictures { path: path.to_path_buf(), found: "a file".into(), hint });
    }
    let files = walk::files(path)?;
    if let Some(shard) = files.iter().find(|file| web_dataset::is_shard(&file.path)) {
        let loose = files.iter().filter(|file| file.is_picture()).count();
        if loose > 0 {
            let found = format!("{loose} pictures beside the shard {}", shard.relative);
            return Err(DataError::NoPictures { path: path.to_path_buf(), found, hint: "move either of them elsewhere" });
        }
        return Ok(DatasetKind::WebDataset);
    }
    if files.iter().any(|file| file.relative == "metadata.jsonl") {
        return Ok(DatasetKind::MetadataJsonl);
    }
    if files.iter().any(|file| matches!(file.relative.rsplit('/').next(), Some("metadata.csv" | "metadata.jsonl"))) {
        return Ok(DatasetKind::ImageFolder);
    }
    let mut pictures = files.iter().filter(|file| file.is_picture()).peekable();
    let only_in_folders = pictures.peek().is_some() && pictures.all(|file| file.relative.contains('/'));
    let texts = files.iter().any(|file| file.extension() == "txt");
    Ok(if only_in_folders && !texts { DatasetKind::ImageFolder } else { DatasetKind::Folder })
}
