//! For tests: gradients of a module by name, and their comparison with a reference's.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use smalti_nn::weights::{HostTensor, NamedTensors};
use smalti_testing::check_close;

/// The gradient of every parameter that has one.
pub fn named_gradients<M: Module>(module: &M, gradients: &Gradients) -> NamedTensors {
    let mut visitor = Visitor { path: Vec::new(), gradients, found: NamedTensors::new() };
    module.visit(&mut visitor);
    visitor.found
}

/// Gradients are sums in which terms as large as the network's typical gradient cancel: what f32 leaves of such a term is this part of it.
const ROUNDING: f32 = 1e-5;

/// Panics unless both have the same names and shapes and every element is within 1e-4 of the expected one (or of its tensor's root mean square, where that
/// is larger), up to rounding of the size of all gradients.
#[track_caller]
pub fn compare_gradients(found: &NamedTensors, expected: &NamedTensors) {
    let names = |tensors: &NamedTensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    let rms = |values: &mut dyn Iterator<Item = f32>| {
        let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + f64::from(value).powi(2), count + 1));
        (sum / f64::from(count)).sqrt() as f32
    };
    let rounding = ROUNDING * rms(&mut expected.values().flat_map(|tensor| tensor.values.iter().copied()));
    for (name, tensor) in found {
        let reference = &expected[name];
        assert_eq!(tensor.shape, reference.shape, "{name}");
        let scale = rms(&mut reference.values.iter().copied());
        for (index, (found, expected)) in tensor.values.iter().zip(&reference.values).enumerate() {
            let close = (found - expected).abs() <= 1e-4 * expected.abs().max(scale) + rounding; // false for NaN
            assert!(close, "gradient of `{name}` at {index}: expected {expected}, found {found} (rms of the tensor {scale:e}, rounding {rounding:e})");
        }
    }
}

/// Panics unless both have the same names and shapes and every tensor is within 1e-4 of the expected one. A tensor whose gradients cancel, as those of a bias before
/// a normalisation over its own channel, holds rounding only: it must be next to nothing beside the size of all gradients.
#[track_caller]
pub fn compare_gradients_by_tensor(found: NamedTensors, expected: NamedTensors) {
    let names = |tensors: &NamedTensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected));
    let square = |tensor: &HostTensor| tensor.values.iter().map(|value| value * value).sum::<f32>();
    let count: usize = expected.values().map(|tensor| tensor.values.len()).sum();
    let rms = (expected.values().map(square).sum::<f32>() / count as f32).sqrt();
    for (name, tensor) in found {
        let reference = &expected[&name];
        assert_eq!(tensor.shape, reference.shape, "{name}");
        if square(reference).sqrt() > 1e-3 * rms {
            check_close(&name, tensor.values, reference.values.clone(), 1e-4);
        } else {
            assert!(square(&tensor).sqrt() < 2e-3 * rms, "{name}: expected next to nothing");
        }
    }
}

/// The module with all its zeros replaced by small random numbers, as if it had been trained: a network that begins with zero branches hides their formulas.
pub fn stirred<M: Module>(module: M, seed: u64) -> M {
    module.map(&mut Stir { rng: ChaCha12Rng::seed_from_u64(seed) })
}

struct Visitor<'a> {
    path: Vec<String>,
    gradients: &'a Gradients,
    found: NamedTensors,
}

impl ModuleVisitor for Visitor<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad(self.gradients) {
            let tensor = HostTensor::new(gradient.dims(), gradient.into_data().iter::<f32>().collect());
            self.found.insert(self.path.join("."), tensor);
        }
    }
}

struct Stir {
    rng: ChaCha12Rng,
}

impl ModuleMapper for Stir {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let tensor = param.val();
        let shape = tensor.dims();
        let bound = if D == 1 { 0.3 } else { 1.7 / (shape[..D - 1].iter().product::<usize>() as f32).sqrt() };
        let mut values: Vec<f32> = tensor.to_data().iter::<f32>().collect();
        if values.iter().all(|value| *value == 0.0) {
            values.iter_mut().for_each(|value| *value = (self.rng.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0) * bound);
        }
        let stirred = Tensor::<D>::from_data(TensorData::new(values, shape), &tensor.device());
        Param::initialized(param.id, stirred.set_require_grad(param.is_require_grad()))
    }
}
