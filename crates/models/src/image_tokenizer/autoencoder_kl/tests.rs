//! The five tests of every model, and the reference's losses and gradients.

use super::*;
use crate::golden_gradients::{compare_gradients_by_tensor, named_gradients};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, TensorData};
use smalti_nn::weights::{self, HostTensor, NamedTensors, WeightsError, safetensors};
use smalti_testing::{check_close, golden, module_gradient_check};
use std::path::Path;

const GOLDENS: &str = "src/image_tokenizer/autoencoder_kl/goldens";

fn tiny() -> Config {
    let mut config = Config::pictograms();
    config.network.base_channels = 4;
    config.network.channel_multipliers = vec![1, 2];
    config.network.group_count = 2;
    config.network.latent_channels = 3;
    config
}

fn read(name: &str) -> NamedTensors {
    safetensors::read(&Path::new(GOLDENS).join(name)).unwrap()
}

fn golden_config(name: &str) -> import::DiffusersConfig {
    import::diffusers_config(&std::fs::read_to_string(Path::new(GOLDENS).join(format!("{name}_config.json"))).unwrap()).unwrap()
}

fn loaded(name: &str, device: &Device) -> AutoencoderKl {
    let network = AutoencoderKl::new(&golden_config(name).config, &mut Initializer::new(1, device)).unwrap();
    weights::apply(network, import::diffusers(read(&format!("{name}_weights.safetensors"))).tensors, device).unwrap()
}

fn wave<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| ((i * i) as f32 * 0.013 + i as f32 * 0.71).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[test]
fn shapes() {
    let device = Device::flex();
    let autoencoder = AutoencoderKl::new(&tiny(), &mut Initializer::new(1, &device)).unwrap();
    let moments = autoencoder.encode(wave([2, 8, 6, 3], &device));
    assert_eq!((moments.mean.dims(), moments.log_variance.dims()), ([2, 4, 3, 3], [2, 4, 3, 3]));
    assert_eq!((autoencoder.downsampling_factor(), autoencoder.latent_channels()), (2, 3));
    assert_eq!(autoencoder.decode(moments.mean.clone()).dims(), [2, 8, 6, 3]);
    assert_eq!(loss::kl(&moments).dims(), [1]);
    let zeros = moments.sample(Tensor::zeros([2, 4, 3, 3], &device));
    assert_eq!(zeros.into_data(), moments.mean.into_data());
}

#[test]
fn a_picture_does_not_depend_on_its_batch() {
    let device = Device::flex();
    let autoencoder = AutoencoderKl::new(&tiny(), &mut Initializer::new(2, &device)).unwrap();
    let (x, noise) = (wave([3, 8, 8, 3], &device), wave([3, 4, 4, 3], &device));
    let whole = autoencoder.decode(autoencoder.encode(x.clone()).sample(noise.clone()));
    for index in 0..3 {
        let latents = autoencoder.encode(x.clone().narrow(0, index, 1)).sample(noise.clone().narrow(0, index, 1));
        assert_eq!(autoencoder.decode(latents).into_data(), whole.clone().narrow(0, index, 1).into_data(), "picture {index}");
    }
}

#[test]
fn agrees_with_diffusers_forward_and_backward() {
    for name in ["stable_diffusion", "without_projections"] {
        let (device, golden) = (Device::flex().autodiff(), golden(Path::new(GOLDENS).join(format!("{name}_results.safetensors"))));
        let autoencoder = loaded(name, &device);
        let x: Tensor<4> = golden.tensor("x", &device);
        let moments = autoencoder.encode(x.clone());
        check_close("mean", moments.mean.clone(), golden.array("mean"), 1e-4);
        check_close("log variance", moments.log_variance.clone(), golden.array("log_variance"), 1e-4);
        let latents = moments.sample(golden.tensor("noise", &device));
        check_close("latents", latents.clone(), golden.array("latents"), 1e-4);
        let picture = autoencoder.decode(latents);
        check_close("picture", picture.clone(), golden.array("picture"), 1e-4);
        let kl = loss::kl(&moments);
        check_close("divergence", kl.clone(), golden.array("kl"), 1e-4);

        // The reference adds sums over the values of a picture, ours are means: the same but for one factor.
        let [_, height, width, channels] = x.dims();
        let value_count = (height * width * channels) as f32;
        let weight = loss::kl_weight(0.5, [height, width, channels]) as f32;
        let total = (loss::l1(picture, x) + kl * weight) * value_count;
        check_close("total", total.clone(), golden.array("total"), 1e-4);
        let expected = import::diffusers(read(&format!("{name}_gradients.safetensors"))).tensors;
        compare_gradients_by_tensor(named_gradients(&autoencoder, &total.backward()), expected);
    }
}

