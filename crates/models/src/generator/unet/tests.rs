//! The five tests of every model, and the reference's losses and gradients.

use super::*;
use crate::golden_gradients::{compare_gradients, named_gradients, stirred};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Bool, Device, Int, TensorData};
use smalti_nn::weights::{self, HostTensor, WeightsError, safetensors};
use smalti_testing::{Golden, check_close, golden};
use std::path::Path;

mod losses;

const GOLDENS: &str = "src/generator/unet/goldens";

fn results(name: &str) -> Golden {
    golden(Path::new(GOLDENS).join(format!("{name}_results.safetensors")))
}

fn golden_json(name: &str) -> String {
    std::fs::read_to_string(Path::new(GOLDENS).join(format!("{name}_config.json"))).unwrap()
}

fn golden_weights(name: &str) -> weights::NamedTensors {
    safetensors::read(&Path::new(GOLDENS).join(format!("{name}_weights.safetensors"))).unwrap()
}

fn golden_model(name: &str, device: &Device) -> Unet {
    let config = import::diffusers_config(&golden_json(name)).unwrap();
    let network = Unet::new(&config, &mut Initializer::new(1, device)).unwrap();
    weights::apply(network, import::diffusers(golden_weights(name)), device).unwrap()
}

fn golden_conditions(name: &str, golden: &Golden, device: &Device) -> Conditions {
    match name {
        "ddpm" => Conditions::default(),
        "classes" => Conditions::class(golden.integer_tensor("class", device)),
        "sd1" => Conditions::text(golden.tensor("states", device), Some(golden.integer_tensor::<2>("visible", device).equal_elem(1))),
        _ => Conditions::text(golden.tensor("states", device), None),
    }
}

/// Two levels, attention at the second, everything small.
fn tiny() -> Config {
    Config {
        level_channels: vec![4, 8],
        residual_block_count: 1,
        attention_levels: vec![1],
        head_counts: vec![1, 2],
        group_count: 2,
        time: time_embedding::Config::ddpm(4),
        ..Config::ddpm_cifar10()
    }
}

fn tiny_with_text() -> Config {
    Config { input_channels: 4, output_channels: 4, text: Some(TextConfig { channels: 6, block_count: 1 }), class_count: Some(3), ..tiny() }
}

