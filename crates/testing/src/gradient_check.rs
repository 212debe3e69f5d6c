//! Gradients against finite differences.
//!
//! The derivative of the loss L along one element x is estimated twice by central differences, d(h) = (L(x + h) - L(x - h)) / 2h, and extrapolated:
//! (4 d(h/2) - d(h)) / 3 has an error of order h^4 (Richardson), so that h can be large enough for f32.

use crate::Array;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use std::collections::BTreeMap;

/// Step for an element x: STEP * max(1, |x|).
const STEP: f32 = 2e-2;
/// Elements looked at in each parameter, spread evenly over it.
const ELEMENT_COUNT: usize = 8;

/// Named tensors that [`gradient_check`] hands to the function under test.
pub struct Parameters {
    tensors: BTreeMap<String, (Vec<usize>, Tensor<1>)>,
}

impl Parameters {
    #[track_caller]
    pub fn get<const D: usize>(&self, name: &str) -> Tensor<D> {
        let (shape, tensor) = self.tensors.get(name).unwrap_or_else(|| panic!("gradient check: no parameter `{name}`"));
        let shape: [usize; D] = shape.as_slice().try_into().unwrap_or_else(|_| panic!("gradient check: parameter `{name}` has shape {shape:?}, not {D} axes"));
        tensor.clone().reshape(shape)
    }
}

/// Panics unless the gradient of `loss` (a single number) agrees with finite differences at several elements of each parameter, up to `tolerance` relative
/// and f32's rounding. `device` must track gradients (`Device::flex().autodiff()`).
#[track_caller]
pub fn gradient_check(name: &str, parameters: &[(&str, Array)], device: &Device, tolerance: f32, loss: impl Fn(&Parameters) -> Tensor<1>) {
    let build = |changed: Option<(&str, usize, f32)>| {
        let tensors = parameters.iter().map(|(parameter, array)| {
            let mut values = array.values.clone();
            if let Some((_, element, value)) = changed.filter(|(other, _, _)| other == parameter) {
                values[element] = value;
            }
            let length = values.len();
            let tensor = Tensor::<1>::from_data(TensorData::new(values, [length]), device).require_grad();
            (parameter.to_string(), (array.shape.clone(), tensor))
        });
        Parameters { tensors: tensors.collect() }
    };
    let tracked = build(None);
    let gradients = loss(&tracked).backward();
    let mut verdict = Verdict::new(name, tolerance);
    for (parameter, array) in parameters {
        let gradient = tracked.tensors[*parameter].1.grad(&gradients).map(|gradient| Array::from(gradient).values);
        verdict.check(parameter, &array.values, gradient.as_deref(), |element, value| scalar(loss(&build(Some((parameter, element, value))))));
    }
    verdict.finish();
}

/// As [`gradient_check`], for every parameter of a module.
#[track_caller]
pub fn module_gradient_check<M: Module>(name: &str, module: &M, tolerance: f32, loss: impl Fn(&M) -> Tensor<1>) {
    let gradients = loss(module).backward();
    let mut visitor = GradientVisitor { path: Vec::new(), gradients: &gradients, found: Vec::new() };
    module.visit(&mut visitor);
    let mut verdict = Verdict::new(name, tolerance);
    for (parameter, values, gradient) in visitor.found {
        verdict.check(&parameter, &values, gradient.as_deref(), |element, value| {
            let mut change = Change { path: Vec::new(), parameter: &parameter, element, value };
            scalar(loss(&module.clone().map(&mut change)))
        });
    }
    verdict.finish();
}

fn scalar(tensor: Tensor<1>) -> f64 {
    let values = Array::from(tensor).values;
    assert!(values.len() == 1, "gradient check: the loss has {} elements", values.len());
    f64::from(values[0])
}

/// Collects every disagreement, so that one run shows all of them.
struct Verdict {
    name: String,
    tolerance: f64,
    wrong: Vec<String>,
    /// Elements whose derivative stands out of f32's rounding.
    telling: usize,
}

impl Verdict {
    fn new(name: &str, tolerance: f32) -> Self {
        Self { name: name.to_string(), tolerance: tolerance.into(), wrong: Vec::new(), telling: 0 }
    }