#[test]
fn configs_of_diffusers() {
    let mut expected = Config::stable_diffusion();
    expected.network = convolutional::Config { base_channels: 4, channel_multipliers: vec![1, 2, 2], group_count: 2, ..expected.network };
    let found = golden_config("stable_diffusion");
    assert_eq!((found.config, found.scale_factor, found.shift), (expected, Some(0.18215), 0.0));
    let mut expected = Config::stable_diffusion_3();
    let network = expected.network;
    expected.network =
        convolutional::Config { base_channels: 4, channel_multipliers: vec![1, 2], group_count: 2, residual_block_count: 1, latent_channels: 3, ..network };
    let found = golden_config("without_projections");
    assert_eq!((found.config, found.scale_factor, found.shift), (expected, Some(1.5305), 0.0609));
}

#[test]
fn unknown_diffusers_configs_are_refused() {
    let published = std::fs::read_to_string(Path::new(GOLDENS).join("stable_diffusion_config.json")).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(published.contains(from));
        import::diffusers_config(&published.replace(from, to)).unwrap_err().to_string()
    };
    let found = refused("\"use_quant_conv\": true", "\"use_quant_conv\": false");
    assert_eq!(found, "`config.json: use_post_quant_conv`: expected the same as use_quant_conv, found true");
    assert!(refused("\"AutoencoderKL\"", "\"AutoencoderTiny\"").contains("_class_name"));
    assert!(refused("0.18215", "0.0").contains("scaling_factor"));
    assert!(refused("\"latents_std\": null", "\"latents_std\": [1.0]").contains("latents_mean"));
    assert!(refused("\"latent_channels\": 4", "\"latent_channels\": 5000").contains("network.latent_channels"));
    let without = published.replace("\"scaling_factor\": 0.18215,", "");
    assert_eq!(import::diffusers_config(&without).unwrap().scale_factor, None, "a missing factor is not invented");
}

#[test]
fn older_names_of_the_attention_are_known() {
    let today = read("stable_diffusion_weights.safetensors");
    let older = today.iter().map(|(name, tensor)| {
        let older = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];
        (older.iter().fold(name.clone(), |name, (today, older)| name.replace(today, older)), tensor.clone())
    });
    let older: NamedTensors = older.collect();
    assert_ne!(older, today);
    assert_eq!(import::diffusers(older), import::diffusers(today));
}

/// The names that latent-diffusion gives the same network, whose own modules taming's are (proved in [`crate::image_tokenizer::vqgan`]).
fn latent_diffusion_names(tensors: NamedTensors, last_level: usize) -> NamedTensors {
    let renamed = tensors.into_iter().map(|(name, tensor)| {
        let parts: Vec<String> = name.split('.').map(str::to_string).collect();
        let ours: Vec<&str> = parts.iter().map(String::as_str).collect();
        let side_level = |level: &str| last_level - level.parse::<usize>().unwrap();
        let attention = |part: &str| match part {
            "group_norm" => "norm",
            "to_q" => "q",
            "to_k" => "k",
            "to_v" => "v",
            "to_out" => "proj_out",
            other => panic!("{other}"),
        };
        let shortcut = |part: &str| if part == "conv_shortcut" { "nin_shortcut".to_string() } else { part.to_string() };
        let name = match ours.as_slice() {
            [side, "conv_norm_out", leaf] => format!("{side}.norm_out.{leaf}"),
            [side, "mid_block", "resnets", index, rest @ ..] => format!("{side}.mid.block_{}.{}", index.parse::<usize>().unwrap() + 1, rest.join(".")),
            [side, "mid_block", "attentions", "0", inner, .., leaf] => format!("{side}.mid.attn_1.{}.{leaf}", attention(inner)),
            ["encoder", "down_blocks", level, "resnets", index, inner, leaf] => format!("encoder.down.{level}.block.{index}.{}.{leaf}", shortcut(inner)),
            ["encoder", "down_blocks", level, "downsamplers", "0", "conv", leaf] => format!("encoder.down.{level}.downsample.conv.{leaf}"),
            ["decoder", "up_blocks", level, "resnets", index, inner, leaf] => {
                format!("decoder.up.{}.block.{index}.{}.{leaf}", side_level(level), shortcut(inner))
            }
            ["decoder", "up_blocks", level, "upsamplers", "0", "conv", leaf] => format!("decoder.up.{}.upsample.conv.{leaf}", side_level(level)),
            _ => name,
        };
        // Its attention is made of 1x1 convolutions.
        let is_attention = name.contains(".attn_1.") && tensor.shape.len() == 2;
        let shape = if is_attention { vec![tensor.shape[0], tensor.shape[1], 1, 1] } else { tensor.shape.clone() };
        (name, tensor.reshape(shape))
    });
    renamed.collect()
}

