//! PatchGAN, against taming-transformers; gradients against finite differences.

use super::*;
use crate::discriminator::import;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, TensorData};
use smalti_nn::weights::{self, NamedTensors, safetensors};
use smalti_testing::{check_close, golden, module_gradient_check};
use std::path::Path;

const GOLDEN: &str = "src/discriminator/goldens/taming.safetensors";

fn tiny(normalisation: Normalisation) -> Config {
    Config { picture_channels: 3, base_channels: 4, layer_count: 1, normalisation }
}

fn fresh(config: &Config, device: &Device) -> PatchDiscriminator {
    PatchDiscriminator::new(config, &mut Initializer::new(1, device)).unwrap()
}

fn pictures(batch: usize, device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (0..batch * 8 * 9 * 3).map(|i| ((i * i) as f32 * 0.013 + i as f32 * 0.71).sin()).collect();
    Tensor::from_data(TensorData::new(values, [batch, 8, 9, 3]), device)
}

#[test]
fn agrees_with_taming() {
    let (device, golden) = (Device::flex(), golden(GOLDEN));
    let tensors = safetensors::read(Path::new(GOLDEN)).unwrap();
    let config = Config { base_channels: 3, ..Config::published() };
    let mut discriminator = weights::apply(fresh(&config, &device), import::taming(&tensors, "before."), &device).unwrap();
    let x: Tensor<4> = golden.tensor("x", &device);
    let first = discriminator.forward_training(x.clone());
    discriminator = discriminator.update_statistics(&first.statistics);
    let second = discriminator.forward_training(x.clone().flip([0]) * -0.5);
    check_close("training", second.logits, golden.array("training"), 1e-4);
    discriminator = discriminator.update_statistics(&second.statistics);
    for (name, tensor) in weights::collect(&discriminator) {
        check_close(&name, tensor.values, import::taming(&tensors, "after.")[&name].values.clone(), 1e-4);
    }
    check_close("evaluation", discriminator.forward(x), golden.array("evaluation"), 1e-4);
}

#[test]
fn shapes_and_the_smallest_picture() {
    let device = Device::flex();
    let config = Config { base_channels: 2, ..Config::published() };
    let discriminator = fresh(&config, &device);
    assert_eq!(discriminator.forward(Tensor::zeros([1, 64, 72, 3], &device)).dims(), [1, 6, 7, 1]);
    for config in [config, Config::pictograms()] {
        let side = config.smallest_side();
        assert_eq!(fresh(&config, &device).forward(Tensor::zeros([1, side, side, 3], &device)).dims(), [1, 1, 1, 1], "{config:?}");
    }
}

/// FIELD T16: with the default's group normalisation a picture is judged alone, so that accumulated parts equal the whole batch.
#[test]
fn group_normalisation_judges_each_picture_alone() {
    let device = Device::flex();
    let discriminator = fresh(&tiny(Normalisation::Group { group_count: 4 }), &device);
    let x = pictures(3, &device);
    let whole = discriminator.forward_training(x.clone());
    assert!(whole.statistics.is_empty());
    assert_eq!(discriminator.forward(x.clone()).into_data(), whole.logits.to_data());
    for index in 0..3 {
        let alone = discriminator.forward(x.clone().narrow(0, index, 1));
        assert_eq!(alone.into_data(), whole.logits.clone().narrow(0, index, 1).into_data(), "picture {index}");
    }
}

#[test]
fn a_batch_of_one_is_finite_with_batch_normalisation() {
    let device = Device::flex();
    let config = tiny(Normalisation::Batch);
    let discriminator = fresh(&config, &device);
    let side = config.smallest_side();
    let judged = discriminator.forward_training(Tensor::ones([1, side, side, 3], &device));
    let updated = discriminator.update_statistics(&judged.statistics);
    assert!(weights::collect(&updated).values().all(|tensor| tensor.values.iter().all(|value| value.is_finite())));
}

