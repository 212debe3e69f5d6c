//! LPIPS, against the lpips package.

use super::lpips::Lpips;
use super::{import, vgg};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use smalti_nn::Initializer;
use smalti_nn::weights::{self, NamedTensors, WeightsError, safetensors};
use smalti_testing::{check_close, golden, gradient_check};
use std::path::Path;

const GOLDEN: &str = "src/perceptual/goldens/lpips.safetensors";

fn config() -> vgg::Config {
    vgg::Config { widths: [4, 5, 6, 7, 8] }
}

/// The state dictionary of `lpips.LPIPS`.
fn published() -> NamedTensors {
    let tensors = safetensors::read(Path::new(GOLDEN)).unwrap();
    tensors.into_iter().filter_map(|(name, tensor)| Some((name.strip_prefix("weights.")?.to_string(), tensor))).collect()
}

fn fresh(device: &Device) -> Lpips {
    Lpips::new(&config(), &mut Initializer::new(1, device)).unwrap()
}

fn pictures(seed: f32, device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (0..2 * 16 * 17 * 3).map(|i| ((i * i) as f32 * 0.013 + i as f32 * 0.71 + seed).sin()).collect();
    Tensor::from_data(TensorData::new(values, [2, 16, 17, 3]), device)
}

#[test]
fn agrees_with_lpips() {
    let (device, golden) = (Device::flex().autodiff(), golden(GOLDEN));
    let lpips = weights::apply(fresh(&device), import::lpips(published()), &device).unwrap().no_grad();
    let y = golden.tensor::<4>("y", &device).require_grad();
    let distance = lpips.distance(golden.tensor("x", &device), y.clone());
    check_close("distance", &distance, golden.array("distance"), 1e-4);
    let gradients = distance.mean().backward();
    check_close("gradient", y.grad(&gradients).unwrap(), golden.array("gradient"), 1e-4);
}

#[test]
fn trunk_and_heads_may_come_from_two_files() {
    let whole = published();
    let mut torchvision = NamedTensors::new();
    let mut heads = NamedTensors::new();
    for (name, tensor) in &whole {
        if let Some(rest) = name.strip_prefix("net.") {
            let (_, rest) = rest.split_once('.').unwrap();
            torchvision.insert(format!("features.{rest}"), tensor.clone());
        } else if name.starts_with("lin") && !name.starts_with("lins.") {
            heads.insert(name.clone(), tensor.clone());
        }
    }
    torchvision.insert("classifier.0.bias".to_string(), whole["net.slice1.0.bias"].clone());
    torchvision.append(&mut heads);
    assert_eq!(import::lpips(torchvision), import::lpips(whole));
}

#[test]
fn a_misfit_is_reported_whole() {
    let device = Device::flex();
    let mut tensors = published();
    tensors.remove("lin3.model.1.weight").unwrap();
    let misplaced = tensors["net.slice1.0.bias"].clone();
    tensors.insert("net.slice1.1.bias".to_string(), misplaced);
    let Err(WeightsError::Mismatch(report)) = weights::apply(fresh(&device), import::lpips(tensors), &device) else { panic!("expected a report") };
    assert_eq!((report.missing, report.unused), (vec!["heads.3".to_string()], vec!["net.slice1.1.bias".to_string()]));
    let whole = Lpips::new(&vgg::Config::vgg16(), &mut Initializer::new(1, &device)).unwrap();
    let Err(WeightsError::Mismatch(report)) = weights::apply(whole, import::lpips(published()), &device) else { panic!("expected a report") };
    // All but the last convolutions' biases and so on: every stage is wider, nothing is missing.
    assert_eq!((report.missing.len(), report.unused.len(), report.misshapen.len()), (0, 0, 13 * 2 + 5));
}

#[test]
fn equal_pictures_are_not_apart() {
    let device = Device::flex().autodiff();
    let lpips = fresh(&device).no_grad();
    let x = pictures(0.0, &device).require_grad();
    let distance = lpips.distance(x.clone(), pictures(0.0, &device));
    assert_eq!(distance.to_data().iter::<f32>().collect::<Vec<_>>(), [0.0, 0.0]);
    // Black pictures and features of zero: a finite gradient.
    let zero = x.clone() * 0.0;
    let gradients = (distance + lpips.distance(zero, pictures(1.0, &device))).sum().backward();
    assert!(x.grad(&gradients).unwrap().into_data().iter::<f32>().all(f32::is_finite));
}

#[test]
fn gradients_agree_with_finite_differences() {
    let device = Device::flex().autodiff();
    let lpips = fresh(&device).no_grad();
    // Smooth pictures, so that few ReLUs and maxima turn over within the step.
    let x: Vec<f32> = (0..16 * 16 * 3).map(|i| (i as f32 * 0.01).sin() * 0.5).collect();
    let x = smalti_testing::Array { shape: vec![1, 16, 16, 3], values: x };
    let y = pictures(2.0, &device).slice([0..1, 0..16, 0..16]);
    gradient_check("lpips", &[("x", x)], &device, 0.1, |p| lpips.distance(p.get("x"), y.clone()).sum() * 100.0);
}

#[test]
fn impossible_widths_are_refused() {
    let config = vgg::Config { widths: [64, 0, 1, 1, 1] };
    let error = Lpips::new(&config, &mut Initializer::new(1, &Device::flex())).unwrap_err();
    assert_eq!(error.to_string(), "`widths`: expected five numbers from 1 to 8192, found [64, 0, 1, 1, 1]");
}
