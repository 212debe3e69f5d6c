//! The composed bodies, which GPU backends run, against the kernels: both on the CPU, forward and backward.

use super::flex::tensor;
use super::gradients::Wanted;
use super::{
    Activation, Padding, attention, concatenate, conv2d, cross_entropy, elementwise, group_norm, layer_norm, linear, nearest_code, optimizer_step, upsample,
};
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::TensorData;
use smalti_kernels::elementwise::{AdamW, Function};

/// Values in [-1, 1), the same for the same seed.
fn values(shape: &[usize], seed: u64) -> FlexTensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    tensor((0..shape.iter().product()).map(|_| next()).collect(), shape.to_vec())
}

fn host(tensor: FlexTensor) -> Vec<f32> {
    super::flex::contiguous(tensor).into_data().try_to_vec().expect("f32")
}

fn check_close(name: &str, found: impl IntoIterator<Item = FlexTensor>, expected: impl IntoIterator<Item = FlexTensor>) {
    for (part, (found, expected)) in found.into_iter().zip(expected).enumerate() {
        assert_eq!(found.layout().shape(), expected.layout().shape(), "{name}: shapes of part {part}");
        let (found, expected) = (host(found), host(expected));
        let scale = expected.iter().fold(1.0f32, |largest, value| largest.max(value.abs()));
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() <= 2e-5 * scale, "{name}, part {part} [{i}]: expected {expected}, found {found}");
        }
    }
}

const ALL: Wanted = Wanted { x: true, weight: true, bias: true };

#[test]
fn conv2d_bodies_agree() {
    use conv2d::{BackwardOptions, Conv2dBodies, composed_backward, composed_forward};
    for (kernel, stride, before, after) in [(3, 1, 1, 1), (3, 2, 0, 1), (4, 2, 1, 1), (1, 1, 0, 0)] {
        let padding = Padding { before, after };
        let (x, weight) = (values(&[2, 7, 8, 5], 1), values(&[kernel, kernel, 5, 6], 2));
        let forward = |bias: &FlexTensor, residual: Option<&FlexTensor>| {
            let (bias, residual) = (bias.clone(), residual.cloned());
            let y = Flex::conv2d_forward(x.clone(), weight.clone(), bias.clone(), residual.clone(), stride, padding);
            check_close("conv2d", [composed_forward::<Flex>(x.clone(), weight.clone(), bias, residual, stride, padding)], [y.clone()]);
            y
        };
        let (bias, shifts) = (values(&[6], 3), values(&[2, 6], 5));
        let dy = values(&forward(&bias, None).layout().shape().to_vec(), 4);
        forward(&bias, Some(&dy));
        forward(&shifts, None);
        for shifted in [false, true] {
            let options = BackwardOptions { stride, padding, shifted, wanted: ALL };
            let found = composed_backward::<Flex>(x.clone(), weight.clone(), dy.clone(), options);
            let expected = Flex::conv2d_backward(x.clone(), weight.clone(), dy.clone(), options);
            check_close("conv2d's gradients", found.into_iter().flatten(), expected.into_iter().flatten());
        }
    }
}

#[test]
fn group_norm_bodies_agree() {
    use group_norm::{GroupNormBodies, Options, composed_backward, composed_forward};
    for activation in [Activation::Identity, Activation::Silu] {
        let options = Options { group_count: 3, epsilon: 1e-5, activation };
        let (x, scale, bias, dy) = (values(&[2, 4, 5, 12], 1), values(&[12], 2), values(&[12], 3), values(&[2, 4, 5, 12], 4));
        let (y, statistics) = Flex::group_norm_forward(x.clone(), scale.clone(), bias.clone(), options);
        let (found, found_statistics) = composed_forward::<Flex>(x.clone(), scale.clone(), bias.clone(), options);
        check_close("group_norm", [found, found_statistics.0.clone(), found_statistics.1.clone()], [y, statistics.0.clone(), statistics.1.clone()]);
        let found = composed_backward::<Flex>(x.clone(), scale.clone(), bias.clone(), found_statistics, dy.clone(), options);
        check_close("group_norm's gradients", found, Flex::group_norm_backward(x, scale, bias, statistics, dy, options));
    }
}

