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

    /// x [..., input] -> [..., output].
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::linear(x, self.weight.val(), self.bias.as_ref().map(Param::val))
    }
}
