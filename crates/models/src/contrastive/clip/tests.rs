//! Clip against `transformers` and `open_clip`, finite differences, its own ability to learn, and strict loading.

use super::config::FeedForwardActivation;
use super::{Clip, Config, import, loss};
use crate::ConfigError;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use smalti_nn::weights::{self, HostTensor, NamedTensors, WeightsError, safetensors};
use smalti_nn::{Initializer, weights::safetensors::Storage};
use smalti_testing::{Array, check_close, golden, module_gradient_check};
use std::path::Path;

const GOLDENS: &str = "src/contrastive/clip/goldens";

fn tiny() -> Config {
    let mut config = Config::pictograms_64(20, 6);
    config.embedding_channels = 6;
    config.image.image_size = 8;
    config.image.patch_size = 4;
    for transformer in [&mut config.image.transformer, &mut config.text.transformer] {
        (transformer.channels, transformer.layer_count, transformer.head_count, transformer.feed_forward_channels) = (8, 1, 2, 12);
    }
    config
}

fn build(config: &Config, device: &Device) -> Clip {
    Clip::new(config, &mut Initializer::new(7, device)).unwrap()
}

/// Four different pictures and four different texts.
fn batch(device: &Device) -> (Tensor<4>, Tensor<2, Int>, Vec<usize>) {
    let pixels: Vec<f32> = (0..4 * 8 * 8 * 3).map(|i| ((i * i % 97) as f32 / 48.0 - 1.0) * if i % 5 == i / 192 { 1.0 } else { 0.3 }).collect();
    let text_tokens = [[3, 5, 19, 0, 0], [3, 7, 2, 19, 0], [11, 5, 1, 8, 19], [4, 19, 0, 0, 0]];
    let x = Tensor::from_data(TensorData::new(pixels, [4, 8, 8, 3]), device);
    (x, Tensor::from_data(text_tokens, device), vec![2, 3, 4, 1])
}

fn batch_loss(clip: &Clip) -> Tensor<1> {
    let (x, text_tokens, end) = batch(&clip.logit_scale.val().device());
    loss::contrastive(clip.encode_image(x), clip.encode_text(text_tokens, &end), clip.logit_scale())
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    Array::from(tensor).values
}

