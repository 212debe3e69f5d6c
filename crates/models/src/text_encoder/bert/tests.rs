//! The encoder against `transformers`, and strict loading.

use super::*;
use burn::tensor::Device;
use smalti_nn::weights::{self, HostTensor, NamedTensors, WeightsError, safetensors};
use smalti_testing::{Golden, check_close, golden};
use std::path::Path;

const GOLDENS: &str = "src/text_encoder/bert/goldens";

fn json() -> String {
    std::fs::read_to_string(Path::new(GOLDENS).join("config.json")).unwrap()
}

fn tensors() -> NamedTensors {
    safetensors::read(&Path::new(GOLDENS).join("weights.safetensors")).unwrap()
}

fn results() -> Golden {
    golden(Path::new(GOLDENS).join("results.safetensors"))
}

fn loaded(tensors: NamedTensors, device: &Device) -> Bert {
    let config = import::hugging_face_config(&json()).unwrap();
    weights::apply(Bert::new(&config, &mut Initializer::new(1, device)).unwrap(), import::hugging_face(tensors).tensors, device).unwrap()
}

fn text(golden: &Golden, device: &Device) -> (Tensor<2, Int>, Tensor<2, Bool>) {
    (golden.integer_tensor("tokens", device), golden.integer_tensor::<2>("visible", device).greater_elem(0))
}

#[test]
fn agrees_with_transformers() {
    let (device, golden) = (Device::flex(), results());
    let encoder = loaded(tensors(), &device);
    let (tokens, visible) = text(&golden, &device);
    let (states, sentence) = encoder.encode_pooled(tokens, visible);
    check_close("states", states, golden.array("states"), 1e-4);
    check_close("sentence", sentence, golden.array("sentence"), 1e-4);
}

#[test]
fn padding_and_batch_have_no_influence() {
    let (device, golden) = (Device::flex(), results());
    let encoder = loaded(tensors(), &device);
    let (tokens, visible) = text(&golden, &device);
    let (states, sentence) = encoder.encode_pooled(tokens.clone(), visible.clone());
    for (row, length) in [(0, 5), (1, 9), (2, 1)] {
        let alone = encoder.encode_pooled(tokens.clone().narrow(0, row, 1), visible.clone().narrow(0, row, 1));
        assert_eq!(alone.0.into_data(), states.clone().narrow(0, row, 1).into_data());
        let short = encoder.encode_pooled(tokens.clone().narrow(0, row, 1).narrow(1, 0, length), visible.clone().narrow(0, row, 1).narrow(1, 0, length));
        check_close("sentence without padding", short.1, sentence.clone().narrow(0, row, 1), 1e-5);
    }
    check_close("length", sentence.powi_scalar(2).sum_dim(1).reshape([3]), [1.0f32; 3], 1e-5);
}

#[test]
fn names_of_every_age_are_known() {
    let today = tensors();
    let expected = import::hugging_face(today.clone());
    assert_eq!(expected.ignored, ["pooler.dense.bias", "pooler.dense.weight"]);
    let older = today.into_iter().map(|(name, tensor)| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        (format!("bert.{name}"), tensor)
    });
    let imported = import::hugging_face(older.chain([("cls.predictions.bias".to_string(), HostTensor::new([1], vec![0.0]))]).collect());
    assert_eq!((imported.tensors, imported.ignored.len()), (expected.tensors, 3));
}

#[test]
fn weights_go_round_and_a_misfit_is_reported_whole() {
    let device = Device::flex();
    let encoder = loaded(tensors(), &device);
    let saved = weights::collect(&encoder);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bert.safetensors");
    safetensors::write(&path, &saved, safetensors::Storage::F32).unwrap();
    let other = || Bert::new(encoder.config(), &mut Initializer::new(6, &device)).unwrap();
    let restored = weights::apply(other(), safetensors::read(&path).unwrap(), &device).unwrap();
    assert_eq!(weights::collect(&restored), saved);

    let mut broken = saved;
    broken.remove("positions").unwrap();
    broken.extend(
        import::hugging_face(NamedTensors::from([("encoder.layer.0.crossattention.self.key.bias".to_string(), HostTensor::new([1], vec![0.0]))])).tensors,
    );
    broken.insert("input_norm.bias".to_string(), HostTensor::new([4], vec![0.0; 4]));
    let Err(WeightsError::Mismatch(report)) = weights::apply(other(), broken, &device) else { panic!("expected a report") };
    assert_eq!(report.missing, ["positions"]);
    assert_eq!(report.unused, ["encoder.layer.0.crossattention.self.key.bias"]);
    assert_eq!(report.misshapen, [("input_norm.bias".to_string(), vec![12], vec![4])]);
}

#[test]
fn published_configs_are_as_large_as_published_and_strange_ones_named() {
    let network = Bert::new(&Config::all_mini_lm_l6_v2(), &mut Initializer::new(1, &Device::flex())).unwrap();
    // The published 22,713,216 without the pooler's 384 * 384 + 384.
    assert_eq!(network.num_params(), 22_713_216 - 147_840);
    Config::base_uncased().validate().unwrap();
    let published = json();
    let refused = |from: &str, to: &str| {
        assert!(published.contains(from));
        import::hugging_face_config(&published.replace(from, to)).unwrap_err().to_string()
    };
    assert_eq!(refused("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"relu\""), "`config.json: hidden_act`: expected `gelu`, found `relu`");
    assert_eq!(refused("\"num_attention_heads\": 3", "\"num_attention_heads\": 5"), "`head_count`: expected a divisor of channels = 12, found 5");
    assert!(refused("\"model_type\": \"bert\"", "\"model_type\": \"roberta\"").contains("model_type"));
}