fn wave<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * i) as f32 * 0.013 + i as f32 * 0.71).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn times(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

fn text_and_class(batch: usize, device: &Device) -> Conditions {
    let classes: Vec<i64> = (0..batch as i64).map(|row| row % 3).collect();
    let visible: Vec<bool> = (0..batch * 5).map(|i| i % 5 < 3 + i / 5).collect();
    let visible = Tensor::<2, Bool>::from_data(TensorData::new(visible, [batch, 5]), device);
    let class = Tensor::<1, Int>::from_data(TensorData::new(classes, [batch]), device);
    Conditions { class: Some(class), ..Conditions::text(wave([batch, 5, 6], device), Some(visible)) }
}

#[test]
fn shapes_and_a_zero_start() {
    let device = Device::flex();
    let unet = Unet::new(&Config { learned_variance: true, ..tiny() }, &mut Initializer::new(1, &device)).unwrap();
    let y = unet.forward(wave([2, 8, 6, 3], &device), times(&[0.0, 999.0], &device), Conditions::default());
    assert_eq!((y.dims(), unet.config().side_divisor()), ([2, 8, 6, 6], 2));
    assert!(y.into_data().iter::<f32>().all(|value| value == 0.0), "training begins with a prediction of zero");
}

#[test]
fn agrees_with_diffusers() {
    for name in ["ddpm", "classes", "sd1", "sd2"] {
        let (device, golden) = (Device::flex(), results(name));
        let conditions = golden_conditions(name, &golden, &device);
        let output = golden_model(name, &device).forward(golden.tensor("noisy", &device), golden.tensor("timesteps", &device), conditions);
        check_close(name, output, golden.array("output"), 1e-4);
    }
}

#[test]
fn losses_and_gradients_agree_with_diffusers() {
    for name in ["ddpm", "classes", "sd1", "sd2"] {
        let (device, golden) = (Device::flex().autodiff(), results(name));
        let unet = golden_model(name, &device);
        let noisy = golden.tensor::<4>("noisy", &device).require_grad();
        let output = unet.forward(noisy.clone(), golden.tensor("timesteps", &device), golden_conditions(name, &golden, &device));
        let loss = loss::weighted_squared_error(output, golden.tensor("target", &device), golden.tensor("weights", &device));
        check_close(name, &loss, golden.values("loss"), 1e-4);
        let gradients = loss.backward();
        check_close("gradient of the input", noisy.grad(&gradients).unwrap(), golden.array("noisy_gradient"), 1e-4);
        let expected = safetensors::read(&Path::new(GOLDENS).join(format!("{name}_gradients.safetensors"))).unwrap();
        compare_gradients(&named_gradients(&unet, &gradients), &import::diffusers(expected));
    }
}

#[test]
fn older_names_of_attention_are_known() {
    let tensors = golden_weights("ddpm");
    let older = tensors.iter().map(|(name, tensor)| {
        let older = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];
        (older.iter().fold(name.clone(), |name, (today, older)| name.replace(today, older)), tensor.clone())
    });
    let older: weights::NamedTensors = older.collect();
    assert_ne!(older, tensors);
    assert_eq!(import::diffusers(older), import::diffusers(tensors));
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let device = Device::flex();
    let unet = stirred(Unet::new(&tiny_with_text(), &mut Initializer::new(2, &device)).unwrap(), 3);
    let (noisy, timesteps, conditions) = (wave([3, 4, 6, 4], &device), times(&[1.0, 500.0, 20.5], &device), text_and_class(3, &device));
    let whole = unet.forward(noisy.clone(), timesteps.clone(), conditions.clone());
    let Text { states, visible } = conditions.text.unwrap();
    for row in 0..3 {
        let text = Text { states: states.clone().narrow(0, row, 1), visible: visible.clone().map(|visible| visible.narrow(0, row, 1)) };
        let class = conditions.class.clone().map(|class| class.narrow(0, row, 1));
        let told = Conditions { text: Some(text), class, low_resolution: None };
        let alone = unet.forward(noisy.clone().narrow(0, row, 1), timesteps.clone().narrow(0, row, 1), told);
        assert_eq!(alone.into_data(), whole.clone().narrow(0, row, 1).into_data(), "row {row}");
    }
}

#[test]
fn hidden_tokens_say_nothing() {
    let device = Device::flex();
    let unet = stirred(Unet::new(&tiny_with_text(), &mut Initializer::new(2, &device)).unwrap(), 3);
    let conditions = text_and_class(2, &device);
    let forward = |states: Tensor<3>| {
        let text = conditions.text.as_ref().map(|text| Text { states, visible: text.visible.clone() });
        unet.forward(wave([2, 4, 4, 4], &device), times(&[10.0, 900.0], &device), Conditions { text, ..conditions.clone() }).into_data()
    };
    let states = conditions.text.as_ref().unwrap().states.clone();
    let hidden_changed = states.clone().slice_assign([0..1, 3..5, 0..6], Tensor::zeros([1, 2, 6], &device));
    let seen_changed = states.clone().slice_assign([0..1, 2..3, 0..6], Tensor::zeros([1, 1, 6], &device));
    assert_eq!(forward(states.clone()), forward(hidden_changed));
    assert_ne!(forward(states), forward(seen_changed));
}

#[test]
fn overfits_one_batch() {
    let device = Device::flex().autodiff();
    let mut unet = Unet::new(&tiny_with_text(), &mut Initializer::new(4, &device)).unwrap();
    let (noisy, target) = (wave([2, 4, 4, 4], &device), wave([2, 4, 4, 4], &device).flip([1]));
    let mut optimizer = AdamConfig::new().init();
    let mut errors: Vec<f32> = Vec::new();
    for _ in 0..150 {
        let output = unet.forward(noisy.clone(), times(&[10.0, 600.0], &device), text_and_class(2, &device));
        let error = loss::squared_error(output, target.clone()).mean();
        errors.push(error.clone().into_scalar());
        let gradients = GradientsParams::from_grads(error.backward(), &unet);
        unet = optimizer.step(1e-2, unet, gradients);
    }
    let (first, last) = (errors[0], errors[149]);
    assert!(first > 0.3 && last < 0.05 * first, "error went from {first} to {last}");
}

