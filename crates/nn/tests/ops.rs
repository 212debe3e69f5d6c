//! The operations against their definitions in burn's own tensor functions, forward and backward, and against finite differences.

use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation as burn_activation, module, ops::ConvOptions, ops::PadMode};
use smalti_nn::Initializer;
use smalti_nn::layers::Linear;
use smalti_nn::ops::{self, Activation, Mask, Padding};
use smalti_nn::optimizer::FusedAdamW;

fn device() -> Device {
    Device::flex().autodiff()
}

/// Values in [-1, 1), the same for the same seed.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn tensor<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values(shape.iter().product(), seed), shape), &device())
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("f32")
}

fn check_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}: lengths");
    let scale = expected.iter().fold(1.0f32, |largest, value| largest.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * scale, "{name}[{i}]: expected {expected}, found {found}");
    }
}

/// Inputs of an operation, of three ranks; the tests' functions take them as they need them.
#[derive(Clone)]
struct Inputs {
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
}

impl Inputs {
    fn new(x: [usize; 4], weight: [usize; 4], bias: usize) -> Self {
        Self { x: tensor(x, 1), weight: tensor(weight, 2), bias: tensor([bias], 3) }
    }

    fn tracked(&self) -> Self {
        let fresh = |values: TensorData| Tensor::<4>::from_data(values, &device()).require_grad();
        let bias = Tensor::<1>::from_data(self.bias.to_data(), &device()).require_grad();
        Self { x: fresh(self.x.to_data()), weight: fresh(self.weight.to_data()), bias }
    }
}

/// y and the gradients of a random linear functional of it with respect to x, weight and bias (empty where the operation does not use one).
fn evaluate(inputs: &Inputs, operation: &dyn Fn(Inputs) -> Tensor<4>) -> [Vec<f32>; 4] {
    let inputs = inputs.tracked();
    let y = operation(inputs.clone());
    let gradients = (y.clone() * tensor(y.dims(), 9)).sum().backward();
    let of = |tensor: &Tensor<4>| tensor.grad(&gradients).map(host).unwrap_or_default();
    [host(y), of(&inputs.x), of(&inputs.weight), inputs.bias.grad(&gradients).map(host).unwrap_or_default()]
}

fn check_agree(name: &str, inputs: &Inputs, operation: impl Fn(Inputs) -> Tensor<4>, definition: impl Fn(Inputs) -> Tensor<4>) {
    let (found, expected) = (evaluate(inputs, &operation), evaluate(inputs, &definition));
    for (what, (found, expected)) in ["y", "dx", "dweight", "dbias"].iter().zip(found.iter().zip(&expected)) {
        check_close(&format!("{name} {what}"), found, expected, 2e-5);
    }
}

/// Central differences of a random linear functional of y at every seventh element of x and weight.
fn check_differences(name: &str, inputs: &Inputs, operation: impl Fn(Inputs) -> Tensor<4>) {
    let gradients = evaluate(inputs, &operation);
    let functional = |inputs: &Inputs| {
        let y = operation(inputs.clone());
        let factors = values(y.shape().num_elements(), 9);
        host(y).iter().zip(&factors).map(|(y, factor)| f64::from(*y) * f64::from(*factor)).sum::<f64>()
    };
    let step = 1e-2f32;
    for (which, gradient) in [(0, &gradients[1]), (1, &gradients[2])] {
        for i in (0..gradient.len()).step_by(7) {
            let moved = |by: f32| {
                let mut inputs = inputs.clone();
                let target = if which == 0 { &mut inputs.x } else { &mut inputs.weight };
                let mut values = host(target.clone());
                values[i] += by;
                *target = Tensor::from_data(TensorData::new(values, target.dims()), &device());
                functional(&inputs)
            };
            let difference = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            let found = f64::from(gradient[i]);
            assert!((found - difference).abs() < 5e-3 * (1.0 + difference.abs()), "{name} input {which} [{i}]: gradient {found}, difference {difference}");
        }
    }
}

