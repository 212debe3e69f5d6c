//! The five tests of every model, and the reference's losses and gradients.

use super::*;
use crate::discriminator::{self, patch};
use crate::golden_gradients::{compare_gradients_by_tensor, named_gradients};
use crate::image_tokenizer::quantizer::vector::{self, Codebook};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, TensorData};
use rand::SeedableRng;
use smalti_nn::weights::{self, HostTensor, NamedTensors, WeightsError, pickle, safetensors};
use smalti_testing::{Golden, check_close, golden, module_gradient_check};
use std::path::Path;

const GOLDENS: &str = "src/image_tokenizer/vqgan/goldens";

fn results(name: &str) -> Golden {
    golden(Path::new(GOLDENS).join(name))
}

/// The config of both goldens; taming has one residual block on each level, diffusers two.
fn golden_config(residual_block_count: usize) -> Config {
    let mut config = Config::imagenet_f16_1024();
    config.network.base_channels = 4;
    config.network.channel_multipliers = vec![1, 2, 2];
    config.network.attention_levels = vec![2];
    config.network.group_count = 2;
    config.network.latent_channels = 6;
    config.network.residual_block_count = residual_block_count;
    config.quantizer.code_count = 12;
    config.quantizer.code_channels = 5;
    config
}

fn tiny() -> Config {
    let mut config = golden_config(1);
    config.network.channel_multipliers = vec![1, 2];
    config.network.attention_levels = vec![1];
    config
}

fn taming_model(device: &Device) -> Vqgan {
    let imported = import::taming(pickle::read(&Path::new(GOLDENS).join("taming.ckpt")).unwrap());
    weights::apply(Vqgan::new(&golden_config(1), &mut Initializer::new(1, device)).unwrap(), imported.tensors, device).unwrap()
}

fn pictures(batch: usize, device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (0..batch * 8 * 8 * 3).map(|i| ((i * i) as f32 * 0.013 + i as f32 * 0.71).sin()).collect();
    Tensor::from_data(TensorData::new(values, [batch, 8, 8, 3]), device)
}

fn tokens_of(tokens: Tensor<2, Int>) -> Vec<i64> {
    tokens.into_data().iter::<i64>().collect()
}

fn number(tensor: Tensor<1>) -> f32 {
    tensor.into_scalar()
}

#[test]
fn shapes() {
    let device = Device::flex();
    let vqgan = Vqgan::new(&tiny(), &mut Initializer::new(1, &device)).unwrap();
    let x = pictures(2, &device).slice([0..2, 0..8, 0..6]);
    let latents = vqgan.encode(x.clone());
    assert_eq!((vqgan.downsampling_factor(), latents.dims()), (2, [2, 4, 3, 5]));
    let quantized = vqgan.quantize(latents);
    assert_eq!((quantized.latents.dims(), quantized.tokens.dims()), ([2, 4, 3, 5], [2, 12]));
    assert_eq!((quantized.codebook_loss.dims(), quantized.commitment_loss.dims()), ([1], [1]));
    let tokens = vqgan.tokens(x);
    assert_eq!(tokens_of(tokens.clone()), tokens_of(quantized.tokens));
    let picture = vqgan.decode(quantized.latents);
    assert_eq!(picture.dims(), [2, 8, 6, 3]);
    check_close("picture from tokens", vqgan.decode_tokens(tokens, [4, 3]), picture, 1e-5);
}

#[test]
fn a_picture_does_not_depend_on_its_batch() {
    let device = Device::flex();
    let vqgan = Vqgan::new(&tiny(), &mut Initializer::new(2, &device)).unwrap();
    let x = pictures(3, &device);
    let whole = vqgan.decode_tokens(vqgan.tokens(x.clone()), [4, 4]);
    for index in 0..3 {
        let alone = vqgan.decode_tokens(vqgan.tokens(x.clone().narrow(0, index, 1)), [4, 4]);
        assert_eq!(alone.into_data(), whole.clone().narrow(0, index, 1).into_data(), "picture {index}");
    }
}

