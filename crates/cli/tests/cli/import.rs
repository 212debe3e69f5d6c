//! `smalti import`: checkpoints as the reference implementations saved them (the goldens of the models) become bundles.

use crate::program::Workplace;
use smalti_data::text_tokenizer::TextTokenizer;
use smalti_nn::weights::safetensors::{self, Storage};
use smalti_nn::weights::{HostTensor, NamedTensors, pickle};
use std::path::Path;

#[test]
fn an_image_tokenizer_becomes_a_bundle_that_reconstructs() {
    let workplace = Workplace::new();
    workplace.copy("models/src/image_tokenizer/vqgan/goldens/diffusers_config.json", "config.json");
    workplace.copy("models/src/image_tokenizer/vqgan/goldens/diffusers_weights.safetensors", "vq.safetensors");
    let text = workplace.succeed(&["import", "vq.safetensors", "--as", "diffusers-vqgan", "--image-size", "32", "--out", "imported/mine"]);
    assert!(text.starts_with("imported/mine: `image_tokenizer` vqgan, "), "{text}");
    let description = workplace.json(&["inspect", "imported/mine", "--json"]);
    assert_eq!((description["bundle"].as_str(), description["parts"][0]["provenance"]["source"].as_str()), (Some("mine"), Some("vq.safetensors")));
    workplace.write("red.png", smalti_data::Picture::filled(32, 32, [200, 30, 60]).to_png(&[]).unwrap());
    workplace.succeed(&["reconstruct", "red.png", "--bundle", "imported/mine"]);
}