fn conv2d_definition(inputs: Inputs, stride: usize, padding: Padding) -> Tensor<4> {
    let Padding { before, after } = padding;
    let x = inputs.x.permute([0, 3, 1, 2]).pad((before, after, before, after), PadMode::Constant(0.0));
    let options = ConvOptions::new([stride; 2], [0; 2], [1, 1], 1);
    module::conv2d(x, inputs.weight.permute([3, 2, 0, 1]), Some(inputs.bias), options).permute([0, 2, 3, 1])
}

#[test]
fn conv2d_agrees_with_burn() {
    for (kernel, stride, before, after) in [(3, 1, 1, 1), (1, 1, 0, 0), (3, 2, 0, 1), (4, 2, 1, 1), (4, 1, 1, 1)] {
        let inputs = Inputs::new([2, 8, 9, 12], [kernel, kernel, 12, 20], 20);
        let padding = Padding { before, after };
        let name = format!("conv2d kernel {kernel} stride {stride} {padding:?}");
        check_agree(&name, &inputs, |i| ops::conv2d(i.x, i.weight, Some(i.bias), stride, padding), |i| conv2d_definition(i, stride, padding));
    }
    let inputs = Inputs::new([1, 4, 4, 2], [3, 3, 2, 3], 3);
    check_differences("conv2d", &inputs, |i| ops::conv2d(i.x, i.weight, None, 2, Padding::both(1)));
}

#[test]
fn conv2d_gives_gradients_only_where_they_are_wanted() {
    let inputs = Inputs::new([1, 5, 5, 4], [3, 3, 4, 6], 6);
    let x = inputs.x.clone().require_grad();
    let gradients = ops::conv2d(x.clone(), inputs.weight.clone(), None, 1, Padding::both(1)).sum().backward();
    assert!(x.grad(&gradients).is_some() && inputs.weight.grad(&gradients).is_none());
    let bias = inputs.bias.clone().require_grad();
    let gradients = ops::conv2d(inputs.x, inputs.weight, Some(bias.clone()), 1, Padding::both(1)).sum().backward();
    check_close("dbias", &host(bias.grad(&gradients).expect("tracked")), &[25.0; 6], 1e-6);
}

/// As burn adds them, with gradients for everything that is added.
#[test]
fn conv2d_with_additions_agrees_with_burn() {
    for (kernel, stride) in [(3, 1), (3, 2), (1, 1)] {
        let padding = Padding::both(kernel / 2);
        let inputs = Inputs::new([3, 8, 9, 12], [kernel, kernel, 12, 20], 20);
        let shape = conv2d_definition(inputs.clone(), stride, padding).dims();
        let run = |fused: bool| {
            let Inputs { x, weight, bias } = inputs.tracked();
            let (residual, shifts): (Tensor<4>, Tensor<2>) = (tensor(shape, 5).require_grad(), tensor([3, 20], 6).require_grad());
            let plain = |bias: Tensor<1>| conv2d_definition(Inputs { x: x.clone(), weight: weight.clone(), bias }, stride, padding);
            let (onto, shifted) = if fused {
                let bias_of_each = shifts.clone() + bias.clone().unsqueeze();
                (
                    ops::conv2d_onto(residual.clone(), x.clone(), weight.clone(), Some(bias.clone()), stride, padding),
                    ops::conv2d_shifted(x.clone(), weight.clone(), bias_of_each, stride, padding),
                )
            } else {
                (residual.clone() + plain(bias.clone()), plain(bias.clone()) + shifts.clone().reshape([3, 1, 1, 20]))
            };
            let gradients = ((onto.clone() * tensor(shape, 7)).sum() + (shifted.clone() * tensor(shape, 8)).sum()).backward();
            let of = |tensor: &Tensor<4>| host(tensor.grad(&gradients).expect("tracked"));
            let (dx, dweight, dresidual) = (of(&x), of(&weight), of(&residual));
            let (dbias, dshifts) = (host(bias.grad(&gradients).expect("tracked")), host(shifts.grad(&gradients).expect("tracked")));
            [host(onto), host(shifted), dx, dweight, dresidual, dbias, dshifts]
        };
        for (what, (found, expected)) in ["onto", "shifted", "dx", "dweight", "dresidual", "dbias", "dshifts"].iter().zip(run(true).iter().zip(&run(false))) {
            check_close(&format!("kernel {kernel} stride {stride} {what}"), found, expected, 2e-5);
        }
    }
}