    fn check(&mut self, parameter: &str, values: &[f32], gradient: Option<&[f32]>, loss: impl Fn(usize, f32) -> f64) {
        let count = values.len().min(ELEMENT_COUNT);
        for place in 0..count {
            let element = place * values.len() / count + (values.len() / count) / 2;
            let (estimate, noise) = derivative(values[element], |value| loss(element, value));
            let found = gradient.map_or(0.0, |gradient| f64::from(gradient[element]));
            let scale = estimate.abs().max(found.abs());
            self.telling += usize::from(scale > 10.0 * noise);
            // `!(a <= b)` is true for NaN.
            let close = (estimate - found).abs() <= self.tolerance * scale + noise;
            if !close {
                self.wrong.push(format!("`{parameter}`[{element}]: finite differences give {estimate:.6e} (+- {noise:.1e}), the gradient is {found:.6e}"));
            }
        }
    }

    #[track_caller]
    fn finish(self) {
        assert!(self.wrong.is_empty(), "{}: gradients disagree with finite differences:\n  {}", self.name, self.wrong.join("\n  "));
        assert!(self.telling > 0, "{}: every derivative drowns in rounding, nothing was checked; hint: scale the loss or the inputs", self.name);
    }
}

/// The extrapolated derivative at x and the part of it that may be rounding.
fn derivative(x: f32, loss: impl Fn(f32) -> f64) -> (f64, f64) {
    let mut largest = 0.0f64;
    let mut central = |step: f32| {
        let (above, below) = (x + step, x - step);
        let (high, low) = (loss(above), loss(below));
        largest = largest.max(high.abs()).max(low.abs());
        // The steps that f32 really took.
        (high - low) / (f64::from(above) - f64::from(below))
    };
    let step = STEP * x.abs().max(1.0);
    let (coarse, fine) = (central(step), central(step / 2.0));
    // Each loss is a sum in f32: allow it a few units in the last place.
    let noise = 8.0 * f64::from(f32::EPSILON) * largest / f64::from(step);
    ((4.0 * fine - coarse) / 3.0, noise)
}

struct GradientVisitor<'a> {
    path: Vec<String>,
    gradients: &'a burn::tensor::Gradients,
    found: Vec<(String, Vec<f32>, Option<Vec<f32>>)>,
}

impl ModuleVisitor for GradientVisitor<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        let gradient = tensor.grad(self.gradients).map(|gradient| Array::from(gradient).values);
        self.found.push((self.path.join("."), Array::from(tensor).values, gradient));
    }
}

struct Change<'a> {
    path: Vec<String>,
    parameter: &'a str,
    element: usize,
    value: f32,
}

impl ModuleMapper for Change<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.path.join(".") != self.parameter {
            return param;
        }
        let tensor = param.val();
        let Array { shape, mut values } = Array::from(&tensor);
        values[self.element] = self.value;
        Param::initialized(param.id, Tensor::from_data(TensorData::new(values, shape), &tensor.device()).require_grad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(loss: fn(&Parameters) -> Tensor<1>) {
        let parameters = [("x", Array { shape: vec![2, 2], values: vec![0.3, -1.2, 2.0, 0.05] }), ("y", [1.5f32, -0.5].into())];
        gradient_check("test", &parameters, &Device::flex().autodiff(), 1e-3, loss);
    }

    #[test]
    fn right_gradients_pass() {
        check(|p| (p.get::<2>("x").powi_scalar(3).sum() * p.get::<1>("y").exp().sum()).tanh() * 0.1 + p.get::<1>("y").sum());
    }

    #[test]
    #[should_panic(expected = "gradients disagree")]
    fn a_stopped_gradient_is_caught() {
        check(|p| p.get::<2>("x").powi_scalar(2).sum() + p.get::<1>("y").detach().sum());
    }

    #[test]
    #[should_panic(expected = "nothing was checked")]
    fn a_constant_proves_nothing() {
        check(|p| p.get::<2>("x").sum() * 0.0 + p.get::<1>("y").sum() * 0.0 + 1.0);
    }
}
