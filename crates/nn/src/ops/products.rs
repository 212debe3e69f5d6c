//! The kernels of products and convolutions, chosen by the run's precision and by how the weights are stored.

use super::flex::values;
use crate::precision::{self, Precision};
use burn::backend::flex::FlexTensor;
use burn::tensor::DType;
use half::{bf16, f16};
use smalti_kernels::product::Sizes;
use smalti_kernels::{bf16 as rounded, product, small_weights};

/// y = a * b + bias; b is contiguous, f32 or of 16 bits.
pub(super) fn multiply(a: &[f32], b: &FlexTensor, b_transposed: bool, bias: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    match (precision::current(), b.dtype()) {
        (Precision::F32, DType::F16) => small_weights::multiply(a, f16s(b), b_transposed, bias, sizes, y),
        (Precision::F32, DType::BF16) => small_weights::multiply(a, bf16s(b), b_transposed, bias, sizes, y),
        (Precision::F32, _) => product::multiply(a, values(b), b_transposed, bias, sizes, y),
        (Precision::Bf16, DType::F16) => rounded::product::multiply(a, f16s(b), b_transposed, bias, sizes, y),
        (Precision::Bf16, DType::BF16) => rounded::product::multiply(a, bf16s(b), b_transposed, bias, sizes, y),
        (Precision::Bf16, _) => rounded::product::multiply(a, values(b), b_transposed, bias, sizes, y),
    }
}

/// y = a^T * b; `column_sums` becomes the sum of the rows of b.
pub(super) fn multiply_transposed(a: &[f32], b: &[f32], sizes: Sizes, y: &mut [f32], column_sums: Option<&mut [f32]>) {
    match precision::current() {
        Precision::F32 => product::multiply_transposed(a, b, sizes, y, column_sums),
        Precision::Bf16 => rounded::product::multiply_transposed(a, b, sizes, y, column_sums),
    }
}

pub(super) mod convolution {
    use super::*;
    pub use smalti_kernels::convolution::shift_gradient;
    use smalti_kernels::convolution::{self as plain, Added, Convolution};

    pub fn forward(x: &[f32], weight: &FlexTensor, added: Added, shape: Convolution, y: &mut [f32]) {
        match (precision::current(), weight.dtype()) {
            (Precision::F32, DType::F16) => plain::forward(x, f16s(weight), added, shape, y),
            (Precision::F32, DType::BF16) => plain::forward(x, bf16s(weight), added, shape, y),
            (Precision::F32, _) => plain::forward(x, values(weight), added, shape, y),
            (Precision::Bf16, DType::F16) => rounded::convolution::forward(x, f16s(weight), added, shape, y),
            (Precision::Bf16, DType::BF16) => rounded::convolution::forward(x, bf16s(weight), added, shape, y),
            (Precision::Bf16, _) => rounded::convolution::forward(x, values(weight), added, shape, y),
        }
    }

    pub fn input_gradient(weight: &FlexTensor, dy: &[f32], shape: Convolution, dx: &mut [f32]) {
        with_wide(weight, |weight| match precision::current() {
            Precision::F32 => plain::input_gradient(weight, dy, shape, dx),
            Precision::Bf16 => rounded::convolution::input_gradient(weight, dy, shape, dx),
        });
    }

    pub fn weight_gradient(x: &[f32], dy: &[f32], shape: Convolution, dweight: &mut [f32], dbias: Option<&mut [f32]>) {
        match precision::current() {
            Precision::F32 => plain::weight_gradient(x, dy, shape, dweight, dbias),
            Precision::Bf16 => rounded::convolution::weight_gradient(x, dy, shape, dweight, dbias),
        }
    }
}

/// The elements of a contiguous tensor of f16.
fn f16s(tensor: &FlexTensor) -> &[f16] {
    tensor.as_slice().expect("a contiguous tensor of f16")
}

/// The elements of a contiguous tensor of bf16.
fn bf16s(tensor: &FlexTensor) -> &[bf16] {
    tensor.as_slice().expect("a contiguous tensor of bf16")
}

/// Calls `body` with weights as f32: where they lie, or a copy of those of 16 bits.
fn with_wide(weight: &FlexTensor, body: impl FnOnce(&[f32])) {
    match weight.dtype() {
        DType::F16 => small_weights::with_wide(f16s(weight), body),
        DType::BF16 => small_weights::with_wide(bf16s(weight), body),
        _ => body(values(weight)),
    }
}