#[test]
fn latent_diffusion_checkpoints_alone_and_within_a_whole_model() {
    let published = read("stable_diffusion_weights.safetensors");
    let expected = import::diffusers(published.clone()).tensors;
    let alone = latent_diffusion_names(published, 2);
    assert_eq!(import::latent_diffusion(alone.clone()).tensors, expected);

    let mut whole: NamedTensors = alone.into_iter().map(|(name, tensor)| (format!("state_dict.first_stage_model.{name}"), tensor)).collect();
    let other =
        ["state_dict.model.diffusion_model.out.0.bias", "state_dict.cond_stage_model.x", "state_dict.first_stage_model.loss.logvar", "optimizer_states.0"];
    whole.extend(other.iter().map(|name| (name.to_string(), HostTensor::new([1], vec![0.0]))));
    let imported = import::latent_diffusion(whole.clone());
    assert_eq!(imported.tensors, expected);
    assert_eq!(imported.ignored.len(), other.len());
    let bare = whole.into_iter().filter_map(|(name, tensor)| Some((name.strip_prefix("state_dict.")?.to_string(), tensor))).collect();
    assert_eq!(import::latent_diffusion(bare).tensors, expected, "a safetensors file of a whole model has no wrapping");
}

#[test]
fn config_of_a_latent_diffusion_checkpoint() {
    let mut config = tiny();
    config.network.base_channels = 32;
    config.network.group_count = 32;
    let tensors = |config: &Config| weights::collect(&AutoencoderKl::new(config, &mut Initializer::new(1, &Device::flex())).unwrap());
    assert_eq!(import::latent_diffusion_config(&tensors(&config)).unwrap(), config);
    config.latent_projections = false;
    assert_eq!(import::latent_diffusion_config(&tensors(&config)).unwrap(), config);
    let error = import::latent_diffusion_config(&NamedTensors::new()).unwrap_err();
    assert_eq!(error.to_string(), "`tensor `encoder.conv_in.weight``: expected a KL autoencoder's, found no such tensor");
}

/// By hand: 1/2 (mean^2 + variance - 1 - ln variance) is 0 for a standard normal, 2 for mean 2, and (3 - ln 4) / 2 for variance 4.
#[test]
fn the_divergence_is_the_formula() {
    let device = Device::flex();
    let tensor = |values: [f32; 4]| Tensor::<4>::from_data(TensorData::new(values.to_vec(), [2, 1, 1, 2]), &device);
    let moments = Moments { mean: tensor([0.0, 2.0, 0.0, 0.0]), log_variance: tensor([0.0, 0.0, 4.0f32.ln(), 0.0]) };
    check_close("divergence", loss::kl(&moments), [(2.0 + (3.0 - 4.0f32.ln()) / 2.0) / 2.0], 1e-6);
    check_close("sample", moments.sample(Tensor::ones([2, 1, 1, 2], &device)).reshape([4]), [1.0f32, 3.0, 2.0, 1.0], 1e-6);
    assert_eq!(loss::kl_weight(loss::LATENT_DIFFUSION_KL_WEIGHT, [256, 256, 3]) * 196_608.0, 1e-6);
}