#[test]
fn published_configs_are_valid_and_as_large_as_published() {
    let presets = [
        (Config::imagenet_f16_1024(), 16, 1024, 256),
        (Config::imagenet_f16_16384(), 16, 16384, 256),
        (Config::faceshq_f16(), 16, 1024, 256),
        (Config::custom_f16(), 16, 1024, 256),
        (Config::sflckr_f16(), 16, 1024, 256),
        (Config::coco_f16(), 16, 8192, 256),
        (Config::openimages_f16(), 16, 8192, 256),
        (Config::segmentation_f16(183), 16, 1024, 256),
        (Config::openimages_f8_256(), 8, 256, 4),
        (Config::openimages_f8_16384(), 8, 16384, 4),
        (Config::openimages_f8_8192_gumbel(), 8, 8192, 256),
        (Config::vq_f4(), 4, 8192, 3),
        (Config::vq_f4_noattn(), 4, 8192, 3),
        (Config::vq_f8(), 8, 16384, 4),
        (Config::vq_f8_256(), 8, 256, 4),
        (Config::vq_f16(), 16, 16384, 8),
        (Config::pictograms(), 8, 1024, 32),
    ];
    for (config, factor, code_count, code_channels) in presets {
        config.validate().unwrap();
        let found = (config.network.downsampling_factor(), config.quantizer.code_count, config.quantizer.code_channels);
        assert_eq!(found, (factor, code_count, code_channels));
    }
}

#[test]
fn an_impossible_config_is_an_error_that_names_the_key() {
    let refused = |change: &dyn Fn(&mut Config)| {
        let mut config = tiny();
        change(&mut config);
        Vqgan::new(&config, &mut Initializer::new(1, &Device::flex())).unwrap_err().to_string()
    };
    let found = refused(&|config| config.network.group_count = 3);
    assert_eq!(found, "`network.group_count`: expected a divisor of the channels of every level, 4 among them, found 3");
    assert_eq!(refused(&|config| config.network.attention_levels = vec![2]), "`network.attention_levels`: expected levels below 2, found 2");
    assert_eq!(refused(&|config| config.quantizer.code_count = 0), "`quantizer.code_count`: expected 2 to 1048576, found 0");
    assert!(refused(&|config| config.network.base_channels = usize::MAX / 2).starts_with("`network.base_channels`"));
    assert!(refused(&|config| config.network.channel_multipliers = vec![1, usize::MAX]).starts_with("`network.channel_multipliers`"));
    assert!(refused(&|config| config.network.channel_multipliers = vec![]).starts_with("`network.channel_multipliers`"));
    assert!(refused(&|config| config.quantizer = vector::Config { unit_length: true, ..vector::Config::scored(12, 5) }).starts_with("`quantizer.choice`"));
    assert!(refused(&|config| config.quantizer.decay = f32::NAN).starts_with("`quantizer.decay`"));
}

#[test]
fn agrees_with_taming() {
    let (device, golden) = (Device::flex(), results("taming_results.safetensors"));
    let vqgan = taming_model(&device);
    let latents = vqgan.encode(golden.tensor("x", &device));
    check_close("latents", &latents, golden.array("latents"), 1e-4);
    let quantized = vqgan.quantize(latents);
    assert_eq!(tokens_of(quantized.tokens.clone()), golden.integers("tokens"));
    check_close("codes", &quantized.latents, golden.array("codes"), 1e-4);
    let codebook_and_commitment = number(quantized.codebook_loss + quantized.commitment_loss * 0.25);
    check_close("losses of the codebook", [codebook_and_commitment], golden.values("losses.codebook_and_commitment"), 1e-4);
    check_close("picture", vqgan.decode(quantized.latents), golden.array("picture"), 1e-4);
    check_close("picture from tokens", vqgan.decode_tokens(quantized.tokens, [4, 6]), golden.array("picture"), 1e-4);
}

