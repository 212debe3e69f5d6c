//! One step of AdamW, and of a moving average, in one pass over the memory and in place where nobody else holds the tensor.

use super::flex::{contiguous, values};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension, flex::FlexTensor};
use burn::tensor::Tensor;
use smalti_kernels::elementwise::{self as kernel, AdamW};

/// parameter, gradient and both moments, of the same shape and without autodiff -> (parameter, moments).
pub(crate) fn adamw<const D: usize>(parameter: Tensor<D>, gradient: Tensor<D>, moments: [Tensor<D>; 2], numbers: AdamW) -> (Tensor<D>, [Tensor<D>; 2]) {
    assert!(parameter.dims() == gradient.dims(), "adamw: parameter {:?} does not fit gradient {:?}", parameter.dims(), gradient.dims());
    let [moment_1, moment_2] = moments.map(Tensor::into_dispatch);
    let (parameter, moment_1, moment_2) =
        <Dispatch as OptimizerStep>::adamw_step(parameter.into_dispatch(), gradient.into_dispatch(), moment_1, moment_2, numbers);
    (Tensor::from_dispatch(parameter), [Tensor::from_dispatch(moment_1), Tensor::from_dispatch(moment_2)])
}

/// average * decay + value * (1 - decay); both of the same shape and without autodiff. In place if `average` is not shared.
pub fn move_average<const D: usize>(average: Tensor<D>, value: Tensor<D>, decay: f32) -> Tensor<D> {
    assert!(average.dims() == value.dims(), "move_average: average {:?} does not fit value {:?}", average.dims(), value.dims());
    Tensor::from_dispatch(<Dispatch as OptimizerStep>::moved_average(average.into_dispatch(), value.into_dispatch(), decay))
}

#[backend_extension(Flex, Cube: cfg(feature = "wgpu"))]
pub trait OptimizerStep: Backend {
    /// -> (parameter, first moment, second moment)
    fn adamw_step(
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        moment_1: FloatTensor<Self>,
        moment_2: FloatTensor<Self>,
        numbers: AdamW,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed_adamw::<Self>(parameter, gradient, moment_1, moment_2, numbers)
    }

    fn moved_average(average: FloatTensor<Self>, value: FloatTensor<Self>, decay: f32) -> FloatTensor<Self> {
        Self::float_add(Self::float_mul_scalar(average, decay.into()), Self::float_mul_scalar(value, (1.0 - decay).into()))
    }
}

#[cfg(feature = "wgpu")]
impl OptimizerStep for burn::backend::Cube {}

impl OptimizerStep for Flex {
    fn adamw_step(
        parameter: FlexTensor,
        gradient: FlexTensor,
        moment_1: FlexTensor,
        moment_2: FlexTensor,
        numbers: AdamW,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let gradient = contiguous(gradient);
        let [mut parameter, mut moment_1, mut moment_2] = [parameter, moment_1, moment_2].map(whole);
        // `storage_mut` copies what is shared and changes in place what is not.
        kernel::adamw(parameter.storage_mut(), values(&gradient), moment_1.storage_mut(), moment_2.storage_mut(), numbers);
        (parameter, moment_1, moment_2)
    }

    fn moved_average(average: FlexTensor, value: FlexTensor, decay: f32) -> FlexTensor {
        let (mut average, value) = (whole(average), contiguous(value));
        kernel::move_average(average.storage_mut(), values(&value), decay);
        average
    }
}

/// The tensor with its elements one behind the other and nothing else in its memory.
fn whole(tensor: FlexTensor) -> FlexTensor {
    let alone = tensor.is_contiguous() && tensor.bytes().len() == tensor.layout().num_elements() * size_of::<f32>();
    if alone { tensor } else { FlexTensor::from_data(tensor.to_contiguous().into_data()) }
}

pub(super) fn composed_adamw<B: Backend>(
    parameter: FloatTensor<B>,
    gradient: FloatTensor<B>,
    moment_1: FloatTensor<B>,
    moment_2: FloatTensor<B>,
    numbers: AdamW,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let AdamW { learning_rate, beta_1, beta_2, epsilon, weight_decay, step } = numbers;
    let times = |tensor: FloatTensor<B>, factor: f32| B::float_mul_scalar(tensor, factor.into());
    let moment_1 = B::float_add(times(moment_1, beta_1), times(gradient.clone(), 1.0 - beta_1));
    let moment_2 = B::float_add(times(moment_2, beta_2), times(B::float_mul(gradient.clone(), gradient), 1.0 - beta_2));
    let deviation = B::float_sqrt(times(moment_2.clone(), 1.0 / (1.0 - beta_2.powi(step))));
    let update = B::float_div(times(moment_1.clone(), learning_rate / (1.0 - beta_1.powi(step))), B::float_add_scalar(deviation, epsilon.into()));
    (B::float_sub(times(parameter, 1.0 - learning_rate * weight_decay), update), moment_1, moment_2)
}
