//! The five tests of every model, the reference's gradients, and the published weights of TAEF2 on a picture.

use super::*;
use crate::golden_gradients::named_gradients;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, TensorData};
use smalti_nn::weights::{self, HostTensor, NamedTensors, WeightsError, safetensors};
use smalti_testing::{check_close, golden, module_gradient_check};
use std::path::Path;

const GOLDENS: &str = "src/image_tokenizer/autoencoder_tiny/goldens";
const TAEF2: &str = "../../assets/taef2";

fn tiny() -> Config {
    Config { picture_channels: 3, channels: 4, latent_channels: 3, encoder_block_counts: vec![1, 2], decoder_block_counts: vec![2, 1], detours: true }
}

fn read(name: &str) -> NamedTensors {
    safetensors::read(&Path::new(GOLDENS).join(name)).unwrap()
}

fn taef2_files() -> (NamedTensors, NamedTensors) {
    let read = |side: &str| safetensors::read(&Path::new(TAEF2).join(format!("taef2_{side}.safetensors"))).unwrap();
    (read("encoder"), read("decoder"))
}

fn wave<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| ((i * i) as f32 * 0.013 + i as f32 * 0.71).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// First weights twice as large as PyTorch's, so that rectifiers do not leave next to nothing after a few layers.
fn spread(config: &Config, seed: u64, device: &Device) -> AutoencoderTiny {
    let autoencoder = AutoencoderTiny::new(config, &mut Initializer::new(seed, device)).unwrap();
    let mut tensors = weights::collect(&autoencoder);
    tensors.values_mut().filter(|tensor| tensor.shape.len() == 4).for_each(|tensor| tensor.values.iter_mut().for_each(|value| *value *= 2.0));
    weights::apply(autoencoder, tensors, device).unwrap()
}

#[test]
fn shapes() {
    let device = Device::flex();
    let autoencoder = AutoencoderTiny::new(&tiny(), &mut Initializer::new(1, &device)).unwrap();
    let latents = autoencoder.encode(wave([2, 8, 6, 3], &device));
    assert_eq!(latents.dims(), [2, 4, 3, 3]);
    assert_eq!((autoencoder.downsampling_factor(), autoencoder.latent_channels()), (2, 3));
    assert_eq!(autoencoder.decode(latents).dims(), [2, 8, 6, 3]);
}

#[test]
fn a_picture_does_not_depend_on_its_batch() {
    let device = Device::flex();
    let autoencoder = AutoencoderTiny::new(&tiny(), &mut Initializer::new(2, &device)).unwrap();
    let x = wave([3, 8, 8, 3], &device);
    let whole = autoencoder.decode(autoencoder.encode(x.clone()));
    for index in 0..3 {
        let alone = autoencoder.decode(autoencoder.encode(x.clone().narrow(0, index, 1)));
        assert_eq!(alone.into_data(), whole.clone().narrow(0, index, 1).into_data(), "picture {index}");
    }
}

#[test]
fn agrees_with_diffusers_forward_and_backward() {
    let (device, golden) = (Device::flex().autodiff(), golden(Path::new(GOLDENS).join("diffusers_results.safetensors")));
    let import::DiffusersConfig { config, scale_factor, shift } =
        import::diffusers_config(&std::fs::read_to_string(Path::new(GOLDENS).join("diffusers_config.json")).unwrap()).unwrap();
    assert_eq!((scale_factor, shift), (1.0, 0.0));
    let tensors = import::diffusers(read("diffusers_weights.safetensors"));
    assert_eq!(import::published_config(&tensors).unwrap(), config, "the sizes can be read off the weights too");
    let autoencoder = weights::apply(AutoencoderTiny::new(&config, &mut Initializer::new(1, &device)).unwrap(), tensors, &device).unwrap();
    let x: Tensor<4> = golden.tensor("x", &device);
    let latents = autoencoder.encode(x.clone());
    check_close("latents", latents.clone(), golden.array("latents"), 1e-4);
    let picture = autoencoder.decode(latents);
    check_close("picture", picture.clone(), golden.array("picture"), 1e-4);
    let loss = (picture - x).abs().mean();
    check_close("loss", loss.clone(), golden.array("loss"), 1e-4);
    let expected = import::diffusers(read("diffusers_gradients.safetensors"));
    let found = named_gradients(&autoencoder, &loss.backward());
    assert!(found.keys().eq(expected.keys()));
    for (name, gradient) in found {
        assert_eq!(gradient.shape, expected[&name].shape, "{name}");
        check_close(&name, gradient.values, expected[&name].values.clone(), 1e-4);
    }
}

