//! PyTorch checkpoints (`.ckpt`, `.pt`, `.pth`, `.bin`), read by a pickle machine that can execute nothing: zip archives of a pickle and raw storages, and the
//! format before PyTorch 1.6, where the storages follow the pickle.
//!
//! Nothing in a file is trusted: sizes are compared with what the file really holds before memory is taken, cycles end, and names have a limit.

mod archive;
mod machine;
mod naming;
mod older;
mod value;

use super::safetensors::chunks;
use super::{HostTensor, NamedTensors, TensorEntry, WeightsError};
use archive::Archive;
use half::{bf16, f16};
use older::Older;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use value::{Format, Storage, TensorView};

/// Checkpoints describe their tensors in about 200 bytes each.
const PICKLE_SIZE_LIMIT: u64 = 64 << 20;

/// Every floating-point tensor of the file as f32, by its path through the pickled dictionaries, joined by dots (`state_dict.encoder.conv_in.weight`).
///
/// Objects of unknown classes (callbacks, hyper-parameters) are looked through but never made. Integer and boolean tensors are left out; [`list`] names them.
pub fn read(path: &Path) -> Result<NamedTensors, WeightsError> {
    read_selected(path, |_| true)
}

/// As [`read`], only the tensors whose names `select` accepts: the optimiser's state need not be loaded to get at the weights.
pub fn read_selected(path: &Path, select: impl Fn(&str) -> bool) -> Result<NamedTensors, WeightsError> {
    let mut checkpoint = Checkpoint::open(path)?;
    let views = std::mem::take(&mut checkpoint.views);
    checkpoint.load(views.into_iter().filter(|(name, view)| !view.storage.format.is_integer() && select(name)).collect())
}

/// Name, shape and number format of every tensor, without reading any numbers.
pub fn list(path: &Path) -> Result<Vec<TensorEntry>, WeightsError> {
    let views = Checkpoint::open(path)?.views;
    Ok(views.into_iter().map(|(name, view)| TensorEntry { name, format: view.storage.format.name().to_string(), shape: view.shape }).collect())
}

struct Checkpoint<'a> {
    path: &'a Path,
    file_size: u64,
    /// All tensors that the pickle describes, by name, not yet compared with their storages.
    views: BTreeMap<String, TensorView>,
    storages: Storages<'a>,
}