#[test]
fn embeddings_have_the_right_shape_and_unit_length() {
    let device = Device::flex();
    let clip = build(&tiny(), &device);
    let (x, text_tokens, end) = batch(&device);
    for embeddings in [clip.encode_image(x), clip.encode_text(text_tokens, &end)] {
        assert_eq!(embeddings.dims(), [4, 6]);
        check_close("length", values(embeddings.powi_scalar(2).sum_dim(1)), [1.0f32; 4], 1e-5);
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let device = Device::flex();
    let clip = build(&tiny(), &device);
    let (x, text_tokens, end) = batch(&device);
    let (images, texts) = (clip.encode_image(x.clone()), clip.encode_text(text_tokens.clone(), &end));
    for (row, &end) in end.iter().enumerate() {
        let image = clip.encode_image(x.clone().narrow(0, row, 1));
        let text = clip.encode_text(text_tokens.clone().narrow(0, row, 1), &[end]);
        assert_eq!(values(images.clone().narrow(0, row, 1)), values(image));
        assert_eq!(values(texts.clone().narrow(0, row, 1)), values(text));
    }
}

#[test]
fn what_follows_the_end_token_has_no_influence() {
    let device = Device::flex();
    let clip = build(&tiny(), &device);
    let encode = |text_tokens: [[i64; 5]; 1]| values(clip.encode_text(Tensor::from_data(text_tokens, &device), &[2]));
    assert_eq!(encode([[3, 5, 19, 0, 0]]), encode([[3, 5, 19, 8, 13]]));
    assert_ne!(encode([[3, 5, 19, 0, 0]]), encode([[3, 6, 19, 0, 0]]));
}

#[test]
fn agrees_with_transformers_forward_and_backward() {
    let device = Device::flex().autodiff();
    let json = std::fs::read_to_string(Path::new(GOLDENS).join("hugging_face_config.json")).unwrap();
    let import::HuggingFaceConfig { config, end_token } = import::hugging_face_config(&json).unwrap();
    assert_eq!(end_token, 39);
    assert_eq!((config.image.transformer.activation, config.text.transformer.activation), (FeedForwardActivation::Gelu, FeedForwardActivation::QuickGelu));
    let tensors = safetensors::read(&Path::new(GOLDENS).join("hugging_face_weights.safetensors")).unwrap();
    let clip = weights::apply(build(&config, &device), import::hugging_face(tensors), &device).unwrap();

    let expected = golden(Path::new(GOLDENS).join("hugging_face_results.safetensors"));
    let end: Vec<usize> = expected.integers("end").into_iter().map(|end| end as usize).collect();
    let images = clip.encode_image(expected.tensor("pictures", &device));
    let texts = clip.encode_text(expected.integer_tensor("text_tokens", &device), &end);
    check_close("image embeddings", images.clone(), expected.array("image_embeddings"), 1e-4);
    check_close("text embeddings", texts.clone(), expected.array("text_embeddings"), 1e-4);
    check_close("logits", loss::logits(images.clone(), texts.clone(), clip.logit_scale()), expected.array("logits"), 1e-4);
    let loss = loss::contrastive(images, texts, clip.logit_scale());
    check_close("loss", loss.clone(), expected.array("loss"), 1e-4);

    let expected = safetensors::read(&Path::new(GOLDENS).join("hugging_face_gradients.safetensors")).unwrap();
    let found = gradients(&clip, &loss.backward());
    let expected = import::hugging_face(expected);
    assert!(found.keys().eq(expected.keys()));
    for (name, gradient) in found {
        let expected = &expected[&name];
        assert_eq!(gradient.shape, expected.shape, "{name}");
        // A key bias shifts all scores of a query alike: its true gradient is zero and only rounding is left.
        if name.ends_with("key.bias") {
            assert!(gradient.values.iter().chain(&expected.values).all(|value| value.abs() < 1e-5), "{name}");
        } else {
            check_close(&name, gradient.values, expected.values.clone(), 1e-4);
        }
    }
}

#[test]
fn agrees_with_the_open_ai_layout() {
    let device = Device::flex();
    let tensors = safetensors::read(&Path::new(GOLDENS).join("open_ai_weights.safetensors")).unwrap();
    let config = import::open_ai_config(&tensors).unwrap();
    assert_eq!((config.image.image_size, config.image.patch_size, config.text.context_length, config.embedding_channels), (8, 4, 6, 8));
    let clip = weights::apply(build(&config, &device), import::open_ai(tensors), &device).unwrap();
    let expected = golden(Path::new(GOLDENS).join("open_ai_results.safetensors"));
    let end: Vec<usize> = expected.integers("end").into_iter().map(|end| end as usize).collect();
    check_close("image embeddings", clip.encode_image(expected.tensor("pictures", &device)), expected.array("image_embeddings"), 1e-4);
    let texts = clip.encode_text(expected.integer_tensor("text_tokens", &device), &end);
    check_close("text embeddings", texts, expected.array("text_embeddings"), 1e-4);
}

#[test]
fn gradients_agree_with_finite_differences() {
    let device = Device::flex().autodiff();
    let clip = build(&tiny(), &device);
    // Fresh embeddings are as small as the steps of the check, and layer norm bends much within one step: spread them out.
    let mut tensors = weights::collect(&clip);
    for name in ["text.token_embedding.weight", "text.positions"] {
        tensors.get_mut(name).unwrap().values.iter_mut().for_each(|value| *value *= 50.0);
    }
    let clip = weights::apply(clip, tensors, &device).unwrap();
    module_gradient_check("clip", &clip, 1e-2, batch_loss);
}

#[test]
fn overfits_one_batch() {
    let mut clip = build(&tiny(), &Device::flex().autodiff());
    let mut optimizer = AdamConfig::new().init();
    let first = values(batch_loss(&clip))[0];
    for _ in 0..60 {
        let gradients = GradientsParams::from_grads(batch_loss(&clip).backward(), &clip);
        clip = optimizer.step(0.01, clip, gradients).clip_logit_scale();
    }
    let last = values(batch_loss(&clip))[0];
    assert!(first > 0.7 && last < 0.02, "loss went from {first} to {last}");
    assert!(values(clip.logit_scale())[0] <= 100.0 * (1.0 + 1e-6));
}

#[test]
fn weights_make_the_round_trip_and_loading_is_strict() {
    let device = Device::flex();
    let clip = build(&tiny(), &device);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.safetensors");
    safetensors::write(&path, &weights::collect(&clip), Storage::F32).unwrap();
    let other = Clip::new(&tiny(), &mut Initializer::new(8, &device)).unwrap();
    assert_ne!(weights::collect(&other), weights::collect(&clip));
    let other = weights::apply(other, safetensors::read(&path).unwrap(), &device).unwrap();
    assert_eq!(weights::collect(&other), weights::collect(&clip));

    let mut tensors = weights::collect(&clip);
    let moved = tensors.remove("image.blocks.0.query.bias").unwrap();
    tensors.insert("image.blocks.0.query.shift".into(), moved);
    tensors.insert("logit_scale".into(), HostTensor::new([2], vec![0.0; 2]));
    let Err(WeightsError::Mismatch(mismatch)) = weights::apply(other, tensors, &device) else { panic!("expected a mismatch") };
    assert_eq!(mismatch.missing, ["image.blocks.0.query.bias"]);
    assert_eq!(mismatch.unused, ["image.blocks.0.query.shift"]);
    assert_eq!(mismatch.misshapen, [("logit_scale".to_string(), vec![1], vec![2])]);
}

#[test]
fn foreign_names_that_are_not_clips_are_kept_for_strict_loading_to_report() {
    let strange = |name: &str| NamedTensors::from([(name.to_string(), HostTensor::new([2, 3, 1], vec![0.0; 6]))]);
    for name in ["vision_model.encoder.layers.0.self_attn.q_proj.scale", "text_model.pooler.weight", "vision_model.encoder.layers.x"] {
        assert!(import::hugging_face(strange(name)).contains_key(name), "{name}");
    }
    for name in ["visual.layer1.0.conv1.weight", "transformer.resblocks.0.attn.k", "transformer.resblocks.0"] {
        assert!(import::open_ai(strange(name)).contains_key(name), "{name}");
    }
    // Misshapen tensors reach strict loading under our name and do not panic on the way.
    assert!(import::hugging_face(strange("visual_projection.weight")).contains_key("image.projection.weight"));
    assert!(import::open_ai(strange("visual.transformer.resblocks.3.attn.in_proj_weight")).contains_key("image.blocks.3.query.weight"));
    assert!(matches!(import::open_ai_config(&strange("visual.conv1.weight")), Err(ConfigError { .. })));
}

#[test]
fn a_hugging_face_config_is_read_with_its_quirks() {
    let published = import::hugging_face_config(r#"{"text_config": {"eos_token_id": 2}, "vision_config": {}, "projection_dim": 512}"#).unwrap();
    assert_eq!(published.config, Config::vit_b_32());
    assert_eq!(published.end_token, 49_407, "2 is what files before transformers 4.32 say");
    let error = import::hugging_face_config(r#"{"vision_config": {"hidden_act": "relu"}}"#).unwrap_err();
    assert_eq!(error.to_string(), "`config.json: vision_config.hidden_act`: expected `quick_gelu` or `gelu`, found `relu`");
    assert!(import::hugging_face_config("{").unwrap_err().to_string().starts_with("`config.json`: expected the config of a CLIPModel"));
    let error = import::hugging_face_config(r#"{"vision_config": {"patch_size": 0}}"#).unwrap_err();
    assert_eq!(error.to_string(), "`image.patch_size`: expected 1 to 4096, found 0");
}

#[test]
fn impossible_configs_are_named() {
    for config in [Config::vit_b_32(), Config::vit_b_16(), Config::vit_l_14(), Config::pictograms_64(4096, 32)] {
        config.validate().unwrap();
    }
    let key = |change: fn(&mut Config)| {
        let mut config = tiny();
        change(&mut config);
        config.validate().unwrap_err().key
    };
    assert_eq!(key(|config| config.image.patch_size = 3), "image.patch_size");
    assert_eq!(key(|config| config.image.pixel_standard_deviation[1] = 0.0), "image.pixel_standard_deviation");
    assert_eq!(key(|config| config.image.transformer.head_count = 3), "image.transformer.head_count");
    assert_eq!(key(|config| config.text.transformer.layer_norm_epsilon = f32::NAN), "text.transformer.layer_norm_epsilon");
    assert_eq!(key(|config| config.text.vocabulary_size = usize::MAX), "text.vocabulary_size");
}

/// Worked by hand: cosines [[1, 0], [0.6, 0.8]] and scale ln 4 / 1 make e^logit a power of 4.
#[test]
fn the_loss_is_the_formula() {
    let device = Device::flex();
    let images = Tensor::<2>::from_data([[1.0, 0.0], [0.6, 0.8]], &device);
    let texts = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 1.0]], &device);
    let scale = 4.0f32.ln();
    // Rows: picture 1 chooses among 4^1, 4^0; picture 2 among 4^0.6, 4^0.8. Columns: text 1 among 4^1, 4^0.6; text 2 among 4^0, 4^0.8.
    let power = |exponent: f32| 4.0f32.powf(exponent);
    let choices = [(power(1.0), power(0.0)), (power(0.8), power(0.6)), (power(1.0), power(0.6)), (power(0.8), power(0.0))];
    let expected = choices.iter().map(|(own, other)| -(own / (own + other)).ln()).sum::<f32>() / 4.0;
    let found = loss::contrastive(images.clone(), texts.clone(), Tensor::from_data([scale], &device));
    check_close("loss", found, [expected], 1e-5);
    let chance = loss::contrastive(images, texts, Tensor::from_data([0.0], &device));
    check_close("chance", chance, [2.0f32.ln()], 1e-5);
}

#[test]
fn the_temperature_is_clipped() {
    let device = Device::flex().autodiff();
    let mut clip = build(&tiny(), &device);
    check_close("first scale", clip.logit_scale(), [1.0f32 / 0.07], 1e-5);
    clip.logit_scale = Param::from_tensor(Tensor::from_data([9.0f32], &device));
    let clip = clip.clip_logit_scale();
    check_close("logarithm", clip.logit_scale.val(), [100.0f32.ln()], 1e-6);
    check_close("limit", clip.logit_scale(), [100.0f32], 1e-6);
    assert!(clip.logit_scale.val().is_require_grad());
    let gradient = &gradients(&clip, &batch_loss(&clip).backward())["logit_scale"];
    assert!(gradient.values[0] != 0.0, "at the limit it can still fall");
}

/// K parts of a batch accumulate to the whole when the loss is taken once over the collected embeddings.
#[test]
fn collected_parts_equal_the_whole_batch() {
    let clip = build(&tiny(), &Device::flex().autodiff());
    let (x, text_tokens, end) = batch(&clip.logit_scale.val().device());
    let part = |row: usize| (clip.encode_image(x.clone().narrow(0, row, 2)), clip.encode_text(text_tokens.clone().narrow(0, row, 2), &end[row..row + 2]));
    let (first, second) = (part(0), part(2));
    let parts = loss::contrastive(Tensor::cat(vec![first.0, second.0], 0), Tensor::cat(vec![first.1, second.1], 0), clip.logit_scale());
    let whole = batch_loss(&clip);
    check_close("loss", parts.clone(), whole.clone(), 1e-6);
    let (parts, whole) = (gradients(&clip, &parts.backward()), gradients(&clip, &whole.backward()));
    for (name, gradient) in whole.iter().filter(|(name, _)| !name.ends_with("key.bias")) {
        check_close(name, parts[name].values.clone(), gradient.values.clone(), 1e-4);
    }
}

/// Gradients by weight name.
fn gradients(clip: &Clip, gradients: &Gradients) -> NamedTensors {
    let mut visitor = GradientVisitor { path: Vec::new(), gradients, found: NamedTensors::new() };
    clip.visit(&mut visitor);
    visitor.found
}

struct GradientVisitor<'a> {
    path: Vec<String>,
    gradients: &'a Gradients,
    found: NamedTensors,
}

impl ModuleVisitor for GradientVisitor<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad(self.gradients) {
            let Array { shape, values } = gradient.into();
            self.found.insert(self.path.join("."), HostTensor::new(shape, values));
        }
    }
}
