//! Named weights: out of a module, into a module, to and from files.
//!
//! The field names of a [`Module`] are the weight names (`decoder.blocks.0.norm.scale`); nothing else invents names. Loading is strict: the error
//! lists what is missing, unused and misshapen, all at once.

mod atomic_file;
mod error;
pub mod foreign;
mod host_tensor;
pub mod pickle;
pub mod safetensors;

pub use atomic_file::{flush_folder, write_atomically};
pub use error::{Mismatch, WeightsError};
pub use host_tensor::HostTensor;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use std::collections::BTreeMap;

/// Weights on the host by name, in a stable order.
pub type NamedTensors = BTreeMap<String, HostTensor>;

/// What a file says about one of its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    pub name: String,
    pub shape: Vec<usize>,
    /// Number format as the file stores it: `f32`, `bf16`, `i64`, ...
    pub format: String,
}

/// Every floating-point parameter of `module`, copied to the host as f32.
pub fn collect<M: Module>(module: &M) -> NamedTensors {
    let mut collector = Collector { path: Vec::new(), tensors: BTreeMap::new() };
    module.visit(&mut collector);
    collector.tensors
}

/// Replaces every parameter of `module`; names and shapes must match exactly, both ways.
pub fn apply<M: Module>(module: M, tensors: NamedTensors, device: &Device) -> Result<M, WeightsError> {
    let mut applier = Applier { path: Vec::new(), tensors, missing: Vec::new(), misshapen: Vec::new(), device: device.clone(), applied: 0 };
    let module = module.map(&mut applier);
    let unused: Vec<String> = applier.tensors.into_keys().collect();
    if applier.missing.is_empty() && applier.misshapen.is_empty() && unused.is_empty() {
        return Ok(module);
    }
    Err(WeightsError::Mismatch(Mismatch { applied: applier.applied, missing: applier.missing, unused, misshapen: applier.misshapen }))
}

struct Collector {
    path: Vec<String>,
    tensors: NamedTensors,
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        let shape = tensor.dims().to_vec();
        let values = tensor.into_data().convert::<f32>().try_into_vec::<f32>().expect("float tensors convert to f32");
        self.tensors.insert(self.path.join("."), HostTensor { shape, values });
    }
}

struct Applier {
    path: Vec<String>,
    tensors: NamedTensors,
    applied: usize,
    missing: Vec<String>,
    misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    device: Device,
}

impl ModuleMapper for Applier {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.join(".");
        let expected = param.lazy_shape().to_vec();
        let Some(found) = self.tensors.remove(&name) else {
            self.missing.push(name);
            return param;
        };
        if found.shape != expected {
            self.misshapen.push((name, expected, found.shape));
            return param;
        }
        self.applied += 1;
        let requires_grad = param.is_require_grad();
        let tensor = Tensor::<D>::from_data(TensorData::new(found.values, expected), &self.device);
        Param::initialized(param.id, tensor.set_require_grad(requires_grad))
    }
}
