//! The format before PyTorch 1.6 (`torch.save(..., _use_new_zipfile_serialization=False)`; `lpips` and torchvision publish in it): a magic number, the
//! version, facts about the machine, the object and the list of storage keys, each a pickle of its own; then each storage in the order of the keys, as a
//! count of numbers (8 bytes) and the numbers.

use super::super::WeightsError;
use super::value::{Heap, Node, TensorView, Value};
use super::{PICKLE_SIZE_LIMIT, machine, naming};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// `torch.serialization.MAGIC_NUMBER`, pickled: LONG1 of ten bytes.
const MAGIC_NUMBER: &[u8] = &[0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// `torch.serialization.PROTOCOL_VERSION`
const PROTOCOL_VERSION: i64 = 1001;

/// Is the magic number the first pickle, after the number of the pickle protocol and, from protocol 4, a frame?
pub fn is_older(start: &[u8]) -> bool {
    start.first() == Some(&0x80) && [2, 11].iter().any(|&place| start.get(place..).is_some_and(|rest| rest.starts_with(MAGIC_NUMBER)))
}

pub struct Older<'a> {
    path: &'a Path,
    file: File,
    /// Place in the file and size, both in bytes, by key.
    blocks: HashMap<String, (u64, u64)>,
}

impl<'a> Older<'a> {
    /// The tensors by name, and where their storages lie. Every storage is known to end within the file.
    pub fn open(path: &'a Path, mut file: File, file_size: u64) -> Result<(BTreeMap<String, TensorView>, Self), WeightsError> {
        let mut bytes = Vec::new();
        file.by_ref().take(PICKLE_SIZE_LIMIT).read_to_end(&mut bytes).map_err(|source| WeightsError::io(path, source))?;
        let format = |reason: String| WeightsError::format(path, reason);
        let Description { views, storages, size } = describe(&bytes).map_err(format)?;
        drop(bytes);
        let mut older = Self { path, file, blocks: HashMap::new() };
        let mut place = size;
        for (key, byte_count) in storages {
            let count = older.count_at(place, file_size, &key)?;
            let size = count.checked_mul(byte_count).filter(|&size| size <= file_size - place - 8);
            let size = size.ok_or_else(|| {
                let reason = format!("storage `{key}`: truncated: expected {count} numbers of {byte_count} bytes, found {} bytes", file_size - place - 8);
                WeightsError::format(path, reason)
            })?;
            older.blocks.insert(key, (place + 8, size));
            place += 8 + size;
        }
        Ok((views, older))
    }

    /// The count of numbers that a storage begins with.
    fn count_at(&mut self, place: u64, file_size: u64, key: &str) -> Result<u64, WeightsError> {
        if place + 8 > file_size {
            return Err(WeightsError::format(self.path, format!("storage `{key}`: truncated: expected it at byte {place}, found {file_size} bytes in all")));
        }
        let mut count = [0; 8];
        self.read_at(place, &mut count)?;
        let count = i64::from_le_bytes(count);
        u64::try_from(count).map_err(|_| WeightsError::format(self.path, format!("storage `{key}`: expected a count of numbers of at least 0, found {count}")))
    }

    /// A storage, whole.
    pub fn storage(&mut self, key: &str) -> Result<Vec<u8>, WeightsError> {
        let found = self.blocks.get(key).copied();
        let (place, size) = found.ok_or_else(|| WeightsError::format(self.path, format!("storage `{key}`: expected it after the pickles, found none")))?;
        let size =
            usize::try_from(size).map_err(|_| WeightsError::format(self.path, format!("storage `{key}`: {size} bytes are beyond this machine's memory")))?;
        let mut bytes = vec![0; size]; // not more than the file has
        self.read_at(place, &mut bytes)?;
        Ok(bytes)
    }

    fn read_at(&mut self, place: u64, bytes: &mut [u8]) -> Result<(), WeightsError> {
        let read = self.file.seek(SeekFrom::Start(place)).and_then(|_| self.file.read_exact(bytes));
        read.map_err(|source| WeightsError::io(self.path, source))
    }
}

/// What the pickles say.
struct Description {
    views: BTreeMap<String, TensorView>,
    /// Keys with the bytes of one number, in the order in which the storages follow.
    storages: Vec<(String, u64)>,
    /// Bytes of all pickles together.
    size: u64,
}

fn describe(bytes: &[u8]) -> Result<Description, String> {
    let mut place = 0;
    let mut next = |what: &str| -> Result<machine::Run, String> {
        let run = machine::run(&bytes[place..]).map_err(|reason| format!("{what} (from byte {place}): {reason}"))?;
        place += run.size;
        Ok(run)
    };
    next("the magic number")?;
    match next("the version")?.root {
        Value::Integer(PROTOCOL_VERSION) => {}
        other => return Err(format!("expected version {PROTOCOL_VERSION} of the format, found {other:?}")),
    }
    let machine = next("the facts about the machine")?;
    if little_endian(&machine) == Some(false) {
        return Err("expected little-endian numbers; hint: save the checkpoint again on a common machine".into());
    }
    let object = next("the object")?;
    let keys = next("the list of storages")?;
    let views = naming::tensors(&object.heap, object.root)?;
    let byte_counts = byte_counts(&object.heap)?;
    let Some(Node::List(items)) = keys.heap.get(keys.root) else {
        return Err("expected a list of the storages' keys".into());
    };
    let mut storages = Vec::new();
    let mut seen = HashSet::new();
    for item in items {
        let key = keys.heap.text(*item).ok_or("the list of storages: expected texts as keys")?;
        let byte_count = *byte_counts.get(key).ok_or_else(|| format!("storage `{}`: expected it in the object, found none", key.escape_debug()))?;
        if !seen.insert(key) {
            return Err(format!("storage `{key}` is listed twice"));
        }
        storages.push((key.to_string(), byte_count));
    }
    if let Some(key) = byte_counts.keys().find(|key| !seen.contains(*key)) {
        return Err(format!("storage `{key}`: expected it in the list of storages, found none"));
    }
    Ok(Description { views, storages, size: place as u64 })
}

fn little_endian(machine: &machine::Run) -> Option<bool> {
    let Some(Node::Dict(entries)) = machine.heap.get(machine.root) else { return None };
    let (_, value) = entries.iter().find(|(key, _)| machine.heap.text(*key) == Some("little_endian"))?;
    match value {
        Value::Integer(truth) => Some(*truth != 0),
        Value::Other | Value::Node(_) => None,
    }
}

/// Bytes of one number of each storage that the object names, by key.
fn byte_counts(heap: &Heap) -> Result<BTreeMap<&str, u64>, String> {
    let mut counts = BTreeMap::new();
    for (_, node) in heap.iter() {
        let Node::Storage(storage) = node else { continue };
        let count = storage.format.byte_count() as u64;
        if *counts.entry(storage.key.as_str()).or_insert(count) != count {
            return Err(format!("storage `{}`: expected one size of number, found two", storage.key));
        }
    }
    Ok(counts)
}
