//! `smalti import`: checkpoints as the reference implementations saved them (the goldens of the models) become bundles.

use crate::program::Workplace;
use smalti_nn::weights::safetensors::{self, Storage};
use smalti_nn::weights::{HostTensor, NamedTensors};

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