#[test]
fn weights_go_round_and_a_misfit_is_reported_whole() {
    let device = Device::flex();
    let new = |seed| Unet::new(&tiny_with_text(), &mut Initializer::new(seed, &device)).unwrap();
    let saved = weights::collect(&stirred(new(5), 6));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("unet.safetensors");
    safetensors::write(&path, &saved, safetensors::Storage::F32).unwrap();
    let restored = weights::apply(new(7), safetensors::read(&path).unwrap(), &device).unwrap();
    assert_eq!(weights::collect(&restored), saved);

    let mut broken = golden_weights("sd1");
    broken.remove("conv_in.bias").unwrap();
    broken.insert("mid_block.attentions.1.proj_in.bias".into(), HostTensor::new([1], vec![0.0]));
    broken.insert("down_blocks.0.attentions.0.transformer_blocks.0.attn3.to_q.weight".into(), HostTensor::new([1, 1], vec![0.0]));
    broken.insert("up_blocks.2.attentions.0.transformer_blocks.0.ff.net.0.proj.bias".into(), HostTensor::new([6], vec![0.0; 6]));
    let network = Unet::new(&import::diffusers_config(&golden_json("sd1")).unwrap(), &mut Initializer::new(1, &device)).unwrap();
    let Err(WeightsError::Mismatch(report)) = weights::apply(network, import::diffusers(broken), &device) else { panic!("expected a report") };
    assert_eq!(report.missing, ["conv_in.bias"]);
    assert_eq!(report.unused, ["down_blocks.0.attentions.0.transformer_blocks.0.attn3.to_q.weight", "mid_block.attentions.1.proj_in.bias"]);
    let halves = ["input", "gate"].map(|part| (format!("up.2.stages.0.transformer.blocks.0.feed_forward.{part}.bias"), vec![32], vec![3]));
    assert_eq!(report.misshapen, halves);
}