/// The published weights, on a picture they were not made for: what comes back is what an independent forward pass made of it, and near the original.
#[test]
fn taef2_reconstructs_a_pictogram() {
    let (device, golden) = (Device::flex(), golden(Path::new(GOLDENS).join("taef2.safetensors")));
    let (encoder, decoder) = taef2_files();
    let tensors = import::published(encoder, decoder);
    let config = import::published_config(&tensors).unwrap();
    assert_eq!(config, Config::flux_2());
    let autoencoder = weights::apply(AutoencoderTiny::new(&config, &mut Initializer::new(1, &device)).unwrap(), tensors, &device).unwrap();
    let picture = golden.integers("picture");
    let x: Vec<f32> = picture.iter().map(|&value| value as f32 / 127.5 - 1.0).collect();
    let x = Tensor::<4>::from_data(TensorData::new(x, [1, 128, 128, 3]), &device);
    let latents = autoencoder.encode(x);
    assert_eq!(latents.dims(), [1, 16, 16, 32]);
    let pixels = autoencoder.decode(latents).into_data();
    let found: Vec<i64> = pixels.iter::<f32>().map(|value| ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as i64).collect();
    let psnr = |other: &[i64]| {
        let error = found.iter().zip(other).map(|(a, b)| ((a - b) * (a - b)) as f64).sum::<f64>() / found.len() as f64;
        10.0 * (255.0 * 255.0 / error).log10()
    };
    let original = psnr(&picture);
    assert!(original >= 28.0, "expected at least 28 dB against the original, found {original:.2}");
    let reference = golden.integers("reconstructed");
    let furthest = found.iter().zip(&reference).map(|(a, b)| (a - b).abs()).max().unwrap();
    assert!(furthest <= 1, "expected the reference's pixels up to rounding, found {furthest} apart, {:.2} dB", psnr(&reference));
}

#[test]
fn gradients_agree_with_finite_differences() {
    let device = Device::flex().autodiff();
    let autoencoder = spread(&tiny(), 3, &device);
    // Rectifiers have corners, and the detour's normalisation many of them: look at parts, on smooth pictures.
    let x = wave([1, 8, 8, 3], &device);
    module_gradient_check("encoder", &autoencoder.encoder.conv_out, 1e-2, |conv| conv.forward(wave([1, 4, 4, 4], &device)).powi_scalar(2).mean());
    let detour = Detour::new(4, &mut Initializer::new(4, &device));
    module_gradient_check("detour", &detour.norm, 1e-2, |norm| {
        let h = norm.forward(detour.input.forward(wave([1, 4, 4, 4], &device)), Activation::Identity);
        detour.output.forward(h.powi_scalar(2)).sum()
    });
    let loss = (autoencoder.decode(autoencoder.encode(x.clone())) - x).powi_scalar(2).mean();
    assert!(named_gradients(&autoencoder, &loss.backward()).keys().eq(weights::collect(&autoencoder).keys()), "every weight has a gradient");
}