#[test]
fn parts_gather_in_one_bundle() {
    let workplace = Workplace::new();
    let models = "models/src";
    workplace.copy(&format!("{models}/image_tokenizer/vqgan/goldens/diffusers_config.json"), "vq/config.json");
    workplace.copy(&format!("{models}/image_tokenizer/vqgan/goldens/diffusers_weights.safetensors"), "vq/diffusion_pytorch_model.safetensors");
    workplace.copy(&format!("{models}/contrastive/clip/goldens/hugging_face_config.json"), "clip/config.json");
    workplace.copy(&format!("{models}/contrastive/clip/goldens/hugging_face_weights.safetensors"), "clip/model.safetensors");
    workplace.succeed(&["import", "vq", "--as", "diffusers-vqgan", "--image-size", "64", "--out", "all", "--storage", "f16"]);
    let finished = workplace.run(&["import", "clip", "--as", "hf-clip", "--out", "all"]);
    assert_eq!(finished.status, 0, "{finished:?}");
    assert!(finished.stderr.contains("warning: clip: no text tokenizer found") && finished.stderr.contains("hint: --text-tokenizer"), "{finished:?}");
    let description = workplace.json(&["inspect", "all", "--json"]);
    let parts: Vec<&str> = description["parts"].as_array().unwrap().iter().map(|part| part["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["image_tokenizer", "contrastive"]);
    let storage: Vec<&str> = description["parts"].as_array().unwrap().iter().map(|part| part["storage"].as_str().unwrap()).collect();
    assert_eq!(storage, ["f16", "f32"], "what was there keeps its precision");
    let finished = workplace.run(&["generate", "a fish", "--bundle", "all"]);
    assert!(finished.status == 1 && finished.stderr.contains("this bundle has no `generator`, which is needed to make pictures"), "{finished:?}");
}

#[test]
fn bart_and_open_ai_clip() {
    let workplace = Workplace::new();
    workplace.copy("models/src/generator/dalle_bart/goldens/bart_config.json", "bart/config.json");
    workplace.copy("models/src/generator/dalle_bart/goldens/bart_weights.safetensors", "bart/model.safetensors");
    workplace.succeed(&["import", "bart", "--as", "hf-bart", "--out", "bart-bundle", "--storage", "bf16"]);
    let clip = workplace.copy("models/src/contrastive/clip/goldens/open_ai_weights.safetensors", "clip.safetensors");
    workplace.succeed(&["import", &clip.display().to_string(), "--as", "openai-clip", "--out", "clip-bundle"]);
    assert_eq!(workplace.files("bart-bundle"), ["MODEL_CARD.md", "bundle.toml", "generator.safetensors"]);
}

/// taming's VQGAN and min-dalle's generator, put together as DALL-E mini is, make pictures.
#[test]
fn taming_and_min_dalle_become_a_bundle_that_generates() {
    let workplace = Workplace::new();
    workplace.copy("models/src/image_tokenizer/vqgan/goldens/taming_published_width.ckpt", "vqgan.ckpt");
    let text = workplace.succeed(&["import", "vqgan.ckpt", "--as", "taming-vqgan", "--image-size", "16", "--out", "mini"]);
    assert!(text.starts_with("mini: `image_tokenizer` vqgan, "), "{text}");
    workplace.write("red.png", smalti_data::Picture::filled(16, 16, [200, 30, 60]).to_png(&[]).unwrap());
    workplace.succeed(&["reconstruct", "red.png", "--bundle", "mini"]);

    let text_tokenizer = TextTokenizer::train(&["a red heart", "a blue fish"], 280).unwrap();
    text_tokenizer.save(&workplace.path("tokenizer.json")).unwrap();
    for (side, file) in [("encoder", "min_dalle_encoder.pt"), ("decoder", "min_dalle_decoder.pt")] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/src/generator/dalle_bart/goldens").join(file);
        let tensors = pickle::read(&golden).unwrap();
        workplace.write(&format!("min-dalle/{side}.pt"), older_checkpoint(&tensors, text_tokenizer.vocabulary_size()));
    }
    let text = workplace.succeed(&["import", "min-dalle", "--as", "min-dalle", "--text-tokenizer", "tokenizer.json", "--out", "mini"]);
    assert!(text.starts_with("mini: `generator` dalle_bart, "), "{text}");
    let json = workplace.json(&["generate", "a red heart", "--bundle", "mini", "--greedy", "--count", "2", "--json"]);
    let tokens = json["pictures"][0]["image_tokens"].as_array().unwrap();
    assert!(tokens.len() == 64 && tokens.iter().all(|token| token.as_u64().unwrap() < 16_384), "{json}");
    assert_eq!(json["pictures"][0]["image_tokens"], json["pictures"][1]["image_tokens"]);
}

/// The golden's tensors as `torch.save` wrote them before 1.6, with the least sizes that a published file could have: one head of 64 channels, 16384 codes
/// and a start token, 64 image tokens. Numbers are made up.
fn older_checkpoint(tensors: &NamedTensors, text_vocabulary: usize) -> Vec<u8> {
    let is_decoder = tensors.contains_key("lm_head.weight");
    let (vocabulary, position_count) = if is_decoder { (16_385, 64) } else { (text_vocabulary, 12) };
    let (mut object, mut keys, mut storages) = ("(d".to_string(), "(l".to_string(), Vec::new());
    for (key, (name, tensor)) in tensors.iter().enumerate() {
        let mut shape: Vec<usize> = tensor.shape.iter().map(|&size| if size == 32 { 64 } else { size }).collect();
        match name.as_str() {
            "embed_tokens.weight" | "lm_head.weight" => shape[0] = vocabulary,
            "embed_positions.weight" => shape[0] = position_count,
            _ => {}
        }
        let count: usize = shape.iter().product();
        let sizes: String = shape.iter().map(|size| format!("I{size}\n")).collect();
        let strides: String = (1..=shape.len()).map(|axis| format!("I{}\n", shape[axis..].iter().product::<usize>())).collect();
        let storage = format!("(S'storage'\nctorch\nFloatStorage\nS'{key}'\nS'cpu'\nI{count}\nNtQ");
        object += &format!("S'{name}'\nctorch._utils\n_rebuild_tensor_v2\n({storage}I0\n({sizes}t({strides}tI00\nNtRs");
        keys += &format!("S'{key}'\na");
        storages.extend((count as i64).to_le_bytes());
        storages.extend((0..count).flat_map(|index| (((index * 7919 + key * 104_729) % 2003) as f32 / 2003.0 - 0.5).to_le_bytes()));
    }
    let start = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.I1001\n.(d.";
    [&start[..], object.as_bytes(), b".", keys.as_bytes(), b".", &storages].concat()
}

/// The heads in the format of lpips' own `vgg.pth`, VGG16 of zeros in the place of torchvision's.
#[test]
fn lpips_from_its_own_heads_and_vgg16() {
    let workplace = Workplace::new();
    workplace.copy("models/src/perceptual/goldens/heads.pth", "lpips/vgg.pth");
    let mut tensors = NamedTensors::new();
    let (mut place, mut channels) = (0, 3);
    for (width, convolution_count) in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)] {
        for _ in 0..convolution_count {
            let weight = HostTensor { shape: vec![width, channels, 3, 3], values: vec![0.0; width * channels * 9] };
            tensors.insert(format!("features.{place}.weight"), weight);
            tensors.insert(format!("features.{place}.bias"), HostTensor { shape: vec![width], values: vec![0.0; width] });
            (place, channels) = (place + 2, width);
        }
        place += 1;
    }
    safetensors::write(&workplace.path("lpips/vgg16.safetensors"), &tensors, Storage::F16).unwrap();
    let text = workplace.succeed(&["import", "lpips", "--as", "lpips", "--out", "measures", "--storage", "f16"]);
    assert_eq!(text, "measures/lpips.safetensors: 14,716,160 parameters\n");
}

