//! The encoder against `transformers`, and strict loading.

use super::*;
use burn::tensor::Device;
use smalti_nn::weights::{self, HostTensor, NamedTensors, WeightsError, safetensors};
use smalti_testing::{Golden, check_close, golden};
use std::path::Path;

const GOLDENS: &str = "src/text_encoder/clip_text/goldens";

fn config(name: &str, state: State) -> Config {
    import::hugging_face_config(&std::fs::read_to_string(Path::new(GOLDENS).join(format!("{name}_config.json"))).unwrap(), state).unwrap()
}

fn tensors(name: &str) -> NamedTensors {
    safetensors::read(&Path::new(GOLDENS).join(format!("{name}_weights.safetensors"))).unwrap()
}

fn loaded(name: &str, state: State, device: &Device) -> ClipText {
    let config = config(name, state);
    let imported = import::hugging_face(tensors(name), &config);
    weights::apply(ClipText::new(&config, &mut Initializer::new(1, device)).unwrap(), imported.tensors, device).unwrap()
}

fn text(golden: &Golden, device: &Device) -> (Tensor<2, Int>, Tensor<2, Bool>) {
    (golden.integer_tensor("tokens", device), golden.integer_tensor::<2>("visible", device).greater_elem(0))
}

#[test]
fn agrees_with_transformers_in_every_layer() {
    let device = Device::flex();
    for (name, pooled_channels) in [("plain", 16), ("projection", 10)] {
        let golden = golden(Path::new(GOLDENS).join(format!("{name}_results.safetensors")));
        for (state, expected) in [(State::Last, "last"), (State::Penultimate, "penultimate"), (State::PenultimateNormed, "penultimate_normed")] {
            let encoder = loaded(name, state, &device);
            assert_eq!((encoder.channels(), encoder.pooled_channels()), (16, pooled_channels));
            let (tokens, visible) = text(&golden, &device);
            let (states, pooled) = encoder.encode_pooled(tokens.clone(), visible.clone());
            check_close(expected, states.clone(), golden.array(expected), 1e-4);
            check_close("pooled", pooled, golden.array("pooled"), 1e-4);
            assert_eq!(encoder.encode(tokens, visible).into_data(), states.into_data());
        }
    }
}

/// The same tower is proved in [`crate::contrastive::clip`]; its published file is a whole `CLIPModel`.
#[test]
fn the_text_half_of_a_whole_clip() {
    let config = config("plain", State::Last);
    let plain = tensors("plain");
    let expected = import::hugging_face(plain.clone(), &config);
    assert!(expected.ignored.is_empty());
    let mut whole: NamedTensors = plain.into_iter().map(|(name, tensor)| (format!("text_model.{name}"), tensor)).collect();
    for other in ["vision_model.post_layernorm.bias", "visual_projection.weight", "text_projection.weight", "logit_scale"] {
        whole.insert(other.to_string(), HostTensor::new([1], vec![0.0]));
    }
    let imported = import::hugging_face(whole, &config);
    assert_eq!((imported.tensors, imported.ignored.len()), (expected.tensors, 4));
    let json = r#"{"model_type": "clip", "text_config": {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 2, "max_position_embeddings": 9}, "projection_dim": 7}"#;
    assert_eq!(import::hugging_face_config(json, State::Last).unwrap(), config);
}

#[test]
fn a_text_does_not_depend_on_its_batch() {
    let device = Device::flex();
    let encoder = loaded("projection", State::Penultimate, &device);
    let (tokens, visible) = text(&golden(Path::new(GOLDENS).join("projection_results.safetensors")), &device);
    let (states, pooled) = encoder.encode_pooled(tokens.clone(), visible.clone());
    for row in 0..3 {
        let alone = encoder.encode_pooled(tokens.clone().narrow(0, row, 1), visible.clone().narrow(0, row, 1));
        assert_eq!(alone.0.into_data(), states.clone().narrow(0, row, 1).into_data());
        assert_eq!(alone.1.into_data(), pooled.clone().narrow(0, row, 1).into_data());
    }
}

#[test]
fn weights_go_round_and_a_misfit_is_reported_whole() {
    let device = Device::flex();
    let encoder = loaded("projection", State::Last, &device);
    let saved = weights::collect(&encoder);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip_text.safetensors");
    safetensors::write(&path, &saved, safetensors::Storage::F32).unwrap();
    let other = || ClipText::new(encoder.config(), &mut Initializer::new(6, &device)).unwrap();
    let restored = weights::apply(other(), safetensors::read(&path).unwrap(), &device).unwrap();
    assert_eq!(weights::collect(&restored), saved);

    let mut broken = saved;
    broken.remove("projection.weight").unwrap();
    let strange = NamedTensors::from([("encoder.layers.0.self_attn.q_proj.scale".to_string(), HostTensor::new([1], vec![0.0]))]);
    broken.extend(import::hugging_face(strange, encoder.config()).tensors);
    broken.insert("positions".to_string(), HostTensor::new([4], vec![0.0; 4]));
    let Err(WeightsError::Mismatch(report)) = weights::apply(other(), broken, &device) else { panic!("expected a report") };
    assert_eq!(report.missing, ["projection.weight"]);
    assert_eq!(report.unused, ["text_model.encoder.layers.0.self_attn.q_proj.scale"]);
    assert_eq!(report.misshapen, [("positions".to_string(), vec![9, 16], vec![4])]);
}

#[test]
fn published_configs_are_valid_and_strange_ones_named() {
    for (config, channels) in [
        (Config::stable_diffusion_1(), 768),
        (Config::stable_diffusion_2(), 1024),
        (Config::stable_diffusion_xl_1(), 768),
        (Config::stable_diffusion_xl_2(), 1280),
    ] {
        config.validate().unwrap();
        assert_eq!((config.transformer.channels, config.transformer.channels / config.transformer.head_count), (channels, 64));
    }
    let error = import::hugging_face_config(r#"{"model_type": "clip_text_model", "hidden_act": "relu"}"#, State::Last).unwrap_err();
    assert_eq!(error.to_string(), "`config.json: hidden_act`: expected `quick_gelu` or `gelu`, found `relu`");
    let error = import::hugging_face_config(r#"{"model_type": "bert"}"#, State::Last).unwrap_err();
    assert_eq!(error.to_string(), "`config.json: model_type`: expected `clip_text_model` or `clip`, found `bert`");
    let error = import::hugging_face_config(r#"{"model_type": "clip_text_model", "num_attention_heads": 5}"#, State::Last).unwrap_err();
    assert_eq!(error.key, "transformer.head_count");
}