/// Where the raw numbers lie.
enum Storages<'a> {
    Archive(Archive<'a>),
    Older(Older<'a>),
}

impl<'a> Checkpoint<'a> {
    fn open(path: &'a Path) -> Result<Self, WeightsError> {
        let io = |source| WeightsError::io(path, source);
        let mut file = File::open(path).map_err(io)?;
        let information = file.metadata().map_err(io)?;
        if !information.is_file() {
            return Err(WeightsError::format(path, "expected a file, found a folder or device"));
        }
        let file_size = information.len();
        let mut start = Vec::new();
        file.by_ref().take(32).read_to_end(&mut start).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let (views, storages) = if start.starts_with(b"PK\x03\x04") {
            let mut archive = Archive::open(path, file, file_size)?;
            (archive.views()?, Storages::Archive(archive))
        } else if older::is_older(&start) {
            let (views, older) = Older::open(path, file, file_size)?;
            (views, Storages::Older(older))
        } else if start.is_empty() {
            return Err(WeightsError::format(path, "expected a PyTorch checkpoint, found an empty file"));
        } else {
            return Err(WeightsError::format(
                path,
                "expected a PyTorch checkpoint (a zip archive), found something else; hint: an unfinished download, or a pointer file of git-lfs?",
            ));
        };
        Ok(Self { path, file_size, views, storages })
    }

    fn error(&self, reason: impl Into<String>) -> WeightsError {
        WeightsError::format(self.path, reason)
    }

    /// Reads each storage once, whatever the number of tensors that share it.
    fn load(&mut self, views: BTreeMap<String, TensorView>) -> Result<NamedTensors, WeightsError> {
        self.check_total(&views)?;
        let mut by_storage: BTreeMap<String, Vec<(String, TensorView)>> = BTreeMap::new();
        for (name, view) in views {
            by_storage.entry(view.storage.key.clone()).or_default().push((name, view));
        }
        let mut tensors = NamedTensors::new();
        for (key, views) in by_storage {
            let bytes = match &mut self.storages {
                Storages::Archive(archive) => archive.entry(&format!("data/{key}"), u64::MAX)?,
                Storages::Older(older) => older.storage(&key)?,
            };
            for (name, view) in views {
                let values = gather(&view, &bytes).map_err(|reason| self.error(format!("tensor `{name}`: {reason}")))?;
                tensors.insert(name, HostTensor { shape: view.shape, values });
            }
        }
        Ok(tensors)
    }

    /// Strides of zero can make any size out of one number, and any number of tensors can share a storage. Honest files hold little more than they store.
    fn check_total(&self, views: &BTreeMap<String, TensorView>) -> Result<(), WeightsError> {
        let limit = self.file_size.saturating_mul(4).saturating_add(1 << 20);
        let mut total = 0u64;
        for (name, view) in views {
            let size = view.shape.iter().try_fold(view.storage.format.byte_count(), |size, &axis| size.checked_mul(axis));
            total = total.saturating_add(size.map_or(u64::MAX, |size| size as u64));
            if total > limit {
                return Err(
                    self.error(format!("tensor `{name}`: shape {:?} claims far more numbers than the file of {} bytes holds", view.shape, self.file_size))
                );
            }
        }
        Ok(())
    }
}

/// Copies a strided view out of its storage, in row-major order.
fn gather(view: &TensorView, storage: &[u8]) -> Result<Vec<f32>, String> {
    let Storage { format, .. } = view.storage;
    let available = storage.len() / format.byte_count();
    let count: usize = view.shape.iter().product(); // `check_total` has excluded overflow
    if count == 0 {
        return Ok(Vec::new());
    }
    let reach = view.shape.iter().zip(&view.strides).try_fold(view.offset, |reach, (&size, &stride)| reach.checked_add((size - 1).checked_mul(stride)?));
    if reach.is_none_or(|reach| reach >= available) {
        return Err(format!("offset {}, shape {:?} and strides {:?} reach beyond its storage of {available} numbers", view.offset, view.shape, view.strides));
    }
    let size = format.byte_count();
    let bytes: Vec<u8> = if view.is_contiguous() {
        storage[view.offset * size..(view.offset + count) * size].to_vec()
    } else {
        Places::new(view, count).flat_map(|place| &storage[place * size..(place + 1) * size]).copied().collect()
    };
    Ok(match format {
        Format::F64 => chunks(&bytes, |bytes| f64::from_le_bytes(bytes) as f32),
        Format::F32 => chunks(&bytes, f32::from_le_bytes),
        Format::F16 => chunks(&bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Format::Bf16 => chunks(&bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        Format::Integer { name, .. } => return Err(format!("expected floating-point numbers, found {name}")),
    })
}

/// Places of a view's elements in its storage, in row-major order.
struct Places<'a> {
    view: &'a TensorView,
    index: Vec<usize>,
    place: usize,
    left: usize,
}

impl<'a> Places<'a> {
    fn new(view: &'a TensorView, count: usize) -> Self {
        Self { view, index: vec![0; view.shape.len()], place: view.offset, left: count }
    }
}

impl Iterator for Places<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let place = self.place;
        for axis in (0..self.index.len()).rev() {
            self.index[axis] += 1;
            self.place += self.view.strides[axis];
            if self.index[axis] < self.view.shape[axis] {
                break;
            }
            self.place -= self.view.strides[axis] * self.index[axis];
            self.index[axis] = 0;
        }
        Some(place)
    }
}