/// A frozen convolution still hands the residual its gradient.
#[test]
fn a_residual_has_its_gradient_where_nothing_else_has() {
    let inputs = Inputs::new([1, 5, 5, 4], [3, 3, 4, 6], 6);
    let residual: Tensor<4> = tensor([1, 5, 5, 6], 5).require_grad();
    let gradients = (ops::conv2d_onto(residual.clone(), inputs.x, inputs.weight, None, 1, Padding::both(1)) * 3.0).sum().backward();
    check_close("dresidual", &host(residual.grad(&gradients).expect("tracked")), &[3.0; 150], 1e-6);
}

#[test]
#[should_panic(expected = "a residual [1, 5, 5, 4] does not fit the output [1, 5, 5, 6]")]
fn conv2d_names_a_residual_that_does_not_fit() {
    let inputs = Inputs::new([1, 5, 5, 4], [3, 3, 4, 6], 6);
    ops::conv2d_onto(inputs.x.clone(), inputs.x, inputs.weight, None, 1, Padding::both(1));
}

#[test]
fn concatenate_agrees_with_burn() {
    let inputs = Inputs::new([2, 4, 3, 5], [2, 4, 3, 8], 1);
    check_agree("concatenate", &inputs, |i| ops::concatenate(i.x, i.weight), |i| Tensor::cat(vec![i.x, i.weight], 3));
    let x = inputs.x.clone().require_grad();
    let gradients = ops::concatenate(inputs.weight, x.clone()).sum().backward();
    check_close("of the second alone", &host(x.grad(&gradients).expect("tracked")), &[1.0; 120], 0.0);
}

#[test]
#[should_panic(expected = "concatenate: [2, 4, 3, 5] and [2, 3, 4, 5] differ in more than their channels")]
fn concatenate_names_both_shapes() {
    ops::concatenate(tensor([2, 4, 3, 5], 1), tensor([2, 3, 4, 5], 2));
}

fn group_norm_definition(inputs: Inputs, groups: usize, activation: Activation) -> Tensor<4> {
    let [batch, height, width, channels] = inputs.x.dims();
    let grouped = inputs.x.reshape([batch, height * width, groups, channels / groups]);
    let centred = grouped.clone() - grouped.mean_dims(&[1, 3]);
    let variance = centred.clone().powi_scalar(2).mean_dims(&[1, 3]);
    let normalised = (centred / (variance + 1e-5).sqrt()).reshape([batch, height, width, channels]);
    let y = normalised * inputs.weight + inputs.bias.reshape([1, 1, 1, channels]);
    if activation == Activation::Silu { burn_activation::silu(y) } else { y }
}

#[test]
fn group_norm_agrees_with_burn() {
    for (groups, channels, activation) in [(4, 12, Activation::Silu), (1, 5, Activation::Identity), (32, 64, Activation::Silu), (3, 3, Activation::Silu)] {
        let inputs = Inputs::new([3, 5, 6, channels], [1, 1, 1, channels], channels);
        let operation = |i: Inputs| ops::group_norm(i.x, i.weight.reshape([channels]), i.bias, groups, 1e-5, activation);
        check_agree(&format!("group_norm {groups} of {channels}"), &inputs, operation, |i| group_norm_definition(i, groups, activation));
    }
    let inputs = Inputs::new([2, 3, 4, 6], [1, 1, 1, 6], 6);
    check_differences("group_norm", &inputs, |i| ops::group_norm(i.x, i.weight.reshape([6]), i.bias, 2, 1e-5, Activation::Silu));
}

#[test]
fn layer_norm_agrees_with_burn() {
    for channels in [1, 7, 8, 100] {
        let inputs = Inputs::new([2, 3, 40, channels], [1, 1, 1, channels], channels);
        let definition = |i: Inputs| {
            let centred = i.x.clone() - i.x.mean_dim(3);
            let variance = centred.clone().powi_scalar(2).mean_dim(3);
            centred / (variance + 1e-5).sqrt() * i.weight + i.bias.reshape([1, 1, 1, channels])
        };
        let operation = |i: Inputs| ops::layer_norm(i.x, i.weight.reshape([channels]), Some(i.bias), 1e-5);
        check_agree(&format!("layer_norm of {channels}"), &inputs, operation, definition);
    }
}

