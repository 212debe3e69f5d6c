//! Safetensors files: an 8-byte length, a JSON header, the raw numbers.

use super::{HostTensor, NamedTensors, TensorEntry, WeightsError, atomic_file::write_atomically};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

/// How numbers are stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    F32,
    F16,
    Bf16,
}

impl Storage {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    fn byte_count(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Reads every floating-point tensor of a file as f32 (stored as f64, f32, f16 or bf16).
///
/// Integer and boolean tensors (position indices, counters) are never weights and are left out; [`list`] names them. Memory stays within the size of
/// the result: nothing that the header claims is believed before it is compared with the length of the file.
pub fn read(path: &Path) -> Result<NamedTensors, WeightsError> {
    let (mut file, metadata) = open(path)?;
    let mut tensors = BTreeMap::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        // `Metadata` guarantees that tensors follow each other without gaps and that the file is exactly as long as they need.
        let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
        file.read_exact(&mut bytes).map_err(|source| WeightsError::io(path, source))?;
        if let Some(values) = floats(info.dtype, &bytes).map_err(|reason| WeightsError::format(path, format!("tensor `{name}`: {reason}")))? {
            tensors.insert(name, HostTensor { shape: info.shape.clone(), values });
        }
    }
    Ok(tensors)
}

/// The free-form text entries of a file's header; empty where there are none.
pub fn read_metadata(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let (_, metadata) = open(path)?;
    Ok(metadata.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// Name, shape and number format of every tensor, without reading any numbers.
pub fn list(path: &Path) -> Result<Vec<TensorEntry>, WeightsError> {
    let (_, metadata) = open(path)?;
    let mut entries: Vec<TensorEntry> = metadata
        .tensors()
        .into_iter()
        .map(|(name, TensorInfo { dtype, shape, .. })| TensorEntry { name, shape: shape.clone(), format: dtype.to_string().to_lowercase() })
        .collect();
    entries.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(entries)
}

/// Writes a file whole or not at all (see [`write_atomically`]). The same tensors give the same bytes.
pub fn write(path: &Path, tensors: &NamedTensors, storage: Storage) -> Result<(), WeightsError> {
    write_with_metadata(path, tensors, storage, &BTreeMap::new())
}

/// As [`write`], with text entries (a network's config as JSON, say) in the header.
pub fn write_with_metadata(path: &Path, tensors: &NamedTensors, storage: Storage, metadata: &BTreeMap<String, String>) -> Result<(), WeightsError> {
    check_range(path, tensors, storage)?;
    let header = header(tensors, storage, metadata).map_err(|error| WeightsError::format(path, error.to_string()))?;
    write_atomically(path, |writer| {
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(&header)?;
        tensors.values().try_for_each(|tensor| write_values(writer, &tensor.values, storage))
    })
    .map_err(|source| WeightsError::io(path, source))
}

/// Opens a file, positioned at the first number, with a header that fits its length.
fn open(path: &Path) -> Result<(BufReader<File>, Metadata), WeightsError> {
    // Safetensors' own limit (`MAX_HEADER_SIZE`).
    const HEADER_SIZE_LIMIT: u64 = 100_000_000;
    let io = |source| WeightsError::io(path, source);
    let format = |reason: String| WeightsError::format(path, reason);

    let file = File::open(path).map_err(io)?;
    let information = file.metadata().map_err(io)?;
    if !information.is_file() {
        return Err(format("expected a file, found a folder or device".into()));
    }
    let file_size = information.len();
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut size = [0; 8];
    if file_size < 8 {
        return Err(format(format!("expected a safetensors header, found a file of {file_size} bytes")));
    }
    file.read_exact(&mut size).map_err(io)?;
    let header_size = u64::from_le_bytes(size);
    if header_size > HEADER_SIZE_LIMIT {
        return Err(format(format!(
            "expected a safetensors header of at most {HEADER_SIZE_LIMIT} bytes, found a claim of {header_size}; hint: this is not a safetensors file"
        )));
    }
    if header_size > file_size - 8 {
        return Err(format(format!("truncated: the header claims {header_size} bytes, the file has {} after it", file_size - 8)));
    }
    let mut header = vec![0; header_size as usize];
    file.read_exact(&mut header).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| format(format!("header: {error}")))?;
    let expected = 8 + header_size + metadata.data_len() as u64;
    if file_size != expected {
        let how = if file_size < expected { "truncated: " } else { "" };
        return Err(format(format!("{how}expected {expected} bytes, found {file_size}")));
    }
    Ok((file, metadata))
}

/// None for integers and booleans.
fn floats(dtype: Dtype, bytes: &[u8]) -> Result<Option<Vec<f32>>, String> {
    let values = match dtype {
        Dtype::F64 => chunks(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
        Dtype::F32 => chunks(bytes, f32::from_le_bytes),
        Dtype::F16 => chunks(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => chunks(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        Dtype::BOOL | Dtype::U8 | Dtype::I8 | Dtype::U16 | Dtype::I16 | Dtype::U32 | Dtype::I32 | Dtype::U64 | Dtype::I64 => return Ok(None),
        other => return Err(format!("expected f64, f32, f16 or bf16, found {other}; hint: convert quantised or complex weights before importing them")),
    };
    Ok(Some(values))
}

pub(super) fn chunks<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|&chunk| convert(chunk)).collect()
}

/// A finite weight that becomes infinite in a smaller format would be a silent ruin.
fn check_range(path: &Path, tensors: &NamedTensors, storage: Storage) -> Result<(), WeightsError> {
    let overflows = |value: f32| match storage {
        Storage::F32 => false,
        Storage::F16 => value.is_finite() && !f16::from_f32(value).is_finite(),
        Storage::Bf16 => value.is_finite() && !bf16::from_f32(value).is_finite(),
    };
    for (name, tensor) in tensors {
        if let Some(&value) = tensor.values.iter().find(|&&value| overflows(value)) {
            return Err(WeightsError::Range { path: path.to_path_buf(), tensor: name.clone(), value, storage: storage.name() });
        }
    }
    Ok(())
}

/// The JSON header, padded with spaces so that the numbers start at a multiple of 8 bytes. Keys are sorted, unlike in the crate's own writer, whose
/// text entries come in random order.
fn header(tensors: &NamedTensors, storage: Storage, metadata: &BTreeMap<String, String>) -> serde_json::Result<Vec<u8>> {
    #[derive(serde::Serialize)]
    #[serde(untagged)]
    enum Entry<'a> {
        Tensor(TensorInfo),
        Metadata(&'a BTreeMap<String, String>),
    }
    let mut entries = BTreeMap::new();
    let mut offset = 0;
    for (name, tensor) in tensors {
        let end = offset + tensor.values.len() * storage.byte_count();
        entries.insert(name.as_str(), Entry::Tensor(TensorInfo { dtype: storage.dtype(), shape: tensor.shape.clone(), data_offsets: (offset, end) }));
        offset = end;
    }
    if !metadata.is_empty() {
        entries.insert("__metadata__", Entry::Metadata(metadata));
    }
    let mut header = serde_json::to_vec(&entries)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

fn write_values(writer: &mut dyn Write, values: &[f32], storage: Storage) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(1 << 18);
    for block in values.chunks(1 << 16) {
        bytes.clear();
        match storage {
            Storage::F32 => block.iter().for_each(|value| bytes.extend(value.to_le_bytes())),
            Storage::F16 => block.iter().for_each(|&value| bytes.extend(f16::from_f32(value).to_le_bytes())),
            Storage::Bf16 => block.iter().for_each(|&value| bytes.extend(bf16::from_f32(value).to_le_bytes())),
        }
        writer.write_all(&bytes)?;
    }
    Ok(())
}