#[test]
fn configs_of_diffusers() {
    let ddpm = import::diffusers_config(&golden_json("ddpm")).unwrap();
    assert_eq!((ddpm.downsampling_padding, ddpm.time.cosine_first, ddpm.time.frequency_shift), (DownsamplingPadding::After, false, 1.0));
    assert_eq!((ddpm.head_counts, ddpm.attention_levels, ddpm.norm_epsilon), (vec![1; 3], vec![1], 1e-6));
    let classes = import::diffusers_config(&golden_json("classes")).unwrap();
    assert_eq!((classes.learned_variance, classes.output_channels, classes.class_count), (true, 3, Some(5)));
    assert_eq!((classes.head_counts, classes.time_use, classes.time.cosine_first), (vec![1, 2], TimeUse::ScaleShift, true));
    let sd2 = import::diffusers_config(&golden_json("sd2")).unwrap();
    assert_eq!((sd2.head_counts, sd2.text), (vec![1, 2, 4], Some(TextConfig { channels: 6, block_count: 2 })));
    // What diffusers publishes with Stable Diffusion 1.5 and 2.1, as far as it differs from the defaults.
    let blocks = r#""down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]"#;
    let published = |rest: &str| import::diffusers_config(&format!(r#"{{"_class_name": "UNet2DConditionModel", {blocks}, {rest}}}"#)).unwrap();
    assert_eq!(published(r#""cross_attention_dim": 768, "attention_head_dim": 8"#), Config::stable_diffusion_1());
    let second = r#""cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": true, "upcast_attention": true"#;
    assert_eq!(published(second), Config::stable_diffusion_2());
}

#[test]
fn unknown_diffusers_configs_are_refused() {
    let refused = |name: &str, from: &str, to: &str| {
        let json = golden_json(name);
        assert!(json.contains(from), "{from}");
        import::diffusers_config(&json.replace(from, to)).unwrap_err().to_string()
    };
    assert_eq!(refused("sd1", "\"act_fn\": \"silu\"", "\"act_fn\": \"gelu\""), "`config.json: act_fn`: expected \"silu\" or \"swish\", found \"gelu\"");
    assert_eq!(refused("sd1", "\"sample_size\"", "\"ears\""), "`config.json: ears`: expected no such key, found null");
    assert!(refused("sd1", "UNet2DConditionModel", "UNet3DConditionModel").contains("_class_name"));
    assert!(refused("sd1", "\"UNetMidBlock2DCrossAttn\"", "\"UNetMidBlock2DSimpleCrossAttn\"").contains("mid_block_type"));
    assert!(refused("sd1", "\"CrossAttnUpBlock2D\"", "\"UpBlock2D\"").contains("mirror picture"));
    assert!(refused("sd1", "\"norm_num_groups\": 2", "\"norm_num_groups\": 3").contains("group_count"));
    assert!(refused("sd1", "\"addition_embed_type\": null", "\"addition_embed_type\": \"text_time\"").contains("addition_embed_type"));
    assert!(refused("sd2", "\"transformer_layers_per_block\": 2", "\"transformer_layers_per_block\": [1, 2, 2]").contains("same number"));
    assert!(refused("classes", "\"attn_norm_num_groups\": 2", "\"attn_norm_num_groups\": null").contains("attn_norm_num_groups"));
    assert!(refused("classes", "\"attention_head_dim\": 6", "\"attention_head_dim\": 5").contains("a divisor of 12"));
}

#[test]
fn an_impossible_config_is_an_error_that_names_the_key() {
    let refused = |change: &dyn Fn(&mut Config)| {
        let mut config = tiny_with_text();
        change(&mut config);
        Unet::new(&config, &mut Initializer::new(1, &Device::flex())).unwrap_err().to_string()
    };
    assert_eq!(refused(&|config| config.group_count = 3), "`group_count`: expected a divisor of the channels of every level, 4 among them, found 3");
    assert_eq!(refused(&|config| config.head_counts = vec![1, 3]), "`head_counts`: expected divisors of 8 at level 1, found 3");
    assert_eq!(refused(&|config| config.attention_levels = vec![2]), "`attention_levels`: expected levels below 2, found 2");
    assert_eq!(refused(&|config| config.time.sinusoid_channels = 5), "`time.sinusoid_channels`: expected an even number up to 16384, found 5");
    assert!(refused(&|config| config.time.frequency_shift = 2.0).starts_with("`time.frequency_shift`"));
    assert!(refused(&|config| config.level_channels = vec![]).starts_with("`level_channels`"));
    assert!(refused(&|config| config.level_channels = vec![4, usize::MAX - 1]).starts_with("`level_channels`"));
    assert!(refused(&|config| config.head_counts = vec![1]).starts_with("`head_counts`"));
    assert!(refused(&|config| config.norm_epsilon = f64::NAN).starts_with("`norm_epsilon`"));
    assert!(refused(&|config| config.text = Some(TextConfig { channels: 0, block_count: 1 })).starts_with("`text.channels`"));
    assert!(refused(&|config| config.class_count = Some(0)).starts_with("`class_count`"));
    for config in [Config::ddpm_cifar10(), Config::stable_diffusion_1(), Config::stable_diffusion_2()] {
        config.validate().unwrap();
    }
}

#[test]
#[should_panic(expected = "sides divisible by 2")]
fn odd_sides_are_a_wrong_program() {
    let device = Device::flex();
    let unet = Unet::new(&tiny(), &mut Initializer::new(1, &device)).unwrap();
    unet.forward(wave([1, 5, 4, 3], &device), times(&[1.0], &device), Conditions::default());
}

#[test]
#[should_panic(expected = "does not fit a batch of 1 and Some(6) channels")]
fn missing_text_is_a_wrong_program() {
    let device = Device::flex();
    let unet = Unet::new(&tiny_with_text(), &mut Initializer::new(1, &device)).unwrap();
    unet.forward(wave([1, 4, 4, 4], &device), times(&[1.0], &device), Conditions::default());
}

/// Both conventions against their formulas in f64.
#[test]
fn sinusoids_of_both_conventions() {
    let device = Device::flex();
    let x = [0.0f32, 1.0, 37.5, 999.0];
    for (config, shift) in [(time_embedding::Config::ddpm(8), 1.0), (time_embedding::Config::latent_diffusion(8), 0.0)] {
        let angle = |x: f32, i: usize| f64::from(x) * (-(10_000f64.ln()) * i as f64 / (4.0 - shift)).exp();
        let expected = x.iter().flat_map(|&x| {
            let (sines, cosines) = ((0..4).map(move |i| angle(x, i).sin()), (0..4).map(move |i| angle(x, i).cos()));
            let values: Vec<f64> = if config.cosine_first { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() };
            values
        });
        let expected: Vec<f32> = expected.map(|value| value as f32).collect();
        // 999 radians in f32 are known to 3e-5.
        check_close("sinusoids", time_embedding::sinusoids(times(&x, &device), &config).reshape([32]) as Tensor<1>, expected, 1e-4);
    }
}
