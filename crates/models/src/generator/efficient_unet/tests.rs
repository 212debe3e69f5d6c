//! The five tests of every model, the reference's losses and gradients, and the paper's sizes.

use super::*;
use crate::generator::unet::{loss, time_embedding};
use crate::golden_gradients::{compare_gradients, named_gradients, stirred};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Bool, Device, TensorData};
use smalti_nn::weights::{self, HostTensor, WeightsError, safetensors};
use smalti_testing::{Golden, check_close, golden};
use std::path::{Path, PathBuf};

fn path(name: &str, what: &str) -> PathBuf {
    Path::new("src/generator/efficient_unet/goldens").join(format!("{name}_{what}.safetensors"))
}

fn level(channels: usize, residual_block_count: usize, downsample: bool, self_attention: bool, text_attention: bool) -> Level {
    Level { channels, residual_block_count, downsample, self_attention, text_attention }
}

/// The configs of the goldens.
fn golden_config(name: &str) -> Config {
    let shared = Config {
        base_channels: 4,
        head_channels: 4,
        text_channels: Some(6),
        time: time_embedding::Config { sinusoid_channels: 8, channels: 12, ..time_embedding::Config::latent_diffusion(8) },
        group_count: 2,
        ..Config::imagen_64()
    };
    match name {
        "base" => Config { levels: vec![level(4, 1, false, false, false), level(8, 2, true, true, true)], ..shared },
        _ => Config {
            levels: vec![level(4, 1, true, false, false), level(8, 2, true, false, true), level(8, 2, false, true, true)],
            low_resolution: true,
            middle: false,
            per: Per::Level,
            ..shared
        },
    }
}

fn golden_model(name: &str, device: &Device) -> EfficientUnet {
    let network = EfficientUnet::new(&golden_config(name), &mut Initializer::new(1, device)).unwrap();
    weights::apply(network, safetensors::read(&path(name, "weights")).unwrap(), device).unwrap()
}

fn golden_conditions(golden: &Golden, device: &Device) -> Conditions {
    let low_resolution =
        golden.contains("small").then(|| LowResolution { picture: golden.tensor("small", device), noise_level: golden.tensor("noise_level", device) });
    let visible = golden.integer_tensor::<2>("visible", device).equal_elem(1);
    Conditions { low_resolution, ..Conditions::text(golden.tensor("states", device), Some(visible)) }
}

