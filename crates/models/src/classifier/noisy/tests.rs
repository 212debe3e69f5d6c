//! The five tests of every model, and the reference's loss and gradients.

use super::*;
use crate::generator::unet::{TimeUse, import, time_embedding};
use crate::golden_gradients::{compare_gradients, named_gradients, stirred};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, TensorData};
use smalti_nn::weights::{self, HostTensor, NamedTensors, WeightsError, safetensors};
use smalti_testing::{check_close, golden};
use std::path::{Path, PathBuf};

fn path(name: &str, what: &str) -> PathBuf {
    Path::new("src/classifier/noisy/goldens").join(format!("{name}_{what}.safetensors"))
}

fn golden_config(name: &str) -> Config {
    Config {
        input_channels: 3,
        class_count: 5,
        level_channels: vec![4, 8],
        residual_block_count: 1,
        attention_levels: vec![1],
        head_counts: vec![1, 2],
        time: time_embedding::Config::latent_diffusion(4),
        time_use: TimeUse::ScaleShift,
        group_count: 2,
        norm_epsilon: 1e-5,
        pooling: if name == "mean" { Pooling::Mean } else { Pooling::Attention { side: 4 } },
    }
}

/// The way down and the middle have diffusers' names; norm_out, pooling and head are ours in PyTorch's layout.
fn renamed(tensors: NamedTensors) -> NamedTensors {
    let rename = |(name, tensor): (String, HostTensor)| match name.as_str() {
        "norm_out.weight" => ("norm_out.scale".to_string(), tensor),
        _ if name.ends_with(".weight") && (name.starts_with("head") || name.starts_with("pooling")) => (name, tensor.permute(&[1, 0])),
        _ => (name, tensor),
    };
    import::diffusers(tensors).into_iter().map(rename).collect()
}

fn golden_model(name: &str, device: &Device) -> NoisyClassifier {
    let network = NoisyClassifier::new(&golden_config(name), &mut Initializer::new(1, device)).unwrap();
    weights::apply(network, renamed(safetensors::read(&path(name, "weights")).unwrap()), device).unwrap()
}

