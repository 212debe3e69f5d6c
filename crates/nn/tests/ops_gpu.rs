//! The composed bodies on a wgpu device against the kernels; a software Vulkan device serves: `cargo test --release -p smalti-nn --features wgpu --test ops_gpu`.
#![cfg(feature = "wgpu")]

use burn::tensor::{Device, DeviceKind, Int, Tensor, TensorData};
use smalti_nn::ops::{self, Activation, Mask, Padding};

fn values<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A network of every operation: its losses and the gradients of x and of the convolution's weight.
fn evaluate(device: &Device) -> [Vec<f32>; 3] {
    let device = device.clone().autodiff();
    let x: Tensor<4> = values([2, 6, 6, 8], &device).require_grad();
    let weight: Tensor<4> = values([3, 3, 8, 16], &device).require_grad();
    let h = ops::conv2d(x.clone(), weight.clone(), None, 2, Padding { before: 0, after: 1 });
    let h = ops::group_norm(h, values([16], &device), values([16], &device), 4, 1e-5, Activation::Silu);
    let h = ops::conv2d_shifted(h.clone(), values([1, 1, 16, 16], &device), values([2, 16], &device), 1, Padding::NONE) + h;
    let h = ops::upsample_nearest(h);
    let h = ops::concatenate(h.clone(), h).narrow(3, 8, 16);
    let h = ops::conv2d_onto(h.clone(), h, values([1, 1, 16, 16], &device), Some(values([16], &device)), 1, Padding::NONE);
    let h = h.reshape([2, 36, 2, 8]).swap_dims(1, 2);
    let h = ops::attention(h.clone(), h.clone() * 0.5, h, Mask::Causal).swap_dims(1, 2).reshape([2, 36, 16]);
    let h = ops::gelu(ops::layer_norm(h, values([16], &device), None, 1e-5));
    let logits = ops::linear(h, values([16, 10], &device), None).reshape([72, 10]);
    let nearest = ops::nearest_code(logits.clone(), values([10, 10], &device));
    let targets: Tensor<1, Int> = nearest.clamp(0, 9);
    let losses = ops::cross_entropy(logits, targets, 0.1);
    let gradients = losses.clone().sum().backward();
    let host = |data: TensorData| data.try_to_vec::<f32>().expect("f32");
    [host(losses.into_data()), host(x.grad(&gradients).expect("tracked").into_data()), host(weight.grad(&gradients).expect("tracked").into_data())]
}

#[test]
fn a_wgpu_device_agrees_with_the_kernels() {
    let (found, expected) = (evaluate(&Device::wgpu(DeviceKind::Cpu)), evaluate(&Device::flex()));
    for (part, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found.len(), expected.len());
        let scale = expected.iter().fold(1.0f32, |largest, value| largest.max(value.abs()));
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((found - expected).abs() <= 1e-4 * scale, "part {part} [{i}]: expected {expected}, found {found}");
        }
    }
}