/// taming's `GumbelVQ` chooses codes by score; after training its noise is out of the choice.
#[test]
fn agrees_with_taming_gumbel() {
    let (device, golden) = (Device::flex(), results("gumbel_results.safetensors"));
    let imported = import::taming(pickle::read(&Path::new(GOLDENS).join("gumbel.ckpt")).unwrap());
    let mut config = golden_config(1);
    config.network.channel_multipliers = vec![1, 2];
    config.network.attention_levels = vec![1];
    config.network.latent_channels = 5;
    config.quantizer = vector::Config::scored(12, 5);
    let vqgan = Vqgan::new(&config, &mut Initializer::new(1, &device)).unwrap();
    let vqgan = weights::apply(vqgan, imported.tensors.clone(), &device).unwrap();
    let x = golden.tensor("x", &device);
    assert_eq!(tokens_of(vqgan.tokens(x.clone())), golden.integers("tokens"));
    let quantized = vqgan.quantize(vqgan.encode(x));
    assert_eq!(tokens_of(quantized.tokens), golden.integers("tokens"));
    check_close("codes", &quantized.latents, golden.array("codes"), 1e-4);
    check_close("picture", vqgan.decode(quantized.latents), golden.array("picture"), 1e-4);
    // The codes chosen are not the nearest ones, or the scores would prove nothing.
    let (mut without_scores, mut nearest) = (imported.tensors, config);
    without_scores.retain(|name, _| !name.starts_with("quantizer.scores."));
    nearest.quantizer.choice = vector::Choice::Nearest;
    let nearest = weights::apply(Vqgan::new(&nearest, &mut Initializer::new(1, &device)).unwrap(), without_scores, &device).unwrap();
    assert_ne!(tokens_of(nearest.tokens(golden.tensor("x", &device))), golden.integers("tokens"));
}

/// The whole training step of taming, adaptive weight and all, in our one backward pass. The perceptual distance is the golden's stand-in, [`loss::l2`].
#[test]
fn losses_and_gradients_agree_with_taming() {
    let (device, golden) = (Device::flex().autodiff(), results("taming_results.safetensors"));
    let reference = safetensors::read(&Path::new(GOLDENS).join("taming_gradients.safetensors")).unwrap();
    let vqgan = taming_model(&device);
    let checkpoint = pickle::read(&Path::new(GOLDENS).join("taming.ckpt")).unwrap();
    let config = patch::Config { base_channels: 3, layer_count: 2, ..patch::Config::published() };
    let discriminator = patch::PatchDiscriminator::new(&config, &mut Initializer::new(1, &device)).unwrap();
    let discriminator = weights::apply(discriminator, discriminator::import::taming(&checkpoint, "state_dict.loss.discriminator."), &device).unwrap();
    let x: Tensor<4> = golden.tensor("x", &device);

    let quantized = vqgan.quantize(vqgan.encode(x.clone()));
    let features = vqgan.features(quantized.latents);
    let picture = vqgan.picture(features.clone());
    let leaf = picture.clone().detach().require_grad();
    let reconstruction = loss::l1(leaf.clone(), x.clone()) + loss::l2(leaf.clone(), x.clone());
    check_close("reconstruction", [number(reconstruction.clone())], golden.values("losses.reconstruction"), 1e-4);
    let reconstruction_gradient = leaf.grad(&reconstruction.backward()).unwrap();
    let adversarial = loss::hinge_generator(discriminator.forward_training(leaf.clone()).logits);
    check_close("adversarial", [number(adversarial.clone())], golden.values("losses.adversarial"), 1e-4);
    let adversarial_gradient = leaf.grad(&adversarial.backward()).unwrap();
    let adaptive = loss::adaptive_weight(
        vqgan.last_weight_gradient(features.clone(), reconstruction_gradient.clone()),
        vqgan.last_weight_gradient(features, adversarial_gradient.clone()),
        loss::ADAPTIVE_WEIGHT_CAP,
    );
    let weight = 0.8 * adaptive.unwrap();
    check_close("adversarial weight", [weight], golden.values("losses.adversarial_weight"), 1e-4);
    let gradient = reconstruction_gradient + adversarial_gradient * weight;
    let total = loss::gradient_passed_on(picture.clone(), gradient) + quantized.codebook_loss + quantized.commitment_loss * 0.25;
    let found = named_gradients(&vqgan, &total.backward());
    let expected = import::taming(reference.clone());
    compare_gradients_by_tensor(found, expected.tensors.into_iter().filter(|(name, _)| !name.starts_with("losses.")).collect());

    let made = discriminator.forward_training(picture.detach()).logits;
    let discriminator_loss = loss::hinge_discriminator(discriminator.forward_training(x).logits, made);
    check_close("discriminator", [number(discriminator_loss.clone())], reference["losses.discriminator"].values.clone(), 1e-4);
    let found = named_gradients(&discriminator, &discriminator_loss.backward());
    compare_gradients_by_tensor(found, discriminator::import::taming(&reference, "loss.discriminator."));
}