#[test]
fn linear_agrees_with_burn() {
    for (input, output) in [(1, 1), (20, 33), (65, 48)] {
        let inputs = Inputs::new([2, 3, 11, input], [1, 1, input, output], output);
        let operation = |i: Inputs| ops::linear(i.x, i.weight.reshape([input, output]), Some(i.bias));
        check_agree("linear", &inputs, operation, |i| i.x.matmul(i.weight) + i.bias.reshape([1, 1, 1, output]));
    }
    // A transposed view, as of an embedding table that also makes the logits.
    let inputs = Inputs::new([2, 3, 5, 20], [1, 1, 33, 20], 33);
    let operation = |i: Inputs| ops::linear(i.x, i.weight.reshape([33, 20]).transpose(), Some(i.bias));
    check_agree("linear, transposed", &inputs, operation, |i| i.x.matmul(i.weight.swap_dims(2, 3)) + i.bias.reshape([1, 1, 1, 33]));
}

#[test]
fn strided_inputs_are_read_as_they_are_meant() {
    let inputs = Inputs::new([2, 6, 5, 8], [3, 3, 8, 4], 4);
    let turned = |x: Tensor<4>| x.swap_dims(1, 2);
    let operation = |i: Inputs| ops::conv2d(turned(i.x), i.weight, Some(i.bias), 1, Padding::both(1));
    check_agree("conv2d of a view", &inputs, operation, |i| conv2d_definition(Inputs { x: turned(i.x), ..i }, 1, Padding::both(1)));
}

#[test]
#[should_panic(expected = "conv2d: x [1, 4, 4, 3]")]
fn a_wrong_shape_is_named() {
    ops::conv2d(tensor([1, 4, 4, 3], 1), tensor([3, 3, 4, 8], 2), None, 1, Padding::both(1));
}

#[test]
fn nearest_code_takes_the_lowest_of_equals() {
    let codebook = Tensor::<2>::from_data([[0.0f32, 0.0], [1.0, 1.0], [1.0, 1.0], [-1.0, 0.0]], &device());
    let latents = Tensor::<2>::from_data([[0.9f32, 1.2], [0.1, 0.0], [-3.0, 0.1]], &device());
    let tokens = ops::nearest_code(latents, codebook).into_data().convert::<i64>().try_to_vec::<i64>().expect("integers");
    assert_eq!(tokens, [1, 0, 3]);
}

fn softmax_attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, addends: Option<Tensor<4>>) -> Tensor<4> {
    let scores = query.clone().matmul(key.swap_dims(2, 3)) * (1.0 / (query.dims()[3] as f32).sqrt());
    let scores = match addends {
        Some(addends) => scores + addends,
        None => scores,
    };
    burn_activation::softmax(scores, 3).matmul(value)
}

