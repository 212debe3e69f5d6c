//! Others' checkpoints of either format, told apart by their first bytes, not by their names.

use super::{NamedTensors, TensorEntry, WeightsError, pickle, safetensors};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The floating-point tensors of a safetensors file or a PyTorch checkpoint whose names `select` accepts, as f32.
pub fn read_selected(path: &Path, select: impl Fn(&str) -> bool) -> Result<NamedTensors, WeightsError> {
    if is_safetensors(path)? {
        let mut tensors = safetensors::read(path)?;
        tensors.retain(|name, _| select(name));
        Ok(tensors)
    } else {
        pickle::read_selected(path, select)
    }
}

/// Name, shape and number format of every tensor, without reading any numbers.
pub fn list(path: &Path) -> Result<Vec<TensorEntry>, WeightsError> {
    if is_safetensors(path)? { safetensors::list(path) } else { pickle::list(path) }
}

/// Safetensors begin with a length of 8 bytes and a JSON object.
pub fn is_safetensors(path: &Path) -> Result<bool, WeightsError> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(9).read_to_end(&mut start));
    read.map_err(|source| WeightsError::io(path, source))?;
    let by_name = path.extension().is_some_and(|extension| extension == "safetensors");
    Ok(start.get(8) == Some(&b'{') || (by_name && !start.starts_with(b"PK")))
}
