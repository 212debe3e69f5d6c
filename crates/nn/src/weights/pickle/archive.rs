//! The format since PyTorch 1.6: a zip archive of `data.pkl` and one uncompressed entry `data/<key>` for each storage.

use super::super::WeightsError;
use super::value::TensorView;
use super::{PICKLE_SIZE_LIMIT, machine, naming};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use zip::{CompressionMethod, ZipArchive};

pub struct Archive<'a> {
    path: &'a Path,
    file_size: u64,
    zip: ZipArchive<BufReader<File>>,
    /// `archive/` in `archive/data.pkl`.
    folder: String,
}

impl<'a> Archive<'a> {
    pub fn open(path: &'a Path, file: File, file_size: u64) -> Result<Self, WeightsError> {
        let format = |reason: String| WeightsError::format(path, reason);
        let zip = ZipArchive::new(BufReader::with_capacity(1 << 20, file)).map_err(|error| format(format!("{error}; hint: the file may be cut short")))?;
        let pickle = zip.file_names().flatten().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl")).map(|name| name.into_owned());
        let pickle = pickle.ok_or_else(|| format("expected a PyTorch checkpoint, found a zip archive without data.pkl".into()))?;
        let folder = pickle.trim_end_matches("data.pkl").to_string();
        Ok(Self { path, file_size, zip, folder })
    }

    fn error(&self, reason: impl Into<String>) -> WeightsError {
        WeightsError::format(self.path, reason)
    }

    /// An entry of the archive, whole. PyTorch stores without compression, so no entry can be larger than the file.
    pub fn entry(&mut self, name: &str, limit: u64) -> Result<Vec<u8>, WeightsError> {
        let full_name = format!("{}{name}", self.folder);
        let path = self.path;
        let format = |reason: String| WeightsError::format(path, format!("entry `{full_name}`: {reason}"));
        let entry = self.zip.by_name(&full_name).map_err(|error| format(error.to_string()))?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(format("expected it uncompressed, as torch.save writes it; hint: save the checkpoint again with torch.save".into()));
        }
        let limit = limit.min(self.file_size);
        if entry.size() > limit {
            return Err(format(format!("expected at most {limit} bytes, found a claim of {}", entry.size())));
        }
        let mut bytes = Vec::new();
        // Reading to the end also compares the checksum.
        entry.take(limit).read_to_end(&mut bytes).map_err(|error| format(format!("{error}; hint: the file may be damaged or cut short")))?;
        Ok(bytes)
    }

    /// All tensors that the pickle describes, by name, not yet compared with their storages.
    pub fn views(&mut self) -> Result<BTreeMap<String, TensorView>, WeightsError> {
        if self.zip.index_for_name(&format!("{}byteorder", self.folder)).is_some() && self.entry("byteorder", 16)? != b"little" {
            return Err(self.error("expected little-endian numbers; hint: save the checkpoint again on a common machine"));
        }
        let pickle = self.entry("data.pkl", PICKLE_SIZE_LIMIT)?;
        let machine::Run { root, heap, .. } = machine::run(&pickle).map_err(|reason| self.error(reason))?;
        naming::tensors(&heap, root).map_err(|reason| self.error(reason))
    }
}