#[test]
fn agrees_with_diffusers() {
    let (device, golden) = (Device::flex(), results("diffusers_results.safetensors"));
    let config = import::diffusers_config(&std::fs::read_to_string(Path::new(GOLDENS).join("diffusers_config.json")).unwrap()).unwrap();
    assert_eq!(config, golden_config(2));
    let tensors = safetensors::read(&Path::new(GOLDENS).join("diffusers_weights.safetensors")).unwrap();
    let older = tensors.iter().map(|(name, tensor)| {
        let older = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];
        (older.iter().fold(name.clone(), |name, (today, older)| name.replace(today, older)), tensor.clone())
    });
    let older: NamedTensors = older.collect();
    assert_ne!(older, tensors);
    for tensors in [tensors, older] {
        let network = Vqgan::new(&config, &mut Initializer::new(1, &device)).unwrap();
        let vqgan = weights::apply(network, import::diffusers(tensors).tensors, &device).unwrap();
        let latents = vqgan.encode(golden.tensor("x", &device));
        check_close("latents", &latents, golden.array("latents"), 1e-4);
        let quantized = vqgan.quantize(latents);
        assert_eq!(tokens_of(quantized.tokens), golden.integers("tokens"));
        check_close("picture", vqgan.decode(quantized.latents), golden.array("picture"), 1e-4);
    }
}

/// Without the quantizer, which is not smooth; its gradients are checked in `quantizer::vector`.
#[test]
fn gradients_agree_with_finite_differences() {
    let device = Device::flex().autodiff();
    let vqgan = Vqgan::new(&tiny(), &mut Initializer::new(3, &device)).unwrap();
    let x = pictures(1, &device);
    // Codes of a trained size: with the small first ones the normalisations bend too sharply for finite differences.
    let codes: Vec<f32> = (0..4 * 4 * 5).map(|i| (i as f32 * 1.7).sin()).collect();
    let codes = Tensor::<4>::from_data(TensorData::new(codes, [1, 4, 4, 5]), &device);
    module_gradient_check("encoder", &vqgan, 1e-2, |vqgan| vqgan.encode(x.clone()).powi_scalar(2).mean());
    module_gradient_check("decoder", &vqgan, 1e-2, |vqgan| loss::l2(vqgan.decode(codes.clone()), x.clone()));
}

