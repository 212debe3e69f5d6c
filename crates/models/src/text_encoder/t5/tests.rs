//! The encoder against `transformers`, its buckets, and strict loading.

use super::*;
use burn::tensor::Device;
use smalti_nn::weights::{self, HostTensor, NamedTensors, WeightsError, safetensors};
use smalti_testing::{Array, Golden, check_close, golden};
use std::path::Path;

const GOLDENS: &str = "src/text_encoder/t5/goldens";

fn results(name: &str) -> Golden {
    golden(Path::new(GOLDENS).join(name))
}

fn json(name: &str) -> String {
    std::fs::read_to_string(Path::new(GOLDENS).join(format!("{name}_config.json"))).unwrap()
}

fn loaded(name: &str, device: &Device) -> T5Encoder {
    let config = import::hugging_face_config(&json(name)).unwrap();
    let tensors = safetensors::read(&Path::new(GOLDENS).join(format!("{name}_weights.safetensors"))).unwrap();
    weights::apply(T5Encoder::new(&config, &mut Initializer::new(1, device)).unwrap(), import::hugging_face(tensors).tensors, device).unwrap()
}

fn text(golden: &Golden, device: &Device) -> (Tensor<2, Int>, Tensor<2, Bool>) {
    (golden.integer_tensor("tokens", device), golden.integer_tensor::<2>("visible", device).greater_elem(0))
}

#[test]
fn agrees_with_transformers() {
    let device = Device::flex();
    for (name, feed_forward) in [("version_1_0", FeedForward::Relu), ("version_1_1", FeedForward::GatedGelu)] {
        let (encoder, golden) = (loaded(name, &device), results(&format!("{name}_results.safetensors")));
        assert_eq!((encoder.config().feed_forward, encoder.channels()), (feed_forward, 16));
        let (tokens, visible) = text(&golden, &device);
        check_close(name, encoder.encode(tokens, visible), golden.array("states"), 1e-4);
    }
}

#[test]
fn buckets_at_every_distance() {
    let golden = results("buckets.safetensors");
    let distances = golden.integers("distances");
    for (name, bucket_count, distance_limit) in [("published", 32, 128), ("small", 8, 16)] {
        let found: Vec<i64> = distances.iter().map(|&distance| bucket(distance, bucket_count, distance_limit) as i64).collect();
        assert_eq!(found, golden.integers(name), "{name}");
    }
    assert_eq!((bucket(i64::MIN, 32, 128), bucket(i64::MAX, 32, 128)), (15, 31));
}

#[test]
fn padding_and_batch_have_no_influence() {
    let device = Device::flex();
    let (encoder, golden) = (loaded("version_1_1", &device), results("version_1_1_results.safetensors"));
    let (tokens, visible) = text(&golden, &device);
    let whole = encoder.encode(tokens.clone(), visible.clone());
    let alone = encoder.encode(tokens.clone().narrow(0, 1, 1), visible.clone().narrow(0, 1, 1));
    assert_eq!(alone.into_data(), whole.clone().narrow(0, 1, 1).into_data());
    let short = encoder.encode(tokens.clone().narrow(0, 0, 1).narrow(1, 0, 18), visible.clone().narrow(0, 0, 1).narrow(1, 0, 18));
    check_close("without padding", short.clone(), whole.clone().narrow(0, 0, 1).narrow(1, 0, 18), 1e-5);
    let other = tokens.clone().slice_assign([0..1, 18..30], Tensor::full([1, 12], 9, &device));
    check_close("other padding", encoder.encode(other, visible).narrow(0, 0, 1).narrow(1, 0, 18), short, 1e-5);
}

#[test]
fn published_configs_have_the_published_sizes() {
    let device = Device::flex();
    for name in ["version_1_0", "version_1_1"] {
        let encoder = loaded(name, &device);
        assert_eq!(encoder.num_params() as u64, encoder.config().parameter_count(), "{name}");
    }
    // Encoders of the published checkpoints; Imagen's "4.6B" counts no token table.
    let sizes = [
        (Config::small(), 35_330_816),
        (Config::base(), 109_628_544),
        (Config::large(), 334_939_648),
        (Config::version_1_1_small(), 35_332_800),
        (Config::version_1_1_base(), 109_628_544),
        (Config::version_1_1_large(), 341_231_104),
        (Config::version_1_1_xl(), 1_223_527_424),
        (Config::version_1_1_xxl(), 4_762_310_656),
    ];
    for (config, expected) in sizes {
        config.validate().unwrap();
        assert_eq!(config.parameter_count(), expected, "{config:?}");
    }
    assert_eq!((Config::version_1_1_xxl().parameter_count() - 32_128 * 4096) / 100_000_000, 46);
}