#[test]
fn layer_norm_bodies_agree() {
    use layer_norm::{LayerNormBodies, composed_backward, composed_forward};
    let (x, scale, bias, dy) = (values(&[2, 5, 12], 1), values(&[12], 2), values(&[12], 3), values(&[2, 5, 12], 4));
    let (y, statistics) = Flex::layer_norm_forward(x.clone(), scale.clone(), bias.clone(), 1e-5);
    let (found, found_statistics) = composed_forward::<Flex>(x.clone(), scale.clone(), bias, 1e-5);
    check_close("layer_norm", [found, found_statistics.0.clone(), found_statistics.1.clone()], [y, statistics.0.clone(), statistics.1.clone()]);
    let found = composed_backward::<Flex>(x.clone(), scale.clone(), found_statistics, dy.clone());
    check_close("layer_norm's gradients", found, Flex::layer_norm_backward(x, scale, statistics, dy));
}

#[test]
fn linear_bodies_agree() {
    use linear::{LinearBodies, composed_backward, composed_forward};
    let (x, weight, bias, dy) = (values(&[2, 5, 7], 1), values(&[7, 9], 2), values(&[9], 3), values(&[2, 5, 9], 4));
    for weight in [weight, values(&[9, 7], 5).transpose(0, 1)] {
        let y = Flex::linear_forward(x.clone(), weight.clone(), bias.clone());
        check_close("linear", [composed_forward::<Flex>(x.clone(), weight.clone(), bias.clone())], [y]);
        let found = composed_backward::<Flex>(x.clone(), weight.clone(), dy.clone(), ALL);
        check_close("linear's gradients", found.into_iter().flatten(), Flex::linear_backward(x.clone(), weight, dy.clone(), ALL).into_iter().flatten());
    }
}

#[test]
fn attention_bodies_agree() {
    use attention::{AttentionBodies, Options, composed_backward, composed_forward};
    for (causal, masked) in [(false, false), (true, false), (false, true)] {
        let options = Options { causal, masked, scale: 0.4 };
        let (query, key, value, dy) = (values(&[2, 3, 5, 4], 1), values(&[2, 3, 8, 4], 2), values(&[2, 3, 8, 4], 3), values(&[2, 3, 5, 4], 4));
        let visible = tensor([1.0, 0.0, 1.0, 1.0].repeat(4), [2, 8]);
        let result = Flex::attention_forward(query.clone(), key.clone(), value.clone(), visible.clone(), options);
        let found = composed_forward::<Flex>(query.clone(), key.clone(), value.clone(), visible.clone(), options);
        check_close("attention", [found.0.clone(), found.1.clone()], [result.0.clone(), result.1.clone()]);
        let found = composed_backward::<Flex>(query.clone(), key.clone(), value.clone(), visible.clone(), found, dy.clone(), options);
        check_close("attention's gradients", found, Flex::attention_backward(query, key, value, visible, result, dy, options));
    }
}

#[test]
fn elementwise_bodies_agree() {
    use elementwise::{ElementwiseBodies, composed_backward, composed_forward};
    let (x, dy) = (values(&[7, 9], 1), values(&[7, 9], 2));
    for function in [Function::Silu, Function::Gelu, Function::QuickGelu, Function::Relu, Function::leaky_relu(0.2)] {
        check_close(&format!("{function:?}"), [composed_forward::<Flex>(x.clone(), function)], [Flex::elementwise_forward(x.clone(), function)]);
        let found = composed_backward::<Flex>(x.clone(), dy.clone(), function);
        check_close(&format!("{function:?}'s gradient"), [found], [Flex::elementwise_backward(x.clone(), dy.clone(), function)]);
    }
}

#[test]
fn cross_entropy_bodies_agree() {
    use cross_entropy::{CrossEntropyBodies, composed_backward, composed_forward};
    let (logits, dlosses) = (values(&[6, 11], 1), values(&[6], 2));
    let targets = FlexTensor::from_data(TensorData::new(vec![0i32, 10, 3, 3, 7, 1], [6]));
    for smoothing in [0.0, 0.2] {
        let (losses, log_sums) = Flex::cross_entropy_forward(logits.clone(), targets.clone(), smoothing);
        let found = composed_forward::<Flex>(logits.clone(), targets.clone(), smoothing);
        check_close("cross_entropy", [found.0, found.1.clone()], [losses, log_sums.clone()]);
        let found = composed_backward::<Flex>(logits.clone(), targets.clone(), found.1, dlosses.clone(), smoothing);
        let expected = Flex::cross_entropy_backward(logits.clone(), targets.clone(), log_sums, dlosses.clone(), smoothing);
        check_close("cross_entropy's gradient", [found], [expected]);
    }
}