#[test]
fn overfits_one_batch() {
    for codebook in [Codebook::Learned, Codebook::MovingAverage] {
        let device = Device::flex().autodiff();
        let mut config = tiny();
        config.network.base_channels = 8;
        config.quantizer = vector_config(codebook);
        let mut rng = ChaCha12Rng::seed_from_u64(1);
        let x = pictures(2, &device);
        let mut vqgan = Vqgan::new(&config, &mut Initializer::new(4, &device)).unwrap();
        vqgan = {
            let latents = vqgan.encode(x.clone());
            vqgan.start_codebook(latents, 4, &mut rng)
        };
        let mut optimizer = AdamConfig::new().init();
        let mut errors = Vec::new();
        for _ in 0..120 {
            let latents = vqgan.encode(x.clone());
            let quantized = vqgan.quantize(latents.clone());
            let reconstruction = loss::l1(vqgan.decode(quantized.latents), x.clone());
            errors.push(number(reconstruction.clone()));
            let total = reconstruction + quantized.codebook_loss + quantized.commitment_loss * 0.25;
            let gradients = GradientsParams::from_grads(total.backward(), &vqgan);
            vqgan = optimizer.step(5e-3, vqgan, gradients).update_codebook(latents, quantized.tokens, &mut rng);
        }
        let (first, last) = (errors[0], errors[119]);
        assert!(first > 0.4 && last < 0.3 * first, "{codebook:?}: error went from {first} to {last}");
    }
}

fn vector_config(codebook: Codebook) -> crate::image_tokenizer::quantizer::vector::Config {
    crate::image_tokenizer::quantizer::vector::Config { codebook, restart_below: 0.05, decay: 0.9, ..Config::imagenet_f16_1024().quantizer }
}

#[test]
fn weights_go_round_and_a_misfit_is_reported_whole() {
    let device = Device::flex();
    let mut config = tiny();
    config.quantizer.codebook = Codebook::MovingAverage;
    let vqgan = Vqgan::new(&config, &mut Initializer::new(5, &device)).unwrap();
    let saved = weights::collect(&vqgan);
    assert!(saved.contains_key("quantizer.recent_use") && saved.contains_key("quantizer.recent_sum"), "the codebook's state is saved with it");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vqgan.safetensors");
    safetensors::write(&path, &saved, safetensors::Storage::F32).unwrap();
    let other = || Vqgan::new(&config, &mut Initializer::new(6, &device)).unwrap();
    let restored = weights::apply(other(), safetensors::read(&path).unwrap(), &device).unwrap();
    assert_eq!(weights::collect(&restored), saved);

    let mut broken = saved;
    broken.remove("encoder.conv_in.bias").unwrap();
    broken.insert("encoder.levels.9.blocks.0.conv_1.bias".to_string(), HostTensor::new([1], vec![0.0]));
    broken.insert("decoder.conv_out.bias".to_string(), HostTensor::new([4], vec![0.0; 4]));
    let Err(WeightsError::Mismatch(report)) = weights::apply(other(), broken, &device) else { panic!("expected a report") };
    assert_eq!(report.missing, ["encoder.conv_in.bias"]);
    assert_eq!(report.unused, ["encoder.levels.9.blocks.0.conv_1.bias"]);
    assert_eq!(report.misshapen, [("decoder.conv_out.bias".to_string(), vec![3], vec![4])]);
}

#[test]
fn import_reports_what_it_leaves_out_and_what_it_does_not_know() {
    let mut tensors = pickle::read(&Path::new(GOLDENS).join("taming.ckpt")).unwrap();
    tensors.insert("state_dict.quantize.used".to_string(), HostTensor::new([2, 1, 1, 1], vec![0.0; 2]));
    tensors.insert("state_dict.encoder.conv_in.weight".to_string(), HostTensor::new([2], vec![0.0; 2]));
    tensors.insert("optimizer_states.0.exp_avg".to_string(), HostTensor::new([1], vec![0.0]));
    let imported = import::taming(tensors);
    assert!(imported.ignored.contains(&"optimizer_states.0.exp_avg".to_string()));
    assert!(imported.ignored.contains(&"state_dict.loss.discriminator.main.0.weight".to_string()));
    let device = Device::flex();
    let network = Vqgan::new(&golden_config(1), &mut Initializer::new(1, &device)).unwrap();
    let Err(WeightsError::Mismatch(report)) = weights::apply(network, imported.tensors, &device) else { panic!("expected a report") };
    assert_eq!((report.missing.len(), report.unused), (0, vec!["quantize.used".to_string()]));
    assert_eq!(report.misshapen, [("encoder.conv_in.weight".to_string(), vec![3, 3, 3, 4], vec![2])]);
}

