//! Linear map with weight [input, output].

use crate::{Initializer, ops};
use burn::module::{Module, Param};
use burn::tensor::Tensor;

#[derive(Module, Debug)]
pub struct Linear {
    pub weight: Param<Tensor<2>>,
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Weights normal with the given standard deviation, bias zero.
    pub fn normal(input: usize, output: usize, bias: bool, standard_deviation: f32, initializer: &mut Initializer) -> Self {
        let weight = initializer.normal([input, output], standard_deviation);
        Self { weight, bias: bias.then(|| initializer.constant([output], 0.0)) }
    }

    /// Weights and bias uniform within 1 / sqrt(input), PyTorch's default.
    pub fn uniform(input: usize, output: usize, bias: bool, initializer: &mut Initializer) -> Self {
        let bound = 1.0 / (input as f32).sqrt();
        let weight = initializer.uniform([input, output], bound);
        Self { weight, bias: bias.then(|| initializer.uniform([output], bound)) }
    }

    /// Zero weights and bias: the last map of a branch that begins by adding nothing.
    pub fn zero(input: usize, output: usize, initializer: &mut Initializer) -> Self {
        Self { weight: initializer.constant([input, output], 0.0), bias: Some(initializer.constant([output], 0.0)) }
    }

    /// x [..., input] -> [..., output].
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::linear(x, self.weight.val(), self.bias.as_ref().map(Param::val))
    }
}
