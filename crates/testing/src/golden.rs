//! Goldens: safetensors files that a reference implementation wrote (`goldens/make.py` beside them).

use crate::Array;
use burn::tensor::{Device, Int, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The tensors of one golden file. Every method panics when the name, the kind of number or the number of axes is not as the test believes.
#[derive(Debug)]
pub struct Golden {
    path: PathBuf,
    floats: BTreeMap<String, Array>,
    integers: BTreeMap<String, (Vec<usize>, Vec<i64>)>,
    metadata: BTreeMap<String, String>,
}

/// Reads a golden; `path` is relative to the crate under test, where `cargo test` runs.
#[track_caller]
pub fn golden(path: impl AsRef<Path>) -> Golden {
    let path = path.as_ref();
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("golden {}: {error}", path.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap_or_else(|error| panic!("golden {}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("the header was just read");
    let metadata = header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    let mut golden = Golden { path: path.to_path_buf(), floats: BTreeMap::new(), integers: BTreeMap::new(), metadata };
    for (name, view) in file.tensors() {
        match view.dtype() {
            Dtype::F32 => golden.insert_floats(name, &view, f32::from_le_bytes),
            Dtype::F64 => golden.insert_floats(name, &view, |bytes| f64::from_le_bytes(bytes) as f32),
            Dtype::I64 => golden.insert_integers(name, &view, i64::from_le_bytes),
            Dtype::I32 => golden.insert_integers(name, &view, |bytes| i32::from_le_bytes(bytes).into()),
            Dtype::U8 | Dtype::BOOL => golden.insert_integers(name, &view, |bytes| u8::from_le_bytes(bytes).into()),
            other => panic!("golden {}: tensor `{name}`: expected f64, f32, i64, i32, u8 or bool, found {other}", path.display()),
        }
    }
    golden
}

impl Golden {
    /// Names of all tensors, sorted, floating-point ones first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.floats.keys().chain(self.integers.keys()).map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.floats.contains_key(name) || self.integers.contains_key(name)
    }

    /// A floating-point tensor with its shape, as [`crate::check_close`] takes it.
    #[track_caller]
    pub fn array(&self, name: &str) -> Array {
        self.floats.get(name).unwrap_or_else(|| self.absent("floating-point", name)).clone()
    }

    /// A floating-point tensor in row-major order.
    #[track_caller]
    pub fn values(&self, name: &str) -> Vec<f32> {
        self.array(name).values
    }

    /// A floating-point tensor on a device.
    #[track_caller]
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let Array { shape, values } = self.array(name);
        assert!(shape.len() == D, "golden {}: tensor `{name}`: expected {D} axes, found {shape:?}", self.path.display());
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// An integer or boolean tensor in row-major order.
    #[track_caller]
    pub fn integers(&self, name: &str) -> Vec<i64> {
        self.integers.get(name).unwrap_or_else(|| self.absent("integer", name)).1.clone()
    }

    /// An integer tensor on a device.
    #[track_caller]
    pub fn integer_tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D, Int> {
        let (shape, values) = self.integers.get(name).unwrap_or_else(|| self.absent("integer", name)).clone();
        assert!(shape.len() == D, "golden {}: tensor `{name}`: expected {D} axes, found {shape:?}", self.path.display());
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    #[track_caller]
    pub fn shape(&self, name: &str) -> Vec<usize> {
        let floats = self.floats.get(name).map(|array| array.shape.clone());
        floats.or_else(|| self.integers.get(name).map(|tensor| tensor.0.clone())).unwrap_or_else(|| self.absent("", name))
    }

    /// A text entry of the header.
    #[track_caller]
    pub fn metadata(&self, key: &str) -> &str {
        self.metadata.get(key).unwrap_or_else(|| panic!("golden {}: no header entry `{key}`", self.path.display()))
    }

    fn insert_floats<const N: usize>(&mut self, name: String, view: &TensorView, convert: impl Fn([u8; N]) -> f32) {
        let values = view.data().as_chunks().0.iter().map(|&chunk| convert(chunk)).collect();
        self.floats.insert(name, Array { shape: view.shape().to_vec(), values });
    }

    fn insert_integers<const N: usize>(&mut self, name: String, view: &TensorView, convert: impl Fn([u8; N]) -> i64) {
        let values = view.data().as_chunks().0.iter().map(|&chunk| convert(chunk)).collect();
        self.integers.insert(name, (view.shape().to_vec(), values));
    }

    #[track_caller]
    fn absent(&self, kind: &str, name: &str) -> ! {
        let names: Vec<&str> = self.names().collect();
        panic!("golden {}: no {kind} tensor `{name}` among {names:?}", self.path.display())
    }
}