#[test]
fn config_of_a_taming_checkpoint() {
    // Sizes with the 32 groups that all of taming's networks have, and no attention anywhere but in the last level.
    let mut config = golden_config(2);
    config.network.base_channels = 32;
    config.network.group_count = 32;
    let device = Device::flex();
    for middle_attention in [true, false] {
        config.network.middle_attention = middle_attention;
        let tensors = weights::collect(&Vqgan::new(&config, &mut Initializer::new(1, &device)).unwrap());
        assert_eq!(import::taming_config(&tensors).unwrap(), config);
    }
    config.quantizer = vector::Config::scored(12, 5);
    let tensors = weights::collect(&Vqgan::new(&config, &mut Initializer::new(1, &device)).unwrap());
    assert_eq!(import::taming_config(&tensors).unwrap(), config);
    let error = import::taming_config(&NamedTensors::new()).unwrap_err();
    assert_eq!(error.to_string(), "`tensor `encoder.conv_in.weight``: expected a VQGAN's, found no such tensor");
}

#[test]
fn unknown_diffusers_configs_are_refused() {
    let published = std::fs::read_to_string(Path::new(GOLDENS).join("diffusers_config.json")).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(published.contains(from));
        import::diffusers_config(&published.replace(from, to)).unwrap_err().to_string()
    };
    assert_eq!(refused("\"norm_type\": \"group\"", "\"norm_type\": \"spatial\""), "`config.json: norm_type`: expected `group`, found `spatial`");
    assert!(refused("\"AttnUpDecoderBlock2D\"", "\"UpDecoderBlock2D\"").contains("mirror picture"));
    assert!(refused("\"AttnUpDecoderBlock2D\"", "\"UpBlock2D\"").contains("found `UpBlock2D`"));
    assert!(refused("\"VQModel\"", "\"AutoencoderKL\"").contains("_class_name"));
    assert!(refused("\"norm_num_groups\": 2", "\"norm_num_groups\": 3").contains("network.group_count"));
    assert!(refused("\"block_out_channels\"", "\"channels\"").contains("missing field `block_out_channels`"));
}

mod losses {
    use super::super::loss::*;
    use burn::tensor::{Device, Tensor, TensorData};
    use smalti_testing::{check_close, gradient_check};

    fn logits(values: [f32; 4]) -> Tensor<4> {
        Tensor::from_data(TensorData::new(values.to_vec(), [2, 2, 1, 1]), &Device::flex())
    }

    fn number(tensor: Tensor<1>) -> f32 {
        tensor.into_scalar()
    }

    const A: [f32; 4] = [0.5, -2.0, 3.0, 0.0];
    const B: [f32; 4] = [-0.5, 1.5, -4.0, 0.25];

    #[test]
    fn distances() {
        check_close("l1", [number(l1(logits(A), logits(B)))], [(1.0 + 3.5 + 7.0 + 0.25) / 4.0], 1e-6);
        check_close("l2", [number(l2(logits(A), logits(B)))], [(1.0 + 12.25 + 49.0 + 0.0625) / 4.0], 1e-6);
    }

    #[test]
    fn hinge() {
        // relu(1 - A) = 0.5, 3, 0, 1; relu(1 + B) = 0.5, 2.5, 0, 1.25
        check_close("discriminator", [number(hinge_discriminator(logits(A), logits(B)))], [0.5 * (4.5 / 4.0 + 4.25 / 4.0)], 1e-6);
        check_close("generator", [number(hinge_generator(logits(B)))], [2.75 / 4.0], 1e-6);
    }

