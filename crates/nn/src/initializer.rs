//! First values of weights, from a seed.
//!
//! Values are drawn on the host from a counter-based generator, so that the same seed gives the same network on every device.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

/// Draws the first values of a network's weights, in the order in which its layers are built.
pub struct Initializer {
    /// None: zeros, for weights that are all replaced.
    rng: Option<ChaCha12Rng>,
    device: Device,
}

impl Initializer {
    pub fn new(seed: u64, device: &Device) -> Self {
        Self { rng: Some(ChaCha12Rng::seed_from_u64(seed)), device: device.clone() }
    }

    /// For a network whose weights are read from a file next, every one of them: draws nothing, all weights are zero until then.
    pub fn unread(device: &Device) -> Self {
        Self { rng: None, device: device.clone() }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Every element is `value`.
    pub fn constant<const D: usize>(&mut self, shape: [usize; D], value: f32) -> Param<Tensor<D>> {
        let value = if self.rng.is_some() { value } else { 0.0 };
        self.parameter(shape, vec![value; shape.iter().product()])
    }

    /// Uniform in [-bound, bound).
    pub fn uniform<const D: usize>(&mut self, shape: [usize; D], bound: f32) -> Param<Tensor<D>> {
        let count: usize = shape.iter().product();
        let values = match &mut self.rng {
            Some(rng) => (0..count).map(|_| (unit(rng) * 2.0 - 1.0) * bound).collect(),
            None => vec![0.0; count],
        };
        self.parameter(shape, values)
    }

    /// Normal with mean 0 and the given standard deviation (Box and Muller's transform).
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], standard_deviation: f32) -> Param<Tensor<D>> {
        let count: usize = shape.iter().product();
        let Some(rng) = &mut self.rng else { return self.parameter(shape, vec![0.0; count]) };
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt() * standard_deviation;
            let (sin, cos) = (unit(rng) * std::f32::consts::TAU).sin_cos();
            values.push(radius * cos);
            values.push(radius * sin);
        }
        values.truncate(count);
        self.parameter(shape, values)
    }

    fn parameter<const D: usize>(&mut self, shape: [usize; D], values: Vec<f32>) -> Param<Tensor<D>> {
        let tensor = Tensor::from_data(TensorData::new(values, shape), &self.device);
        Param::from_tensor(tensor) // trainable, also when it is only later moved to a device with gradients
    }
}

/// Uniform in [0, 1).
fn unit(rng: &mut ChaCha12Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1 << 24) as f32
}