#[test]
fn weights_go_round_and_a_misfit_is_reported_whole() {
    let device = Device::flex();
    let encoder = loaded("version_1_1", &device);
    let saved = weights::collect(&encoder);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t5.safetensors");
    safetensors::write(&path, &saved, safetensors::Storage::F32).unwrap();
    let other = || T5Encoder::new(encoder.config(), &mut Initializer::new(6, &device)).unwrap();
    assert_ne!(weights::collect(&other()), saved);
    let restored = weights::apply(other(), safetensors::read(&path).unwrap(), &device).unwrap();
    assert_eq!(weights::collect(&restored), saved);

    let mut broken = saved;
    broken.remove("relative_bias").unwrap();
    broken.extend(
        import::hugging_face(NamedTensors::from([("encoder.block.0.layer.0.SelfAttention.q.bias".to_string(), HostTensor::new([1], vec![0.0]))])).tensors,
    );
    broken.insert("output_norm.scale".to_string(), HostTensor::new([4], vec![0.0; 4]));
    let Err(WeightsError::Mismatch(report)) = weights::apply(other(), broken, &device) else { panic!("expected a report") };
    assert_eq!(report.missing, ["relative_bias"]);
    assert_eq!(report.unused, ["encoder.block.0.layer.0.SelfAttention.q.bias"]);
    assert_eq!(report.misshapen, [("output_norm.scale".to_string(), vec![16], vec![4])]);
}

#[test]
fn a_whole_t5_gives_its_encoder_and_a_copied_token_table_is_one() {
    let mut tensors = safetensors::read(&Path::new(GOLDENS).join("version_1_0_weights.safetensors")).unwrap();
    let table = tensors["shared.weight"].clone();
    let imported = import::hugging_face(tensors.clone());
    assert!(imported.ignored.iter().any(|name| name.starts_with("decoder.")), "the golden is a whole T5");
    tensors.insert("encoder.embed_tokens.weight".to_string(), table.clone());
    assert_eq!(import::hugging_face(tensors.clone()).tensors, imported.tensors);
    tensors.remove("shared.weight");
    assert_eq!(import::hugging_face(tensors).tensors["token_embedding.weight"], table);
}

#[test]
fn strange_configs_are_refused() {
    let published = json("version_1_1");
    let refused = |from: &str, to: &str| {
        assert!(published.contains(from));
        import::hugging_face_config(&published.replace(from, to)).unwrap_err().to_string()
    };
    assert_eq!(refused("\"gated-gelu\"", "\"gated-silu\""), "`config.json: feed_forward_proj`: expected `relu` or `gated-gelu`, found `gated-silu`");
    assert!(refused("\"model_type\": \"t5\"", "\"model_type\": \"mt5\"").contains("model_type"));
    assert!(refused("\"relative_attention_num_buckets\": 8", "\"relative_attention_num_buckets\": 6").contains("bucket_count"));
    assert!(refused("\"relative_attention_max_distance\": 16", "\"relative_attention_max_distance\": 2").contains("distance_limit"));
    assert!(refused("\"d_model\": 16", "\"d_model\": 0").contains("`channels`"));
    assert!(import::hugging_face_config("{").unwrap_err().to_string().starts_with("`config.json`: expected the config of a T5 model"));
}

#[test]
fn no_gradient_is_asked_for_but_one_could_flow() {
    let device = Device::flex().autodiff();
    let (encoder, golden) = (loaded("version_1_1", &device), results("version_1_1_results.safetensors"));
    let (tokens, visible) = text(&golden, &device);
    let gradients = encoder.encode(tokens, visible).powi_scalar(2).mean().backward();
    let bias = encoder.relative_bias.val().grad(&gradients).unwrap();
    assert!(Array::from(bias).values.iter().all(|value| value.is_finite()), "hidden places give no NaN");
}
