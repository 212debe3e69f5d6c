//! `smalti import` of whole folders of diffusers: the goldens of the pipeline crate become bundles that draw.

use crate::program::Workplace;
use smalti_nn::weights::HostTensor;
use smalti_nn::weights::safetensors::{self, Storage};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Copies a folder of the goldens into the workplace.
fn copy(workplace: &Workplace, name: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipeline/tests/goldens").join(name);
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let inside = path.strip_prefix(&root).unwrap();
                workplace.write(&format!("{name}/{}", inside.display()), fs::read(&path).unwrap());
            }
        }
    }
}

/// A file of starting noise as another program would write it.
fn write_noise(workplace: &Workplace, name: &str, shape: [usize; 4]) {
    let values = (0..shape.iter().product::<usize>()).map(|index| ((index * 7919 % 2003) as f32 / 2003.0 - 0.5) * 3.4).collect();
    let tensors = BTreeMap::from([("noise".to_string(), HostTensor { shape: shape.to_vec(), values })]);
    safetensors::write(&workplace.path(name), &tensors, Storage::F32).unwrap();
}

#[test]
fn stable_diffusion_becomes_a_bundle_that_draws() {
    let workplace = Workplace::new();
    copy(&workplace, "stable_diffusion_1");
    let text = workplace.succeed(&["import", "stable_diffusion_1", "--as", "diffusers-stable-diffusion", "--out", "bundle"]);
    let kinds: Vec<&str> = text.lines().map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(kinds, ["bundle: `image_tokenizer` autoencoder_kl", "bundle: `text_encoder` clip_text", "bundle: `generator` unet"]);
    write_noise(&workplace, "noise.safetensors", [2, 4, 8, 8]);
    let draw = |out: &str, seed: &str| {
        let shared = ["generate", "a red fox", "--bundle", "bundle", "--steps", "3", "--count", "2", "--noise", "noise.safetensors"];
        workplace.json(&[&shared[..], &["--seed", seed, "--out", out, "--json"]].concat())
    };
    let (first, second) = (draw("first", "1"), draw("second", "2"));
    let picture = |made: &serde_json::Value, index: usize| {
        let file = made["pictures"][index]["file"].as_str().unwrap_or_else(|| panic!("{made}"));
        smalti_data::Picture::open(&workplace.path(file), &Default::default()).unwrap()
    };
    assert_eq!(picture(&first, 0), picture(&second, 0), "the noise is the file's, whatever the seed");
    assert!(picture(&first, 0) != picture(&first, 1));

    // One of its parts again, on its own.
    let text = workplace.succeed(&["import", "stable_diffusion_1/text_encoder", "--as", "hf-clip-text", "--out", "bundle"]);
    assert!(text.starts_with("bundle: `text_encoder` clip_text, "), "{text}");
    let text = workplace.succeed(&["import", "stable_diffusion_1/vae", "--as", "diffusers-autoencoder-kl", "--image-size", "32", "--out", "bundle"]);
    assert!(text.starts_with("bundle: `image_tokenizer` autoencoder_kl, "), "{text}");
    draw("third", "1");
    let finished = workplace.run(&["import", "stable_diffusion_1/vae", "--as", "diffusers-autoencoder-kl", "--image-size", "64", "--out", "bundle"]);
    assert!(finished.status == 1 && finished.stderr.contains("`image_size`: expected 64, as the image tokenizer has"), "{finished:?}");
    draw("fourth", "1");
}

#[test]
fn ddpm_becomes_a_bundle_that_draws_without_a_prompt() {
    let workplace = Workplace::new();
    copy(&workplace, "ddpm");
    let text = workplace.succeed(&["import", "ddpm", "--as", "diffusers-ddpm", "--out", "bundle"]);
    assert!(text.starts_with("bundle: `generator` unet, "), "{text}");
    workplace.succeed(&["generate", "", "--bundle", "bundle", "--sampler", "ddim", "--steps", "3", "--out", "made"]);
}

/// Every wrong folder: exit status 1, the file, what was expected, and no bundle.
#[test]
fn wrong_folders_leave_nothing_behind() {
    let workplace = Workplace::new();
    copy(&workplace, "stable_diffusion_1");
    let edit = |file: &str, from: &str, to: &str| {
        let path = workplace.path(&format!("stable_diffusion_1/{file}"));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    };
    let check = |expected: &str| {
        let finished = workplace.run(&["import", "stable_diffusion_1", "--as", "diffusers-stable-diffusion", "--out", "bundle"]);
        assert!(finished.status == 1 && finished.stderr.starts_with("error: ") && finished.stderr.contains(expected), "{expected}: {}", finished.stderr);
        assert!(workplace.files("bundle").is_empty(), "{expected}: {:?}", workplace.files("bundle"));
    };
    // From the last to be read to the first, so that each is met.
    fs::rename(workplace.path("stable_diffusion_1/unet"), workplace.path("unet")).unwrap();
    check("stable_diffusion_1: expected a folder unet/ with config.json and weights, found none; hint: is the download whole?");
    let weights = workplace.path("stable_diffusion_1/vae/diffusion_pytorch_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    check("vae/diffusion_pytorch_model.safetensors");
    let mut tensors = safetensors::read(&workplace.path("stable_diffusion_1/text_encoder/model.safetensors")).unwrap();
    tensors.pop_last();
    safetensors::write(&workplace.path("stable_diffusion_1/text_encoder/model.safetensors"), &tensors, Storage::F32).unwrap();
    check("text_encoder/model.safetensors: ");
    edit("scheduler/scheduler_config.json", "PNDMScheduler", "FlowMatchEulerDiscreteScheduler");
    check("scheduler_config.json: `_class_name`: expected a scheduler of DDPM");
    edit("model_index.json", "\"StableDiffusionPipeline\"", "\"FluxPipeline\"");
    check("model_index.json: `_class_name`: expected `StableDiffusionPipeline`");
    fs::remove_file(workplace.path("stable_diffusion_1/model_index.json")).unwrap();
    check("expected the folder of a pipeline, with model_index.json, found none");
}