#[test]
fn gradients_agree_with_finite_differences() {
    let device = Device::flex().autodiff();
    for normalisation in [Normalisation::None, Normalisation::Batch, Normalisation::Group { group_count: 2 }] {
        let discriminator = fresh(&tiny(normalisation), &device);
        let mut tensors = weights::collect(&discriminator);
        for (name, tensor) in &mut tensors {
            if name.ends_with("conv.weight") {
                // First weights of 0.02 vanish in f32 beside the step; trained ones are larger.
                tensor.values.iter_mut().for_each(|value| *value *= 4.0);
            } else if name.starts_with("layers") && name.ends_with("bias") {
                // Every channel far on one side of the leaky ReLU: at its bend differences say nothing.
                let far = if name.starts_with("layers.0") { 4.0 } else { 12.0 };
                tensor.values.iter_mut().enumerate().for_each(|(channel, value)| *value = if channel % 3 == 0 { far } else { -far });
            }
        }
        let discriminator = weights::apply(discriminator, tensors, &device).unwrap();
        let x = pictures(2, &device);
        let loss = |module: &PatchDiscriminator| module.forward_training(x.clone()).logits.powi_scalar(2).mean();
        module_gradient_check(&format!("{normalisation:?}"), &discriminator, 1e-2, loss);
    }
}

#[test]
fn learns_one_batch() {
    let device = Device::flex().autodiff();
    for normalisation in [Normalisation::Batch, Normalisation::Group { group_count: 2 }] {
        let mut discriminator = fresh(&tiny(normalisation), &device);
        let (real, made) = (pictures(2, &device), pictures(4, &device).narrow(0, 2, 2));
        let mut optimizer = AdamConfig::new().init();
        let loss = |discriminator: &PatchDiscriminator| {
            let logits = |x: &Tensor<4>| discriminator.forward_training(x.clone()).logits;
            crate::image_tokenizer::vqgan::loss::hinge_discriminator(logits(&real), logits(&made))
        };
        for _ in 0..100 {
            let gradients = GradientsParams::from_grads(loss(&discriminator).backward(), &discriminator);
            discriminator = optimizer.step(0.01, discriminator, gradients);
        }
        let last: f32 = loss(&discriminator).into_scalar();
        assert!(last < 0.2, "{normalisation:?}: loss {last}, at chance it is 1");
    }
}

#[test]
fn weights_go_round_and_running_statistics_with_them() {
    let device = Device::flex();
    let config = tiny(Normalisation::Batch);
    let discriminator = fresh(&config, &device);
    let judged = discriminator.forward_training(pictures(2, &device));
    let saved = weights::collect(&discriminator.update_statistics(&judged.statistics));
    assert!(saved["layers.1.batch_norm.running_mean"].values.iter().any(|value| *value != 0.0));
    let restored = weights::apply(PatchDiscriminator::new(&config, &mut Initializer::new(9, &device)).unwrap(), saved.clone(), &device).unwrap();
    assert_eq!(weights::collect(&restored), saved);
    assert!(weights::apply(restored, NamedTensors::new(), &device).unwrap_err().to_string().contains("tensor `conv_out.bias`: missing"));
}

#[test]
fn first_weights_are_small() {
    let discriminator = fresh(&Config { base_channels: 32, ..Config::published() }, &Device::flex());
    let tensors = weights::collect(&discriminator);
    let weight = &tensors["layers.2.conv.weight"].values;
    let deviation = (weight.iter().map(|value| value * value).sum::<f32>() / weight.len() as f32).sqrt();
    assert!((deviation - 0.02).abs() < 1e-3, "{deviation}");
    assert!(tensors["layers.2.batch_norm.scale"].values.iter().all(|value| (value - 1.0).abs() < 0.1));
}

#[test]
fn an_impossible_config_is_an_error_that_names_the_key() {
    let refused = |config: Config| PatchDiscriminator::new(&config, &mut Initializer::new(1, &Device::flex())).unwrap_err().to_string();
    assert_eq!(refused(Config { layer_count: 0, ..Config::published() }), "`layer_count`: expected 1 to 8, found 0");
    let groups = Config { normalisation: Normalisation::Group { group_count: 7 }, ..Config::published() };
    assert_eq!(refused(groups), "`normalisation.group.group_count`: expected a divisor of 128, found 7");
}