#[test]
fn overfits_one_batch() {
    let device = Device::flex().autodiff();
    let x = wave([2, 8, 8, 3], &device);
    let mut autoencoder = spread(&Config { channels: 16, ..tiny() }, 4, &device);
    let mut optimizer = AdamConfig::new().init();
    let mut errors = Vec::new();
    for _ in 0..150 {
        let loss = (autoencoder.decode(autoencoder.encode(x.clone())) - x.clone()).abs().mean();
        errors.push(loss.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(loss.backward(), &autoencoder);
        autoencoder = optimizer.step(3e-3, autoencoder, gradients);
    }
    let (first, last) = (errors[0], errors[149]);
    assert!(first > 0.4 && last < 0.4 * first, "error went from {first} to {last}");
}

#[test]
fn weights_go_round_and_a_misfit_is_reported_whole() {
    let device = Device::flex();
    let autoencoder = AutoencoderTiny::new(&tiny(), &mut Initializer::new(5, &device)).unwrap();
    let saved = weights::collect(&autoencoder);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("autoencoder_tiny.safetensors");
    safetensors::write(&path, &saved, safetensors::Storage::F32).unwrap();
    let other = || AutoencoderTiny::new(&tiny(), &mut Initializer::new(6, &device)).unwrap();
    let restored = weights::apply(other(), safetensors::read(&path).unwrap(), &device).unwrap();
    assert_eq!(weights::collect(&restored), saved);
    assert_eq!(import::published_config(&saved).unwrap(), tiny());

    let mut broken = saved;
    broken.remove("encoder.conv_in.bias").unwrap();
    broken.insert("decoder.levels.0.upsample.bias".to_string(), HostTensor::new([4], vec![0.0; 4]));
    broken.insert("decoder.conv_out.bias".to_string(), HostTensor::new([4], vec![0.0; 4]));
    let Err(WeightsError::Mismatch(report)) = weights::apply(other(), broken, &device) else { panic!("expected a report") };
    assert_eq!(report.missing, ["encoder.conv_in.bias"]);
    assert_eq!(report.unused, ["decoder.levels.0.upsample.bias"]);
    assert_eq!(report.misshapen, [("decoder.conv_out.bias".to_string(), vec![3], vec![4])]);
}

#[test]
fn import_keeps_what_it_does_not_know() {
    let (mut encoder, mut decoder) = taef2_files();
    encoder.insert("1.conv.6.weight".to_string(), HostTensor::new([1], vec![0.0]));
    decoder.insert("scale".to_string(), HostTensor::new([1], vec![0.0]));
    let imported = import::published(encoder, decoder);
    assert!(imported.contains_key("encoder.layers.1.conv.6.weight") && imported.contains_key("decoder.layers.scale"));
    let network = AutoencoderTiny::new(&Config::flux_2(), &mut Initializer::new(1, &Device::flex())).unwrap();
    let Err(WeightsError::Mismatch(report)) = weights::apply(network, imported, &Device::flex()) else { panic!("expected a report") };
    assert_eq!((report.missing.len(), report.unused.len(), report.misshapen.len()), (0, 2, 0));
    let error = import::published_config(&NamedTensors::new()).unwrap_err();
    assert_eq!(error.to_string(), "`tensor `encoder.conv_in.weight``: expected a tiny autoencoder's, found no such tensor");
}

#[test]
fn unknown_diffusers_configs_are_refused() {
    let published = std::fs::read_to_string(Path::new(GOLDENS).join("diffusers_config.json")).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(published.contains(from));
        import::diffusers_config(&published.replace(from, to)).unwrap_err().to_string()
    };
    assert_eq!(refused("\"relu\"", "\"gelu\""), "`config.json: act_fn`: expected `relu`, found `gelu`");
    assert!(refused("\"AutoencoderTiny\"", "\"AutoencoderKL\"").contains("_class_name"));
    assert!(refused("\"nearest\"", "\"bilinear\"").contains("upsample_fn"));
    assert!(refused("\"upsampling_scaling_factor\": 2", "\"upsampling_scaling_factor\": 4").contains("upsampling_scaling_factor"));
    assert!(refused("\"latent_channels\": 3", "\"latent_channels\": 0").contains("latent_channels"));
}

#[test]
fn published_configs_are_valid() {
    for (config, channels) in [(Config::stable_diffusion(), 4), (Config::sixteen_channels(), 16), (Config::flux_2(), 32)] {
        config.validate().unwrap();
        assert_eq!((config.downsampling_factor(), config.latent_channels), (8, channels));
    }
    let error = Config { decoder_block_counts: vec![1], ..tiny() }.validate().unwrap_err();
    assert_eq!(error.to_string(), "`decoder_block_counts`: expected 2 levels, found 1");
}