    #[test]
    fn non_saturating() {
        let softplus = |x: f32| f64::from(x).exp().ln_1p();
        let mean = |values: [f32; 4], sign: f32| values.iter().map(|value| softplus(sign * value)).sum::<f64>() / 4.0;
        let expected = 0.5 * (mean(A, -1.0) + mean(B, 1.0)) as f32;
        check_close("discriminator", [number(non_saturating_discriminator(logits(A), logits(B)))], [expected], 1e-6);
        check_close("generator", [number(non_saturating_generator(logits(B)))], [mean(B, -1.0) as f32], 1e-6);
        // Far out it is linear, and finite.
        check_close("far", [number(non_saturating_generator(logits([-300.0; 4])))], [300.0], 1e-6);
        check_close("other side", [number(non_saturating_generator(logits([300.0; 4])))], [0.0], 1e-6);
        let device = Device::flex().autodiff();
        gradient_check("generator", &[("made", B.to_vec().into())], &device, 1e-3, |p| non_saturating_generator(p.get::<1>("made").reshape([2, 2, 1, 1])));
    }

    #[test]
    fn codebook_and_commitment_reach_one_side_each() {
        let device = Device::flex().autodiff();
        let tensor = |values: [f32; 4]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [2, 2]), &device).require_grad();
        let expected = [(1.0 + 12.25 + 49.0 + 0.0625) / 4.0];
        let half_difference: Vec<f32> = A.iter().zip(B).map(|(a, b)| (a - b) / 2.0).collect(); // 2 (a - b) / 4
        let (latents, codes) = (tensor(A), tensor(B));
        let commitment = commitment_loss(latents.clone(), codes.clone());
        check_close("commitment", [number(commitment.clone())], expected, 1e-6);
        let gradients = commitment.backward();
        check_close("its gradient", latents.grad(&gradients).unwrap().reshape([4]) as Tensor<1>, half_difference.clone(), 1e-6);
        assert!(codes.grad(&gradients).is_none(), "the commitment loss must not move codes");
        let codebook = codebook_loss(latents.clone(), codes.clone());
        check_close("codebook", [number(codebook.clone())], expected, 1e-6);
        let gradients = codebook.backward();
        check_close("its gradient", -codes.grad(&gradients).unwrap().reshape([4]) as Tensor<1>, half_difference, 1e-6);
        assert!(latents.grad(&gradients).is_none(), "the codebook loss must not move latents");
    }

    #[test]
    fn adaptive_weight_is_a_ratio_capped_and_skipped() {
        let weight = |a: [f32; 4], b: [f32; 4], cap: f32| adaptive_weight(logits(a), logits(b), cap);
        let found = weight([3.0, 0.0, 4.0, 0.0], [0.0, 0.0, 0.0, 2.0], 100.0).unwrap();
        check_close("weight", [found], [5.0 / (2.0 + 1e-4)], 1e-6);
        check_close("vanishing", [weight([3.0, 0.0, 4.0, 0.0], [0.0; 4], ADAPTIVE_WEIGHT_CAP).unwrap()], [1e4], 1e-6);
        check_close("small", [weight([1e-4, 0.0, 0.0, 0.0], [0.0; 4], ADAPTIVE_WEIGHT_CAP).unwrap()], [1.0], 1e-6);
        check_close("capped", [weight([3.0, 0.0, 4.0, 0.0], [0.0; 4], 7.0).unwrap()], [7.0], 1e-6);
        check_close("large", [weight([1e30; 4], [1e30; 4], 7.0).unwrap()], [1.0], 1e-6);
        for strange in [f32::NAN, f32::INFINITY] {
            assert_eq!(weight([strange, 0.0, 0.0, 0.0], [1.0; 4], 7.0), None);
            assert_eq!(weight([1.0; 4], [strange, 0.0, 0.0, 0.0], 7.0), None);
        }
    }

    #[test]
    fn the_discriminator_starts_alone() {
        let factors = |step| (discriminator_factor(step, 100), adversarial_factor(step, 100, 20));
        assert_eq!([99, 100, 119, 120].map(factors), [(0.0, 0.0), (1.0, 0.0), (1.0, 0.0), (1.0, 1.0)]);
        assert_eq!(adversarial_factor(u64::MAX - 1, u64::MAX, 20), 0.0);
    }
}