#[test]
fn published_configs_are_valid_and_as_large_as_published() {
    let presets = [
        (Config::stable_diffusion(), 8, 4),
        (Config::stable_diffusion_3(), 8, 16),
        (Config::kl_f4(), 4, 3),
        (Config::kl_f8(), 8, 4),
        (Config::kl_f16(), 16, 16),
        (Config::kl_f32(), 32, 64),
        (Config::pictograms(), 4, 4),
    ];
    for (config, factor, channels) in presets {
        config.validate().unwrap();
        assert_eq!((config.network.downsampling_factor(), config.network.latent_channels), (factor, channels));
    }
    // 83,653,863 is the number of weights of Stable Diffusion's autoencoder.
    let network = AutoencoderKl::new(&Config::stable_diffusion(), &mut Initializer::new(1, &Device::flex())).unwrap();
    assert_eq!(network.num_params(), 83_653_863);
}

#[test]
fn an_impossible_config_is_an_error_that_names_the_key() {
    let mut config = tiny();
    config.network.latent_channels = 8192;
    let error = AutoencoderKl::new(&config, &mut Initializer::new(1, &Device::flex())).unwrap_err();
    assert_eq!(error.to_string(), "`network.latent_channels`: expected 1 to 4096, found 8192");
    config.network.group_count = 3;
    assert_eq!(config.validate().unwrap_err().key, "network.group_count");
}

#[test]
fn gradients_agree_with_finite_differences() {
    let device = Device::flex().autodiff();
    let autoencoder = AutoencoderKl::new(&tiny(), &mut Initializer::new(3, &device)).unwrap();
    let (x, noise) = (wave([1, 8, 8, 3], &device), wave([1, 4, 4, 3], &device));
    module_gradient_check("autoencoder", &autoencoder, 2e-2, |autoencoder| {
        let moments = autoencoder.encode(x.clone());
        loss::l2(autoencoder.decode(moments.sample(noise.clone())), x.clone()) + loss::kl(&moments) * 0.01
    });
}

#[test]
fn overfits_one_batch() {
    let device = Device::flex().autodiff();
    let mut config = tiny();
    config.network.base_channels = 8;
    let (x, noise) = (wave([2, 8, 8, 3], &device), wave([2, 4, 4, 3], &device));
    let mut autoencoder = AutoencoderKl::new(&config, &mut Initializer::new(4, &device)).unwrap();
    let mut optimizer = AdamConfig::new().init();
    let mut errors = Vec::new();
    let weight = loss::kl_weight(loss::LATENT_DIFFUSION_KL_WEIGHT, [8, 8, 3]) as f32;
    for _ in 0..120 {
        let moments = autoencoder.encode(x.clone());
        let reconstruction = loss::l1(autoencoder.decode(moments.sample(noise.clone())), x.clone());
        errors.push(reconstruction.clone().into_scalar::<f32>());
        let total = reconstruction + loss::kl(&moments) * weight;
        let gradients = GradientsParams::from_grads(total.backward(), &autoencoder);
        autoencoder = optimizer.step(5e-3, autoencoder, gradients);
    }
    let (first, last) = (errors[0], errors[119]);
    assert!(first > 0.4 && last < 0.3 * first, "error went from {first} to {last}");
}

#[test]
fn weights_go_round_and_a_misfit_is_reported_whole() {
    let device = Device::flex();
    let autoencoder = AutoencoderKl::new(&tiny(), &mut Initializer::new(5, &device)).unwrap();
    let saved = weights::collect(&autoencoder);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("autoencoder_kl.safetensors");
    safetensors::write(&path, &saved, safetensors::Storage::F32).unwrap();
    let other = || AutoencoderKl::new(&tiny(), &mut Initializer::new(6, &device)).unwrap();
    let restored = weights::apply(other(), safetensors::read(&path).unwrap(), &device).unwrap();
    assert_eq!(weights::collect(&restored), saved);

    let mut broken =
        import::diffusers(NamedTensors::from([("encoder.mid_block.attentions.0.to_k.scale".to_string(), HostTensor::new([1], vec![0.0]))])).tensors;
    broken.extend(saved);
    broken.remove("to_moments.bias").unwrap();
    broken.insert("from_latents.bias".to_string(), HostTensor::new([4], vec![0.0; 4]));
    let Err(WeightsError::Mismatch(report)) = weights::apply(other(), broken, &device) else { panic!("expected a report") };
    assert_eq!(report.missing, ["to_moments.bias"]);
    assert_eq!(report.unused, ["encoder.mid_block.attentions.0.to_k.scale"]);
    assert_eq!(report.misshapen, [("from_latents.bias".to_string(), vec![3], vec![4])]);
}