fn wave<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * i) as f32 * 0.013 + i as f32 * 0.71).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn numbers(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

/// Conditions of the "enlarge" network for two 8x8 pictures; the second row sees `seen` tokens.
fn conditions(seen: usize, device: &Device) -> Conditions {
    let visible: Vec<bool> = (0..10).map(|i| i < 5 || i - 5 < seen).collect();
    let visible = Tensor::<2, Bool>::from_data(TensorData::new(visible, [2, 5]), device);
    let low_resolution = Some(LowResolution { picture: wave([2, 8, 8, 3], device) * 0.7, noise_level: numbers(&[10.0, 300.0], device) });
    Conditions { low_resolution, ..Conditions::text(wave([2, 5, 6], device), Some(visible)) }
}

#[test]
fn shapes_and_a_zero_start() {
    let device = Device::flex();
    let network = EfficientUnet::new(&golden_config("enlarge"), &mut Initializer::new(1, &device)).unwrap();
    let y = network.forward(wave([2, 8, 8, 3], &device), numbers(&[0.0, 999.0], &device), conditions(3, &device));
    assert_eq!((y.dims(), network.config().side_divisor()), ([2, 8, 8, 3], 4));
    assert!(y.into_data().iter::<f32>().all(|value| value == 0.0), "training begins with a prediction of zero");
}

#[test]
fn output_loss_and_gradients_agree_with_the_reference() {
    for name in ["base", "enlarge"] {
        let (device, golden) = (Device::flex().autodiff(), golden(path(name, "results")));
        let network = golden_model(name, &device);
        let noisy = golden.tensor::<4>("noisy", &device).require_grad();
        let output = network.forward(noisy.clone(), golden.tensor("timesteps", &device), golden_conditions(&golden, &device));
        check_close(name, &output, golden.array("output"), 1e-4);
        let loss = loss::weighted_squared_error(output, golden.tensor("target", &device), golden.tensor("weights", &device));
        check_close(name, &loss, golden.values("loss"), 1e-4);
        let gradients = loss.backward();
        check_close("gradient of the input", noisy.grad(&gradients).unwrap(), golden.array("noisy_gradient"), 1e-4);
        compare_gradients(&named_gradients(&network, &gradients), &safetensors::read(&path(name, "gradients")).unwrap());
    }
}

#[test]
fn a_row_whose_text_is_hidden_has_no_caption() {
    let device = Device::flex();
    let network = stirred(EfficientUnet::new(&golden_config("enlarge"), &mut Initializer::new(2, &device)).unwrap(), 3);
    let forward = |conditions: Conditions| network.forward(wave([2, 8, 8, 3], &device), numbers(&[10.0, 900.0], &device), conditions);
    let hidden = forward(conditions(0, &device));
    assert!(hidden.clone().into_data().iter::<f32>().all(f32::is_finite));
    let mut other = conditions(0, &device);
    if let Some(text) = &mut other.text {
        text.states = text.states.clone().slice_assign([1..2, 0..5, 0..6], wave([1, 5, 6], &device) * 3.0);
    }
    check_close("what is hidden says nothing", forward(other), &hidden, 1e-6);
    assert_ne!(forward(conditions(2, &device)).into_data(), hidden.into_data(), "what is seen says something");
}

#[test]
fn the_noise_level_and_the_smaller_picture_are_read() {
    let device = Device::flex();
    let network = stirred(EfficientUnet::new(&golden_config("enlarge"), &mut Initializer::new(2, &device)).unwrap(), 3);
    let forward = |change: &dyn Fn(&mut LowResolution)| {
        let mut conditions = conditions(3, &device);
        change(conditions.low_resolution.as_mut().unwrap());
        network.forward(wave([2, 8, 8, 3], &device), numbers(&[10.0, 900.0], &device), conditions).into_data()
    };
    let plain = forward(&|_| {});
    assert_ne!(plain, forward(&|small| small.noise_level = numbers(&[10.0, 310.0], &device)));
    assert_ne!(plain, forward(&|small| small.picture = small.picture.clone() * 0.5));
}

#[test]
fn overfits_one_batch() {
    let device = Device::flex().autodiff();
    let mut network = EfficientUnet::new(&golden_config("enlarge"), &mut Initializer::new(4, &device)).unwrap();
    let (noisy, target) = (wave([2, 8, 8, 3], &device), wave([2, 8, 8, 3], &device).flip([1]));
    let mut optimizer = AdamConfig::new().init();
    let mut errors: Vec<f32> = Vec::new();
    for _ in 0..150 {
        let output = network.forward(noisy.clone(), numbers(&[10.0, 600.0], &device), conditions(3, &device));
        let error = loss::squared_error(output, target.clone()).mean();
        errors.push(error.clone().into_scalar());
        let gradients = GradientsParams::from_grads(error.backward(), &network);
        network = optimizer.step(1e-2, network, gradients);
    }
    let (first, last) = (errors[0], errors[149]);
    assert!(first > 0.3 && last < 0.3 * first, "error went from {first} to {last}");
}

#[test]
fn weights_go_round_and_a_misfit_is_reported_whole() {
    let device = Device::flex();
    let new = |seed| EfficientUnet::new(&golden_config("base"), &mut Initializer::new(seed, &device)).unwrap();
    let saved = weights::collect(&stirred(new(5), 6));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("efficient_unet.safetensors");
    safetensors::write(&file, &saved, safetensors::Storage::F32).unwrap();
    assert_eq!(weights::collect(&weights::apply(new(7), safetensors::read(&file).unwrap(), &device).unwrap()), saved);
    let mut broken = saved;
    broken.remove("conv_in.bias").unwrap();
    broken.insert("noise_embedding.input.bias".into(), HostTensor::new([1], vec![0.0]));
    let Err(WeightsError::Mismatch(report)) = weights::apply(new(8), broken, &device) else { panic!("expected a report") };
    assert_eq!((report.missing, report.unused), (vec!["conv_in.bias".to_string()], vec!["noise_embedding.input.bias".to_string()]));
}

#[test]
fn the_parameter_count_is_that_of_the_network() {
    let device = Device::flex();
    let without_text = Config { text_channels: None, levels: vec![level(4, 2, true, true, false)], ..golden_config("base") };
    for config in [golden_config("base"), golden_config("enlarge"), without_text] {
        let network = EfficientUnet::new(&config, &mut Initializer::new(1, &device)).unwrap();
        let made: usize = weights::collect(&network).values().map(|tensor| tensor.values.len()).sum();
        assert_eq!(config.parameter_count(), made as u64, "{config:?}");
    }
}

/// The base model within 5 % of the paper's 2 billion; the super-resolution models, of which the paper leaves more open (see `Config`), within a quarter of
/// its 600 and 400 million.
#[test]
fn imagens_sizes_are_as_published() {
    for (config, published, tolerance) in [(Config::imagen_64(), 2.0e9, 0.05), (Config::imagen_256(), 6.0e8, 0.25), (Config::imagen_1024(), 4.0e8, 0.25)] {
        config.validate().unwrap();
        let ratio = config.parameter_count() as f64 / published;
        assert!((ratio - 1.0).abs() < tolerance, "{} parameters, {published} published", config.parameter_count());
    }
}

#[test]
fn an_impossible_config_is_an_error_that_names_the_key() {
    let refused = |change: &dyn Fn(&mut Config)| {
        let mut config = golden_config("base");
        change(&mut config);
        EfficientUnet::new(&config, &mut Initializer::new(1, &Device::flex())).unwrap_err().to_string()
    };
    assert_eq!(refused(&|config| config.group_count = 3), "`group_count`: expected a divisor of all channels, 4 among them, found 3");
    assert_eq!(refused(&|config| config.head_channels = 3), "`head_channels`: expected a divisor of 8 at level 1, found 3");
    assert_eq!(refused(&|config| config.text_channels = None), "`levels.1.text_attention`: expected false where there are no text_channels, found true");
    assert!(refused(&|config| config.levels = vec![]).starts_with("`levels`"));
    assert!(refused(&|config| config.levels[0].channels = usize::MAX).starts_with("`levels.0.channels`"));
    assert!(refused(&|config| config.levels[1].residual_block_count = 0).starts_with("`levels.1.residual_block_count`"));
    assert!(refused(&|config| config.time.sinusoid_channels = 3).starts_with("`time.sinusoid_channels`"));
}

#[test]
#[should_panic(expected = "expected a smaller picture")]
fn a_missing_smaller_picture_is_a_wrong_program() {
    let device = Device::flex();
    let network = EfficientUnet::new(&golden_config("enlarge"), &mut Initializer::new(1, &device)).unwrap();
    let told = Conditions { low_resolution: None, ..conditions(3, &device) };
    network.forward(wave([2, 8, 8, 3], &device), numbers(&[1.0, 2.0], &device), told);
}