fn wave<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * i) as f32 * 0.013 + i as f32 * 0.71).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn times(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

fn classes(values: &[i64], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

#[test]
fn shapes() {
    let device = Device::flex();
    let any_size = NoisyClassifier::new(&golden_config("mean"), &mut Initializer::new(1, &device)).unwrap();
    assert_eq!(any_size.forward(wave([2, 6, 10, 3], &device), times(&[0.0, 999.0], &device)).dims(), [2, 5]);
    let one_size = NoisyClassifier::new(&golden_config("attention"), &mut Initializer::new(1, &device)).unwrap();
    assert_eq!(one_size.forward(wave([1, 8, 8, 3], &device), times(&[3.0], &device)).dims(), [1, 5]);
}

#[test]
fn logits_loss_and_gradients_agree_with_the_reference() {
    for name in ["mean", "attention"] {
        let (device, golden) = (Device::flex().autodiff(), golden(path(name, "results")));
        let classifier = golden_model(name, &device);
        let logits = classifier.forward(golden.tensor("noisy", &device), golden.tensor("timesteps", &device));
        check_close(name, &logits, golden.array("logits"), 1e-4);
        let loss = cross_entropy(logits, golden.integer_tensor("class", &device));
        check_close(name, &loss, golden.values("loss"), 1e-4);
        compare_gradients(&named_gradients(&classifier, &loss.backward()), &renamed(safetensors::read(&path(name, "gradients")).unwrap()));
    }
}

/// On a device with gradients and on one without.
#[test]
fn the_gradient_for_the_picture_agrees_with_the_reference() {
    for name in ["mean", "attention"] {
        for device in [Device::flex(), Device::flex().autodiff()] {
            let golden = golden(path(name, "results"));
            let (noisy, timesteps) = (golden.tensor("noisy", &device), golden.tensor("timesteps", &device));
            let found = golden_model(name, &device).log_probability_gradient(noisy, timesteps, golden.integer_tensor("class", &device));
            check_close(name, found, golden.array("log_probability_gradient"), 1e-4);
        }
    }
}

#[test]
fn a_step_along_the_gradient_makes_the_class_more_probable() {
    let device = Device::flex();
    let classifier = stirred(NoisyClassifier::new(&golden_config("mean"), &mut Initializer::new(2, &device)).unwrap(), 3);
    let (noisy, timesteps, class) = (wave([2, 8, 8, 3], &device), times(&[100.0, 700.0], &device), classes(&[1, 3], &device));
    let probability = |noisy: Tensor<4>| -> Vec<f32> {
        ops::cross_entropy(classifier.forward(noisy, timesteps.clone()), class.clone(), 0.0).into_data().iter::<f32>().map(|loss| -loss).collect()
    };
    let gradient = classifier.log_probability_gradient(noisy.clone(), timesteps.clone(), class.clone());
    let step = 0.02;
    // To first order the logarithm grows by the step times the square of the gradient, row by row.
    let squares: Vec<f32> = gradient.clone().powi_scalar(2).reshape([2, 192]).sum_dim(1).into_data().iter::<f32>().collect();
    let (before, after) = (probability(noisy.clone()), probability(noisy + gradient * step));
    for row in 0..2 {
        let (grown, expected) = (after[row] - before[row], step * squares[row]);
        assert!(expected > 0.0 && (grown / expected - 1.0).abs() < 0.2, "row {row}: grew by {grown}, expected {expected}");
    }
}

#[test]
fn overfits_one_batch() {
    let device = Device::flex().autodiff();
    let mut classifier = NoisyClassifier::new(&golden_config("attention"), &mut Initializer::new(4, &device)).unwrap();
    let (noisy, timesteps, class) = (wave([4, 8, 8, 3], &device), times(&[1.0, 10.0, 400.0, 900.0], &device), classes(&[0, 4, 2, 3], &device));
    let mut optimizer = AdamConfig::new().init();
    let mut losses: Vec<f32> = Vec::new();
    for _ in 0..80 {
        let loss = cross_entropy(classifier.forward(noisy.clone(), timesteps.clone()), class.clone());
        losses.push(loss.clone().into_scalar());
        let gradients = GradientsParams::from_grads(loss.backward(), &classifier);
        classifier = optimizer.step(1e-2, classifier, gradients);
    }
    assert!(losses[0] > 1.0 && losses[79] < 0.1, "loss went from {} to {}", losses[0], losses[79]);
}

#[test]
fn weights_go_round_and_a_misfit_is_reported_whole() {
    let device = Device::flex();
    let new = |seed| NoisyClassifier::new(&golden_config("attention"), &mut Initializer::new(seed, &device)).unwrap();
    let saved = weights::collect(&stirred(new(5), 6));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("classifier.safetensors");
    safetensors::write(&file, &saved, safetensors::Storage::F32).unwrap();
    assert_eq!(weights::collect(&weights::apply(new(7), safetensors::read(&file).unwrap(), &device).unwrap()), saved);
    let mut broken = saved;
    broken.remove("head.bias").unwrap();
    broken.insert("up.0.conv.bias".into(), HostTensor::new([1], vec![0.0]));
    let Err(WeightsError::Mismatch(report)) = weights::apply(new(8), broken, &device) else { panic!("expected a report") };
    assert_eq!((report.missing, report.unused), (vec!["head.bias".to_string()], vec!["up.0.conv.bias".to_string()]));
}

#[test]
fn an_impossible_config_is_an_error_that_names_the_key() {
    let refused = |change: &dyn Fn(&mut Config)| {
        let mut config = golden_config("attention");
        change(&mut config);
        NoisyClassifier::new(&config, &mut Initializer::new(1, &Device::flex())).unwrap_err().to_string()
    };
    assert_eq!(refused(&|config| config.class_count = 1), "`class_count`: expected 2 to 1048576, found 1");
    assert_eq!(refused(&|config| config.pooling = Pooling::Attention { side: 0 }), "`pooling.attention.side`: expected 1 to 256, found 0");
    assert_eq!(refused(&|config| config.head_counts = vec![1, 3]), "`head_counts`: expected divisors of 8 at level 1, found 3");
}

#[test]
#[should_panic(expected = "the picture has another size")]
fn attention_pooling_has_one_size() {
    let device = Device::flex();
    let classifier = NoisyClassifier::new(&golden_config("attention"), &mut Initializer::new(1, &device)).unwrap();
    classifier.forward(wave([1, 8, 12, 3], &device), times(&[1.0], &device));
}
