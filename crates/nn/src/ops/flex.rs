//! Between burn's CPU tensors and slices, without copies where the memory allows.

use burn::backend::flex::FlexTensor;
use burn::tensor::{Shape, TensorData};

/// The tensor with its elements one behind the other.
pub(super) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// The elements of a contiguous f32 tensor.
pub(super) fn values(tensor: &FlexTensor) -> &[f32] {
    let dtype = tensor.dtype();
    tensor.as_slice().unwrap_or_else(|| panic!("our CPU kernels take contiguous f32 tensors, found {dtype:?}"))
}

pub(super) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}

/// A tensor of the shape that `write` fills; it must hand all of it to a kernel.
pub(super) fn filled(shape: impl Into<Shape>, write: impl FnOnce(&mut [f32])) -> FlexTensor {
    let shape = shape.into();
    tensor(filled_values(shape.num_elements(), write), shape)
}

/// [`filled`], without a shape.
pub(super) fn filled_values(len: usize, write: impl FnOnce(&mut [f32])) -> Vec<f32> {
    // SAFETY: the operations of this module, which alone can call this, hand the slice to a kernel, and every kernel stores each element of its outputs before it
    // reads it (proved by the kernels' tests on poisoned outputs).
    unsafe { smalti_kernels::memory::filled(len, write) }
}

/// Implements a dispatched trait the same way on every backend that computes (Autodiff, which records, is written out by each operation).
macro_rules! on_computing_backends {
    ($operation:ident { $($methods:tt)* }) => {
        impl $operation for burn::backend::Flex { $($methods)* }
        #[cfg(feature = "wgpu")]
        impl $operation for burn::backend::Cube { $($methods)* }
    };
}
pub(super) use on_computing_backends;