#[test]
fn attention_agrees_with_burn() {
    for (queries, keys, channels) in [(1, 1, 1), (5, 9, 7), (40, 40, 16), (7, 300, 33), (300, 300, 8)] {
        // query [3, 2, queries, channels], key and value as one tensor [6, 2, keys, channels], so that two inputs are enough.
        let inputs = Inputs::new([3, 2, queries, channels], [6, 2, keys, channels], 1);
        let split = |weight: Tensor<4>| (weight.clone().narrow(0, 0, 3), weight.narrow(0, 3, 3));
        let whole = |i: Inputs| split(i.weight);
        let name = |what: &str| format!("attention {what} {queries} {keys} {channels}");
        check_agree(
            &name("plain"),
            &inputs,
            |i| ops::attention(i.x.clone(), whole(i.clone()).0, whole(i).1, Mask::None),
            |i| softmax_attention(i.x.clone(), whole(i.clone()).0, whole(i).1, None),
        );
        let hidden = |at: &dyn Fn(usize, usize, usize) -> bool| {
            let addends = (0..3 * queries * keys).map(|n| if at(n / (queries * keys), n / keys % queries, n % keys) { 0.0 } else { f32::NEG_INFINITY });
            Tensor::<4>::from_data(TensorData::new(addends.collect::<Vec<f32>>(), [3, 1, queries, keys]), &device())
        };
        let causal = hidden(&|_, i, j| j <= i + keys - queries);
        check_agree(
            &name("causal"),
            &inputs,
            |i| ops::attention(i.x.clone(), whole(i.clone()).0, whole(i).1, Mask::Causal),
            |i| softmax_attention(i.x.clone(), whole(i.clone()).0, whole(i).1, Some(causal.clone())),
        );
        let sees = |b: usize, j: usize| j == 0 || !(j + b).is_multiple_of(3);
        let by_key = hidden(&|b, _, j| sees(b, j));
        let visible: Vec<bool> = (0..3 * keys).map(|n| sees(n / keys, n % keys)).collect();
        let visible = Tensor::<2, Bool>::from_data(TensorData::new(visible, [3, keys]), &device());
        check_agree(
            &name("masked"),
            &inputs,
            |i| ops::attention(i.x.clone(), whole(i.clone()).0, whole(i).1, Mask::Keys(visible.clone())),
            |i| softmax_attention(i.x.clone(), whole(i.clone()).0, whole(i).1, Some(by_key.clone())),
        );
    }
}

#[test]
fn attention_reads_views_of_tokens_first() {
    let split = |x: Tensor<4>| x.swap_dims(1, 2);
    let inputs = Inputs::new([2, 6, 3, 5], [2, 6, 3, 5], 1);
    let operation = |i: Inputs| split(ops::attention(split(i.x.clone()), split(i.weight.clone()), split(i.x + i.weight), Mask::Causal));
    let definition = |i: Inputs| {
        let addends = (0..36).map(|n| if n % 6 <= n / 6 { 0.0 } else { f32::NEG_INFINITY }).collect::<Vec<f32>>();
        let addends = Tensor::<4>::from_data(TensorData::new(addends, [1, 1, 6, 6]), &device());
        split(softmax_attention(split(i.x.clone()), split(i.weight.clone()), split(i.x + i.weight), Some(addends)))
    };
    check_agree("attention of views", &inputs, operation, definition);
}

#[test]
fn attention_with_a_cache_gives_the_same_bits() {
    let [query, key, value]: [Tensor<4>; 3] = [1, 2, 3].map(|seed| tensor([2, 3, 70, 16], seed));
    let all = ops::attention(query.clone(), key.clone(), value.clone(), Mask::Causal);
    for token in [0, 1, 33, 69] {
        let seen = |x: &Tensor<4>| x.clone().narrow(2, 0, token + 1);
        let one = ops::attention(query.clone().narrow(2, token, 1), seen(&key), seen(&value), Mask::Causal);
        assert_eq!(host(one), host(all.clone().narrow(2, token, 1)), "token {token}");
    }
}

