//! What `--precision bf16` changes: products and convolutions, forward and backward, by as much as rounding their inputs explains. Weights stored in 16 bits
//! change nothing.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use smalti_nn::layers::{Conv2d, Conv2dConfig, Embedding, GroupNorm, Linear};
use smalti_nn::ops::{Activation, silu};
use smalti_nn::precision::{self, HalfFormat, store_weights};
use smalti_nn::weights::collect;
use smalti_nn::{Initializer, Precision, PrecisionChoice};
use std::sync::Mutex;

/// The precision is the process's: tests that set it take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Half the distance between 1 and the next bf16.
const BF16_EPSILON: f64 = 1.0 / 256.0;

#[derive(Module, Debug)]
struct Network {
    embedding: Embedding,
    first: Conv2d,
    down: Conv2d,
    norm: GroupNorm,
    last: Conv2d,
    head: Linear,
}

impl Network {
    fn new(device: &Device) -> Self {
        let mut initializer = Initializer::new(3, device);
        let same = |input, output| Conv2dConfig::same(input, output, 3);
        Self {
            embedding: Embedding::normal(5, 16, 0.5, &mut initializer),
            first: Conv2d::new(same(3, 16), &mut initializer),
            down: Conv2d::new(Conv2dConfig { stride: 2, ..same(16, 32) }, &mut initializer),
            norm: GroupNorm::new(8, 32, 1e-5, &mut initializer),
            last: Conv2d::new(same(32, 16), &mut initializer),
            head: Linear::uniform(16, 10, true, &mut initializer),
        }
    }

    /// x [batch, 16, 16, 3] -> [batch, 64, 10]
    fn forward(&self, x: Tensor<4>) -> Tensor<3> {
        let batch = x.dims()[0];
        let hidden = self.last.forward(self.norm.forward(self.down.forward(silu(self.first.forward(x))), Activation::Silu));
        self.head.forward(hidden.reshape([batch, 64, 16]))
    }
}

fn picture(device: &Device) -> Tensor<4> {
    Initializer::new(8, device).normal::<4>([2, 16, 16, 3], 1.0).val().detach()
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("floats")
}

/// Root of the mean square difference, relative to that of the expected values.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(found, expected)| f64::from(*found) - f64::from(*expected)));
    difference / norm(&mut expected.iter().map(|value| f64::from(*value))).max(1e-30)
}

/// Loss and gradients by parameter.
fn step(precision: Precision) -> (f32, Vec<(&'static str, Vec<f32>)>) {
    let device = Device::flex().autodiff();
    let network = Network::new(&device);
    precision::within(precision, || {
        let y = network.forward(picture(&device));
        let loss = (y.clone() * y).mean();
        let gradients = loss.backward();
        fn of<const D: usize>(param: &Param<Tensor<D>>, gradients: &burn::tensor::Gradients) -> Vec<f32> {
            host(param.val().grad(gradients).expect("every parameter takes part"))
        }
        let all = vec![
            ("first.weight", of(&network.first.weight, &gradients)),
            ("down.weight", of(&network.down.weight, &gradients)),
            ("down.bias", of(network.down.bias.as_ref().expect("bias"), &gradients)),
            ("last.weight", of(&network.last.weight, &gradients)),
            ("head.weight", of(&network.head.weight, &gradients)),
        ];
        (loss.into_scalar(), all)
    })
}

#[test]
fn a_training_steps_gradients_are_those_of_f32_but_for_rounding() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (expected_loss, expected) = step(Precision::F32);
    let (loss, found) = step(Precision::Bf16);
    assert!(loss != expected_loss, "bf16 has to change something");
    assert!((loss / expected_loss - 1.0).abs() < BF16_EPSILON as f32, "loss: expected {expected_loss}, found {loss}");
    for ((name, expected), (_, found)) in expected.iter().zip(&found) {
        let distance = distance(found, expected);
        println!("{name}: {:.2} of bf16's epsilon", distance / BF16_EPSILON);
        // Each gradient passes through at most eight roundings; as independent errors they add up to less than three.
        assert!(distance < 3.0 * BF16_EPSILON, "{name}: {distance:e}");
        assert!(distance > 0.0, "{name}: bf16 has to change something");
    }
}

#[test]
fn precision_ends_with_its_scope() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    assert_eq!(precision::current(), Precision::F32);
    precision::within(Precision::Bf16, || {
        assert_eq!(precision::current(), Precision::Bf16);
        precision::within(Precision::F32, || assert_eq!(precision::current(), Precision::F32));
        assert_eq!(precision::current(), Precision::Bf16);
    });
    let panicked = std::panic::catch_unwind(|| precision::within(Precision::Bf16, || panic!("on purpose")));
    assert!(panicked.is_err() && precision::current() == Precision::F32);
}

#[test]
fn auto_follows_the_processor() {
    let units = smalti_kernels::InstructionSet::current().has_bf16_units();
    assert_eq!(PrecisionChoice::Auto.resolve(), if units { Precision::Bf16 } else { Precision::F32 });
}

#[test]
fn weights_stored_in_16_bits_change_no_bit() {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let device = Device::flex();
    for format in [HalfFormat::F16, HalfFormat::Bf16] {
        let stored = store_weights(Network::new(&device), format);
        let expected_type = if format == HalfFormat::F16 { DType::F16 } else { DType::BF16 };
        assert_eq!(stored.first.weight.val().dtype(), expected_type);
        assert_eq!(stored.head.weight.val().dtype(), expected_type);
        assert_eq!(stored.embedding.weight.val().dtype(), DType::F32, "tables are looked up and stay as they are");
        // The same weights in f32.
        let wide = smalti_nn::weights::apply(Network::new(&device), collect(&stored), &device).expect("the same names and shapes");
        assert_eq!(wide.head.weight.val().dtype(), DType::F32);
        for precision in [Precision::F32, Precision::Bf16] {
            precision::within(precision, || {
                let [stored, wide] = [&stored, &wide].map(|network| host(network.forward(picture(&device))));
                // f16 has more digits than bf16, but both are rounded to the same.
                assert!(stored.iter().zip(&wide).all(|(a, b)| a.to_bits() == b.to_bits()), "{format:?}, {precision:?}");
                let row = Initializer::new(9, &device).normal::<2>([1, 16], 1.0).val();
                let network = store_weights(Network::new(&device), format);
                let [a, b] = [&network.head, &smalti_nn::weights::apply(Network::new(&device), collect(&network), &device).expect("the same").head]
                    .map(|head| host(head.forward(row.clone())));
                assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()), "one row, {format:?}, {precision:?}");
            });
        }
    }
}
