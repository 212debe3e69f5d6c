//! Normalisation layers with learned scale and bias.

use crate::Initializer;
use crate::ops::{self, Activation};
use burn::module::{Module, Param};
use burn::tensor::Tensor;

#[derive(Module, Debug)]
pub struct GroupNorm {
    pub scale: Param<Tensor<1>>,
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    group_count: usize,
    #[module(skip)]
    epsilon: f32,
}

impl GroupNorm {
    pub fn new(group_count: usize, channels: usize, epsilon: f32, initializer: &mut Initializer) -> Self {
        Self { scale: initializer.constant([channels], 1.0), bias: initializer.constant([channels], 0.0), group_count, epsilon }
    }

    /// x [batch, height, width, channels] -> the same shape; the activation is applied after scale and bias.
    pub fn forward(&self, x: Tensor<4>, activation: Activation) -> Tensor<4> {
        ops::group_norm(x, self.scale.val(), self.bias.val(), self.group_count, self.epsilon, activation)
    }
}

#[derive(Module, Debug)]
pub struct LayerNorm {
    pub scale: Param<Tensor<1>>,
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    epsilon: f32,
}

impl LayerNorm {
    pub fn new(channels: usize, bias: bool, epsilon: f32, initializer: &mut Initializer) -> Self {
        let scale = initializer.constant([channels], 1.0);
        Self { scale, bias: bias.then(|| initializer.constant([channels], 0.0)), epsilon }
    }

    /// x [..., channels] -> the same shape.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::layer_norm(x, self.scale.val(), self.bias.as_ref().map(Param::val), self.epsilon)
    }
}

#[derive(Module, Debug)]
pub struct RmsNorm {
    pub scale: Param<Tensor<1>>,
    #[module(skip)]
    epsilon: f32,
}

impl RmsNorm {
    pub fn new(channels: usize, epsilon: f32, initializer: &mut Initializer) -> Self {
        Self { scale: initializer.constant([channels], 1.0), epsilon }
    }

    /// x [..., channels] -> the same shape.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::rms_norm(x, self.scale.val(), self.epsilon)
    }
}