#[test]
fn activation_functions_agree_with_their_definitions() {
    let inputs = Inputs { x: tensor::<4>([2, 3, 5, 7], 1) * 4.0, ..Inputs::new([1; 4], [1; 4], 1) };
    let probability = |x: Tensor<4>| ((x * std::f32::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    check_agree("silu", &inputs, |i| ops::silu(i.x), |i| burn_activation::silu(i.x));
    check_agree("relu", &inputs, |i| ops::relu(i.x), |i| burn_activation::relu(i.x));
    check_agree("leaky_relu", &inputs, |i| ops::leaky_relu(i.x, 0.2), |i| burn_activation::leaky_relu(i.x, 0.2));
    check_agree("quick_gelu", &inputs, |i| ops::quick_gelu(i.x), |i| i.x.clone() * burn_activation::sigmoid(i.x * 1.702));
    check_agree("gelu", &inputs, |i| ops::gelu(i.x), |i| i.x.clone() * probability(i.x));
}

#[test]
fn upsampling_agrees_with_its_definition() {
    let inputs = Inputs::new([2, 3, 4, 5], [1; 4], 1);
    let definition = |i: Inputs| i.x.reshape([2, 3, 1, 4, 1, 5]).expand([2, 3, 2, 4, 2, 5]).reshape([2, 6, 8, 5]);
    check_agree("upsample_nearest", &inputs, |i| ops::upsample_nearest(i.x), definition);
}

#[test]
fn cross_entropy_agrees_with_its_definition() {
    for (classes, smoothing) in [(1, 0.0), (7, 0.1), (100, 0.0), (1000, 0.3)] {
        let inputs = Inputs { x: tensor::<4>([1, 1, 12, classes], 1) * 9.0, ..Inputs::new([1; 4], [1; 4], 1) };
        let targets: Vec<i32> = (0..12).map(|row| row * 37 % classes as i32).collect();
        let targets = Tensor::<1, Int>::from_data(targets.as_slice(), &device());
        let definition = |i: Inputs| {
            let log_probability = burn_activation::log_softmax(i.x.reshape([12, classes]), 1);
            let of_target = log_probability.clone().gather(1, targets.clone().reshape([12, 1]));
            (of_target * (smoothing - 1.0) - log_probability.mean_dim(1) * smoothing).reshape([1, 1, 1, 12])
        };
        let operation = |i: Inputs| ops::cross_entropy(i.x.reshape([12, classes]), targets.clone(), smoothing).reshape([1, 1, 1, 12]);
        check_agree(&format!("cross_entropy {classes} {smoothing}"), &inputs, operation, definition);
    }
}

#[test]
fn nearest_code_agrees_with_distances() {
    let (latents, codebook) = (tensor::<2>([300, 17], 1), tensor::<2>([111, 17], 2));
    let found = ops::nearest_code(latents.clone(), codebook.clone()).into_data().convert::<i64>().try_to_vec::<i64>().expect("integers");
    let (latents, codebook) = (host(latents), host(codebook));
    for (row, found) in latents.chunks(17).zip(found) {
        let distance = |code: usize| row.iter().zip(&codebook[code * 17..]).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        let nearest = (0..111).min_by(|a, b| distance(*a).total_cmp(&distance(*b))).expect("codes");
        assert!(distance(found as usize) <= distance(nearest) + 1e-5);
    }
}

#[test]
fn fused_adamw_agrees_with_burns_and_goes_on_from_its_record() {
    let first = Linear::normal(70, 50, true, 0.1, &mut Initializer::new(1, &device()));
    let x = tensor::<2>([8, 70], 5);
    let train = |optimizer: &mut ModuleOptimizer, mut layer: Linear| {
        for _ in 0..5 {
            let gradients = layer.forward(x.clone()).powf_scalar(2.0).sum().backward();
            let gradients = GradientsParams::from_grads(gradients, &layer);
            layer = optimizer.step(1e-2, layer, gradients);
        }
        layer
    };
    let mut fused = FusedAdamW { beta_1: 0.9, beta_2: 0.95, epsilon: 1e-8, weight_decay: 0.1 }.init();
    let mut burns = AdamWConfig::new().with_beta_1(0.9).with_beta_2(0.95).with_epsilon(1e-8).with_weight_decay(0.1).init();
    let (found, expected) = (train(&mut fused, first.clone()), train(&mut burns, first.clone()));
    let weight = |layer: &Linear| host(layer.weight.val());
    assert!(weight(&expected).iter().zip(weight(&first)).any(|(a, b)| (a - b).abs() > 1e-2), "the steps must move something");
    check_close("adamw", &weight(&found), &weight(&expected), 1e-6);

    let record = burns.into_bytes().expect("a record");
    let mut taken_over = FusedAdamW { beta_1: 0.9, beta_2: 0.95, epsilon: 1e-8, weight_decay: 0.1 }.init().from_bytes(record).expect("burn's record fits");
    check_close("adamw, gone on", &weight(&train(&mut taken_over, expected.clone())), &weight(&train(&mut burns, expected)), 1e-6);
}

#[test]
fn move_average_agrees_with_its_definition() {
    let [average, value]: [Tensor<2>; 2] = [1, 2].map(|seed| tensor::<2>([33, 9], seed).inner());
    let expected = host(average.clone() * 0.9 + value.clone() * 0.1);
    check_close("move_average", &host(ops::move_average(average, value, 0.9)), &expected, 1e-6);
}
