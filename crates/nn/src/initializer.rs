//! First values of weights, from a seed.
//!
//! Values are drawn on the host from a counter-based generator, so that the same seed gives the same network on every device.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

/// Draws the first values of a network's weights, in the order in which its layers are built.
pub struct Initializer {
    rng: ChaCha12Rng,
    device: Device,
}

impl Initializer {
    pub fn new(seed: u64, device: &Device) -> Self {
        Self { rng: ChaCha12Rng::seed_from_u64(seed), device: device.clone() }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Every element is `value`.
    pub fn constant<const D: usize>(&mut self, shape: [usize; D], value: f32) -> Param<Tensor<D>> {
        let count = shape.iter().product();
        self.parameter(shape, vec![value; count])
    }

    /// Uniform in [-bound, bound).
    pub fn uniform<const D: usize>(&mut self, shape: [usize; D], bound: f32) -> Param<Tensor<D>> {
        let count: usize = shape.iter().product();
        let values = (0..count).map(|_| (self.unit() * 2.0 - 1.0) * bound).collect();
        self.parameter(shape, values)
    }

    /// Normal with mean 0 and the given standard deviation (Box and Muller's transform).
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], standard_deviation: f32) -> Param<Tensor<D>> {
        let count: usize = shape.iter().product();
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt() * standard_deviation;
            let (sin, cos) = (self.unit() * std::f32::consts::TAU).sin_cos();
            values.push(radius * cos);
            values.push(radius * sin);
        }
        values.truncate(count);
        self.parameter(shape, values)
    }

    /// Uniform in [0, 1).
    fn unit(&mut self) -> f32 {
        (self.rng.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    fn parameter<const D: usize>(&mut self, shape: [usize; D], values: Vec<f32>) -> Param<Tensor<D>> {
        let tensor = Tensor::from_data(TensorData::new(values, shape), &self.device);
        Param::from_tensor(tensor) // trainable, also when it is only later moved to a device with gradients
    }
}