/// Every wrong checkpoint: exit status 1, the file, what was expected, and no bundle.
#[test]
fn wrong_checkpoints_leave_nothing_behind() {
    let workplace = Workplace::new();
    let taming = workplace.copy("models/src/image_tokenizer/vqgan/goldens/taming.ckpt", "taming.ckpt");
    let whole = std::fs::read(taming).unwrap();
    workplace.write("cut.ckpt", &whole[..whole.len() / 2]);
    workplace.write("empty/readme.txt", "nothing");
    let older = workplace.copy("nn/tests/goldens/formats_older_protocol_2.pt", "older.pt");
    let older = std::fs::read(older).unwrap();
    workplace.write("older-cut.pt", &older[..older.len() - 1]);
    workplace.copy("nn/tests/goldens/formats.pt", "other.pt");
    workplace.copy("nn/tests/goldens/formats.safetensors", "two/a.bin");
    workplace.copy("nn/tests/goldens/formats.safetensors", "two/b.bin");
    workplace.copy("models/src/generator/dalle_bart/goldens/min_dalle_encoder.pt", "dalle/encoder.pt");
    for (source, format, expected) in [
        ("absent.ckpt", "taming-vqgan", "absent.ckpt"),
        // The golden is narrower than any published one: taming's files do not say how many groups there are, and it is always 32.
        ("taming.ckpt", "taming-vqgan", "`network.group_count`: expected a divisor of the channels"),
        ("cut.ckpt", "taming-vqgan", "cut.ckpt: not a readable weights file"),
        ("older.pt", "taming-vqgan", "hint: is this the format named with --as?"),
        ("older-cut.pt", "taming-vqgan", "older-cut.pt: not a readable weights file: storage `"),
        ("other.pt", "taming-vqgan", "hint: is this the format named with --as?"),
        ("other.pt", "openai-clip", "hint: is this the format named with --as?"),
        ("empty", "taming-vqgan", "expected a file of weights"),
        ("two", "taming-vqgan", "expected one file of weights, found a.bin, b.bin"),
        ("taming.ckpt", "diffusers-vqgan", "config.json"),
        ("dalle", "min-dalle", "expected a folder with decoder.pt"),
        ("taming.ckpt", "lpips", "tensor `heads.0`: missing"),
        ("taming.ckpt", "inception", "missing"),
    ] {
        let finished = workplace.run(&["import", source, "--as", format, "--out", "bundle"]);
        assert_eq!(finished.status, 1, "{source} as {format}: {finished:?}");
        assert!(finished.stderr.starts_with("error: ") && finished.stderr.contains(expected), "{source} as {format}: {}", finished.stderr);
        assert!(workplace.files("bundle").is_empty(), "{source} as {format}: {:?}", workplace.files("bundle"));
    }
}
