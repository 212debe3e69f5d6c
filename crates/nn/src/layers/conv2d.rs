//! Convolution with weight [kernel, kernel, input, output] and bias [output].

use crate::Initializer;
use crate::ops::{self, Padding};
use burn::module::{Module, Param};
use burn::tensor::Tensor;

#[derive(Clone, Copy, Debug)]
pub struct Conv2dConfig {
    pub input_channels: usize,
    pub output_channels: usize,
    pub kernel_size: usize,
    pub stride: usize,
    pub padding: Padding,
    pub bias: bool,
}

impl Conv2dConfig {
    /// Stride 1, the output as large as the input (odd kernels), with bias.
    pub fn same(input_channels: usize, output_channels: usize, kernel_size: usize) -> Self {
        let padding = Padding::both(kernel_size / 2);
        Self { input_channels, output_channels, kernel_size, stride: 1, padding, bias: true }
    }
}

#[derive(Module, Debug)]
pub struct Conv2d {
    pub weight: Param<Tensor<4>>,
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    stride: usize,
    #[module(skip)]
    padding: (usize, usize),
}

impl Conv2d {
    /// Weights and bias uniform within 1 / sqrt(fan in), PyTorch's default, which the published VQGAN recipes rely on.
    pub fn new(config: Conv2dConfig, initializer: &mut Initializer) -> Self {
        let Conv2dConfig { input_channels, output_channels, kernel_size, stride, padding, bias } = config;
        let bound = 1.0 / ((kernel_size * kernel_size * input_channels) as f32).sqrt();
        Self {
            weight: initializer.uniform([kernel_size, kernel_size, input_channels, output_channels], bound),
            bias: bias.then(|| initializer.uniform([output_channels], bound)),
            stride,
            padding: (padding.before, padding.after),
        }
    }

    /// Zero weights and bias: the last convolution of a branch that begins by adding nothing.
    pub fn zero(config: Conv2dConfig, initializer: &mut Initializer) -> Self {
        let Conv2dConfig { input_channels, output_channels, kernel_size, stride, padding, bias } = config;
        Self {
            weight: initializer.constant([kernel_size, kernel_size, input_channels, output_channels], 0.0),
            bias: bias.then(|| initializer.constant([output_channels], 0.0)),
            stride,
            padding: (padding.before, padding.after),
        }
    }

    /// x [batch, height, width, input] -> [batch, height', width', output].
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        ops::conv2d(x, self.weight.val(), self.bias.as_ref().map(Param::val), self.stride, self.padding())
    }

    /// `forward(x)`, and to every place of a picture its `shifts` [batch, output] added.
    pub fn forward_shifted(&self, x: Tensor<4>, shifts: Tensor<2>) -> Tensor<4> {
        let bias = match &self.bias {
            Some(bias) => shifts + bias.val().unsqueeze(),
            None => shifts,
        };
        ops::conv2d_shifted(x, self.weight.val(), bias, self.stride, self.padding())
    }

    /// residual + `forward(x)`: the end of a residual branch.
    pub fn forward_onto(&self, residual: Tensor<4>, x: Tensor<4>) -> Tensor<4> {
        ops::conv2d_onto(residual, x, self.weight.val(), self.bias.as_ref().map(Param::val), self.stride, self.padding())
    }

    fn padding(&self) -> Padding {
        Padding { before: self.padding.0, after: self.padding.1 }
    }
}
