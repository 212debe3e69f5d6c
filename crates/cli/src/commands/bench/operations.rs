//! Rows of one operation, called as networks call it.

use super::row::Prepared;
use burn::tensor::{Device, Tensor, TensorData};
use smalti_kernels::peak;
use smalti_nn::ops::{self, Activation, Mask, Padding};
use smalti_nn::precision::{self, Precision};

/// Far beyond any cache: 64 MiB.
const TRAFFIC_LENGTH: usize = 16 << 20;
const MULTIPLY_ADD_ROUNDS: usize = 4_000_000;

const HEADS: usize = 8;
const HEAD_CHANNELS: usize = 64;
const GROUP_COUNT: usize = 32;

/// Of the units that products of this precision are computed by.
pub fn multiply_adds() -> Prepared {
    let run = match precision::current() {
        Precision::F32 => peak::multiply_adds,
        Precision::Bf16 => peak::bf16_multiply_adds,
    };
    let flops = run(MULTIPLY_ADD_ROUNDS);
    let body = Box::new(move || {
        run(MULTIPLY_ADD_ROUNDS);
    });
    Prepared { body, units: 1, flops, bytes: 0.0 }
}

pub fn triad() -> Prepared {
    let (mut a, b, c) = (vec![0.0; TRAFFIC_LENGTH], vec![1.0; TRAFFIC_LENGTH], vec![2.0; TRAFFIC_LENGTH]);
    let bytes = peak::triad(&mut a, &b, &c, 3.0);
    let body = Box::new(move || {
        peak::triad(&mut a, &b, &c, 3.0);
    });
    Prepared { body, units: 1, flops: 0.0, bytes }
}

pub fn read() -> Prepared {
    let values = vec![1.0; 4 * TRAFFIC_LENGTH];
    let bytes = peak::read(&values);
    let body = Box::new(move || {
        peak::read(&values);
    });
    Prepared { body, units: 1, flops: 0.0, bytes }
}

pub fn product(rows: usize, depth: usize, columns: usize) -> Prepared {
    let device = Device::flex();
    let (x, weight): (Tensor<2>, Tensor<2>) = (values([rows, depth], &device), values([depth, columns], &device));
    let body = Box::new(move || {
        ops::linear(x.clone(), weight.clone(), None);
    });
    Prepared { body, units: 1, flops: 2.0 * (rows * depth * columns) as f64, bytes: 4.0 * (rows * depth + depth * columns + rows * columns) as f64 }
}

/// 3x3, stride 1, as many channels out as in; backward: with the gradients of input, weight and bias.
pub fn convolution(batch: usize, size: usize, channels: usize, backward: bool) -> Prepared {
    let device = if backward { Device::flex().autodiff() } else { Device::flex() };
    let x: Tensor<4> = values([batch, size, size, channels], &device);
    let weight: Tensor<4> = values([3, 3, channels, channels], &device);
    let bias: Tensor<1> = values([channels], &device);
    let dy: Tensor<4> = values([batch, size, size, channels], &Device::flex());
    let flops = 2.0 * (batch * size * size * 9 * channels * channels) as f64;
    let (map, weights) = ((batch * size * size * channels) as f64, (9 * channels * channels) as f64);
    let call = move || ops::conv2d(x.clone(), weight.clone(), Some(bias.clone()), 1, Padding::both(1));
    if backward {
        let body = Box::new(move || {
            // The sum of y * dy has dy for its gradient by y.
            (call() * Tensor::from_inner(dy.clone())).sum().backward();
        });
        Prepared { body, units: 1, flops: 3.0 * flops, bytes: 4.0 * (5.0 * map + 3.0 * weights) }
    } else {
        let body = Box::new(move || {
            call();
        });
        Prepared { body, units: 1, flops, bytes: 4.0 * (2.0 * map + weights) }
    }
}

/// Followed by SiLU, [1, 256, 256, 128].
pub fn group_norm() -> Prepared {
    let device = Device::flex();
    let x: Tensor<4> = values([1, 256, 256, 128], &device);
    let (scale, bias): (Tensor<1>, Tensor<1>) = (values([128], &device), values([128], &device));
    let elements = (256 * 256 * 128) as f64;
    let body = Box::new(move || {
        ops::group_norm(x.clone(), scale.clone(), bias.clone(), GROUP_COUNT, 1e-5, Activation::Silu);
    });
    // Read once for the statistics and once for the result: nothing as large stays in a cache.
    Prepared { body, units: 1, flops: 0.0, bytes: 4.0 * 3.0 * elements }
}

/// 8 heads of 64 channels.
pub fn attention(tokens: usize) -> Prepared {
    let device = Device::flex();
    let [query, key, value]: [Tensor<4>; 3] = [(); 3].map(|()| values([1, HEADS, tokens, HEAD_CHANNELS], &device));
    let body = Box::new(move || {
        ops::attention(query.clone(), key.clone(), value.clone(), Mask::None);
    });
    let flops = 4.0 * (HEADS * tokens * tokens * HEAD_CHANNELS) as f64;
    Prepared { body, units: 1, flops, bytes: 16.0 * (HEADS * tokens * HEAD_CHANNELS) as f64 }
}

/// Values in [-1, 1), the same every time.
pub fn values<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let value = |i: usize| (i * 7919 % 1000) as f32 / 500.0 - 1.0;
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    let tensor = Tensor::from_data(TensorData::new(values, shape), device);
    if device.is_autodiff() { tensor.require_grad() } else { tensor }
}