#[test]
fn nearest_code_bodies_agree() {
    use nearest_code::{NearestCodeBodies, composed};
    let (latents, codebook) = (values(&[1500, 6], 1), values(&[40, 6], 2));
    let of = |indices: FlexTensor| indices.into_data().convert::<i64>().try_to_vec::<i64>().expect("integers");
    assert_eq!(of(composed::<Flex>(latents.clone(), codebook.clone())), of(Flex::nearest_code_body(latents, codebook)));
}

#[test]
fn upsampling_bodies_agree() {
    use upsample::{UpsampleBodies, composed_backward, composed_forward};
    check_close("upsample", [composed_forward::<Flex>(values(&[2, 3, 4, 5], 1))], [Flex::upsample_forward(values(&[2, 3, 4, 5], 1))]);
    check_close("upsample's gradient", [composed_backward::<Flex>(values(&[2, 6, 8, 5], 1))], [Flex::upsample_backward(values(&[2, 6, 8, 5], 1))]);
}

#[test]
fn adamw_bodies_agree() {
    use optimizer_step::{OptimizerStep, composed_adamw};
    let numbers = AdamW { learning_rate: 0.01, beta_1: 0.9, beta_2: 0.99, epsilon: 1e-6, weight_decay: 0.1, step: 3 };
    let squares = |seed| tensor(host(values(&[5, 7], seed)).iter().map(|value| value * value).collect(), [5, 7]);
    let [parameter, gradient, moment] = [1, 2, 3].map(|seed| values(&[5, 7], seed));
    let found = composed_adamw::<Flex>(parameter.clone(), gradient.clone(), moment.clone(), squares(4), numbers);
    let expected = Flex::adamw_step(parameter, gradient, moment, squares(4), numbers);
    check_close("adamw", [found.0, found.1, found.2], [expected.0, expected.1, expected.2]);
}

/// By hand, and against the exact function they stand beside.
#[test]
fn composed_functions_are_their_formulas() {
    use burn::tensor::{Device, Tensor};
    let device = Device::flex();
    let values = |tensor: Tensor<2>| tensor.into_data().iter::<f32>().collect::<Vec<_>>();
    let x = Tensor::<2>::from_data([[3.0, 4.0, 0.0, 0.0], [-1.0, 1.0, -1.0, 1.0]], &device);
    let scale = Tensor::<1>::from_data([1.0, 2.0, 1.0, 1.0], &device);
    let found = values(super::rms_norm(x, scale, 0.0));
    for (found, expected) in found.iter().zip([1.2, 3.2, 0.0, 0.0, -1.0, 2.0, -1.0, 1.0]) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    let x = Tensor::<2>::from_data([[-4.0, -1.0, -0.3, 0.0, 0.3, 1.0, 4.0, 30.0]], &device);
    let (tanh, exact) = (values(super::gelu_tanh(x.clone())), values(super::gelu(x)));
    assert!((tanh[5] - 0.841_192).abs() < 1e-6, "the approximation at 1");
    assert!(tanh.iter().zip(&exact).all(|(tanh, exact)| (tanh - exact).abs() < 5e-4) && tanh != exact);
}

#[test]
fn concatenate_bodies_agree() {
    use concatenate::{ConcatenateBodies, composed_backward};
    let (a, b, dy) = (values(&[2, 3, 4, 5], 1), values(&[2, 3, 4, 7], 2), values(&[2, 3, 4, 12], 3));
    check_close(
        "concatenate",
        [Flex::concatenate_forward(a.clone(), b.clone())],
        [<Flex as burn::backend::ops::FloatTensorOps<Flex>>::float_cat(vec![a, b], 3)],
    );
    check_close("concatenate's gradients", composed_backward::<Flex>(dy.clone(), [5, 7]), Flex::concatenate_backward(dy, [5, 7]));
}
