//! What a run keeps of its data set, to tell when it resumes whether the pictures are still the same: their names and sizes in order, not their bytes. And
//! checksums of the frozen networks and of the text tokenizer that it was started with.
//!
//! A batch is a pure function of (data set, seed, step); with other pictures a resumed run would silently be another one. Captions are looked at only by the
//! text tokenizer that is made of them.

use crate::TrainError;
use serde::{Deserialize, Serialize};
use smalti_data::dataset::{Dataset, DatasetKind};
use smalti_nn::weights::write_atomically;
use smalti_pipeline::{BundleFolder, Part};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Larger sets are known by their number and checksum only: a list would be larger than a checkpoint.
const LIST_LIMIT: usize = 100_000;

/// Names are relative to the data set, so that it may move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecord {
    kind: DatasetKind,
    picture_count: usize,
    /// Over kind, names and sizes, see [`Dataset::fingerprint`].
    fingerprint: String,
    /// Name and bytes of each picture in order; empty where they are too many.
    pictures: Vec<(String, u64)>,
    /// Checksums by the keys of the recipe that name them; runs from before they were kept have none.
    #[serde(default)]
    inputs: BTreeMap<String, String>,
}

impl DataRecord {
    pub fn of(dataset: &Dataset, inputs: BTreeMap<String, String>) -> Self {
        let listed = if dataset.len() <= LIST_LIMIT { dataset.len() } else { 0 };
        let pictures = (0..listed).map(|index| (dataset.key(index).to_string(), dataset.picture_size(index))).collect();
        Self { kind: dataset.kind(), picture_count: dataset.len(), fingerprint: dataset.fingerprint(), pictures, inputs }
    }

    /// `None` where there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, TrainError> {
        match fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map(Some).map_err(|error| TrainError::io(path, error.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(TrainError::io(path, source)),
        }
    }

    pub fn write(&self, path: &Path) -> Result<(), TrainError> {
        let text = serde_json::to_string(self).map_err(|error| TrainError::io(path, error.into()))?;
        write_atomically(path, |writer| writer.write_all(text.as_bytes())).map_err(|source| TrainError::io(path, source))
    }

    /// What is different in `found`, in words; `None` for the same data set.
    pub fn difference(&self, found: &Self) -> Option<String> {
        let other = |(key, started): (&String, &String)| found.inputs.get(key).filter(|found| *found != started).map(|_| key.clone());
        match self.inputs.iter().find_map(other).as_deref() {
            Some("text_tokenizer") => return Some("its captions make another text tokenizer".to_string()),
            Some(key) => return Some(format!("`{key}` is no longer the one it was started with")),
            None => {}
        }
        if self.fingerprint == found.fingerprint {
            return None;
        }
        if self.kind != found.kind {
            return Some(format!("the data set was read as {:?}, is {:?}", self.kind, found.kind));
        }
        let sizes = |record: &Self| record.pictures.iter().cloned().collect::<BTreeMap<_, _>>();
        let (old, new) = (sizes(self), sizes(found));
        let mut differences = Vec::new();
        if !old.is_empty() && !new.is_empty() {
            for (name, size) in &old {
                match new.get(name) {
                    None => differences.push(format!("`{name}` is missing")),
                    Some(other) if other != size => differences.push(format!("`{name}` had {size} bytes, has {other}")),
                    Some(_) => {}
                }
            }
            differences.extend(new.keys().filter(|name| !old.contains_key(*name)).map(|name| format!("`{name}` is new")));
        }
        Some(match (differences.as_slice(), self.picture_count == found.picture_count) {
            ([], false) => format!("there were {} of them, there are {}", self.picture_count, found.picture_count),
            ([], true) => "their names, sizes or order".to_string(),
            ([only], _) => only.clone(),
            ([first, rest @ ..], _) => format!("{first}, and {} more differences", rest.len()),
        })
    }
}

/// The checksum of the weights of a bundle's part, which stands in its manifest; empty where it has no such part.
pub fn part_checksum(bundle: &Path, part: Part) -> Result<String, TrainError> {
    Ok(BundleFolder::open(bundle)?.manifest().summary(part).map_or(String::new(), |(weights, ..)| weights.sha256.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pictures: &[(&str, u64)]) -> DataRecord {
        let pictures: Vec<(String, u64)> = pictures.iter().map(|(name, size)| (name.to_string(), *size)).collect();
        DataRecord { kind: DatasetKind::Folder, picture_count: pictures.len(), fingerprint: format!("{pictures:?}"), pictures, inputs: BTreeMap::new() }
    }

    #[test]
    fn what_changed_is_named() {
        let started = record(&[("a", 10), ("b", 20)]);
        let difference = |pictures: &[(&str, u64)]| started.difference(&record(pictures));
        assert_eq!(difference(&[("a", 10), ("b", 20)]), None);
        assert_eq!(difference(&[("a", 10)]).unwrap(), "`b` is missing");
        assert_eq!(difference(&[("a", 11), ("b", 20)]).unwrap(), "`a` had 10 bytes, has 11");
        assert_eq!(difference(&[("a", 10), ("b", 20), ("c", 30)]).unwrap(), "`c` is new");
        assert_eq!(difference(&[("a", 10), ("c", 20)]).unwrap(), "`b` is missing, and 1 more differences");
        assert_eq!(difference(&[("b", 20), ("a", 10)]).unwrap(), "their names, sizes or order");
        let unlisted = |count: usize, fingerprint: &str| DataRecord { picture_count: count, fingerprint: fingerprint.into(), ..record(&[]) };
        let with = |checksum: &str| DataRecord { inputs: BTreeMap::from([("image_tokenizer".to_string(), checksum.to_string())]), ..started.clone() };
        assert_eq!(with("1").difference(&with("2")).unwrap(), "`image_tokenizer` is no longer the one it was started with");
        assert_eq!((with("1").difference(&with("1")), started.difference(&with("1"))), (None, None));
        assert_eq!(unlisted(200_000, "x").difference(&unlisted(200_001, "y")).unwrap(), "there were 200000 of them, there are 200001");
    }
}
