//! Nearest codebook entry (van den Oord et al. 2017, equation 2).

use super::flex::{contiguous, on_computing_backends, values};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension, flex::FlexTensor};
use burn::tensor::{Int, IntDType, Slice, Tensor, TensorData};
use smalti_kernels::nearest::nearest;

/// latents [n, channels], codebook [k, channels] -> [n]: index of the codebook entry with the smallest squared distance; the lowest of equals.
/// No gradient flows through it; the matrix of distances is never in memory as a whole.
pub fn nearest_code(latents: Tensor<2>, codebook: Tensor<2>) -> Tensor<1, Int> {
    let ([_, channels], [codebook_size, code_channels]) = (latents.dims(), codebook.dims());
    assert!(
        channels == code_channels && codebook_size > 0 && channels > 0,
        "nearest_code: latents {:?} do not fit codebook {:?} ([codebook_size, channels])",
        latents.dims(),
        codebook.dims()
    );
    Tensor::from_dispatch(<Dispatch as NearestCodeOperation>::nearest_code(latents.into_dispatch(), codebook.into_dispatch()))
}

/// The body on one backend; the default is composed of burn primitives.
pub trait NearestCodeBodies: Backend {
    fn nearest_code_body(latents: FloatTensor<Self>, codebook: FloatTensor<Self>) -> IntTensor<Self> {
        composed::<Self>(latents, codebook)
    }
}

#[backend_extension(Flex, Autodiff, Cube: cfg(feature = "wgpu"))]
pub trait NearestCodeOperation: Backend {
    fn nearest_code(latents: FloatTensor<Self>, codebook: FloatTensor<Self>) -> IntTensor<Self>;
}

on_computing_backends!(NearestCodeOperation {
    fn nearest_code(latents: FloatTensor<Self>, codebook: FloatTensor<Self>) -> IntTensor<Self> {
        Self::nearest_code_body(latents, codebook)
    }
});

#[cfg(feature = "wgpu")]
impl NearestCodeBodies for burn::backend::Cube {}

impl<B: NearestCodeBodies, C: CheckpointStrategy> NearestCodeOperation for Autodiff<B, C> {
    fn nearest_code(latents: FloatTensor<Self>, codebook: FloatTensor<Self>) -> IntTensor<Self> {
        B::nearest_code_body(latents.into_primitive(), codebook.into_primitive())
    }
}

impl NearestCodeBodies for Flex {
    fn nearest_code_body(latents: FlexTensor, codebook: FlexTensor) -> FlexTensor {
        let (latents, codebook) = (contiguous(latents), contiguous(codebook));
        let [count, channels] = latents.shape().dims();
        let mut indices = vec![0; count];
        nearest(values(&latents), values(&codebook), channels, &mut indices);
        let indices: Vec<i32> = indices.into_iter().map(|index| index as i32).collect(); // a codebook of 2^31 entries does not fit into memory
        FlexTensor::from_data(TensorData::new(indices, [count]))
    }
}

/// Rows of latents compared at a time, so that the matrix of distances never stands in memory as a whole.
const BLOCK_SIZE: usize = 1024;

pub(super) fn composed<B: Backend>(latents: FloatTensor<B>, codebook: FloatTensor<B>) -> IntTensor<B> {
    let (count, codebook_size) = (latents.shape()[0], codebook.shape()[0]);
    let half_squares = B::float_mul_scalar(B::float_sum_dim(B::float_mul(codebook.clone(), codebook.clone()), 1), 0.5f32.into());
    let half_squares = B::float_reshape(half_squares, [1, codebook_size].into());
    let transposed = B::float_transpose(codebook);
    let nearest = |start: usize| {
        let block = B::float_slice(latents.clone(), &[Slice::from(start..(start + BLOCK_SIZE).min(count)), Slice::full()]);
        // Half the squared distance, less half the square of the row.
        let distances = B::float_sub(half_squares.clone(), B::float_matmul(block, transposed.clone()));
        B::float_argmin(distances, 1, IntDType::I32)
    };
    let blocks: Vec<_> = (0..count).step_by(BLOCK_SIZE).map(nearest).collect();
    if blocks.is_empty() {
        return B::int_zeros([0].into(), &latents.device(), IntDType::I32);
    }
    B::int_reshape(B::int_cat(blocks, 0), [count].into())
}
