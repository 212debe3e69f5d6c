//! Bundles: what is saved is loaded; what is damaged, foreign or inconsistent is refused with its name.

mod tiny_bundle;

use burn::tensor::Device;
use smalti_nn::weights::safetensors::Storage;
use smalti_pipeline::parts::Weights;
use smalti_pipeline::{Bundle, BundleFolder, Manifest, Part, PipelineError};
use std::fs;
use std::path::Path;
use tiny_bundle::tiny_bundle;

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_saved_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/tiny");
    let bundle = tiny_bundle();
    let manifest = bundle.save(&path, Storage::F32).unwrap();
    let parts = ["MODEL_CARD.md", "bundle.toml", "contrastive.safetensors", "generator.safetensors", "image_tokenizer.safetensors", "judge.safetensors"];
    assert_eq!(entries(&path), [&parts[..], &["text_tokenizer.json"]].concat(), "parts with the same text tokenizer share its file");
    assert_eq!(entries(path.parent().unwrap()), ["tiny"], "nothing temporary is left");

    let loaded = Bundle::load(&path, &Device::flex()).unwrap();
    assert_eq!(loaded.image_tokenizer.as_ref().unwrap().model.tensors(), bundle.image_tokenizer.as_ref().unwrap().model.tensors());
    assert_eq!(loaded.generator.as_ref().unwrap().model.tensors(), bundle.generator.as_ref().unwrap().model.tensors());
    assert_eq!(loaded.contrastive.as_ref().unwrap().model.tensors(), bundle.contrastive.as_ref().unwrap().model.tensors());
    assert_eq!(loaded.judge.as_ref().unwrap().model.tensors(), bundle.judge.as_ref().unwrap().model.tensors());
    let image_tokenizer = loaded.image_tokenizer.as_ref().unwrap();
    assert_eq!((image_tokenizer.image_size, image_tokenizer.latent_scale, image_tokenizer.grid()), (16, Some(1.25), [4, 4]));
    assert_eq!(image_tokenizer.provenance, bundle.image_tokenizer.unwrap().provenance);

    // Saved again, over itself: the same files.
    let before = fs::read(path.join("bundle.toml")).unwrap();
    assert_eq!(loaded.save(&path, Storage::F32).unwrap().id(), manifest.id());
    assert_eq!(fs::read(path.join("bundle.toml")).unwrap(), before);
    assert_eq!(entries(path.parent().unwrap()), ["tiny"]);
}

#[test]
fn half_precision_is_stable_and_half_the_size() {
    let folder = tempfile::tempdir().unwrap();
    let [full, half, again] = ["full", "half", "again"].map(|name| folder.path().join(name));
    tiny_bundle().save(&full, Storage::F32).unwrap();
    Bundle::load(&full, &Device::flex()).unwrap().save(&half, Storage::F16).unwrap();
    let size = |path: &Path| fs::metadata(path.join("generator.safetensors")).unwrap().len();
    assert!(size(&half) * 10 < size(&full) * 6);
    Bundle::load(&half, &Device::flex()).unwrap().save(&again, Storage::F16).unwrap();
    assert_eq!(fs::read(half.join("bundle.toml")).unwrap(), fs::read(again.join("bundle.toml")).unwrap(), "a second rounding changes nothing");
}

#[test]
fn each_part_may_be_stored_in_its_own_precision() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny");
    let manifest = tiny_bundle().save_parts(&path, &|part| if part == Part::Generator { Storage::F32 } else { Storage::F16 }).unwrap();
    let storage = |part| manifest.summary(part).unwrap().0.storage;
    assert_eq!((storage(Part::Generator), storage(Part::Judge)), (Storage::F32, Storage::F16));
    let loaded = Bundle::load(&path, &Device::flex()).unwrap();
    assert_eq!(loaded.generator.unwrap().model.tensors(), tiny_bundle().generator.unwrap().model.tensors());
}

#[test]
fn the_example_in_the_docs_of_the_format_stays_true() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny");
    tiny_bundle().save(&path, Storage::F16).unwrap();
    let text = fs::read_to_string(path.join("bundle.toml")).unwrap();
    for line in ["version = 1", "name = \"tiny\"", "[image_tokenizer.weights]", "storage = \"f16\"", "image_size = 16", "[image_tokenizer.model.vqgan.network]"]
    {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
    let card = fs::read_to_string(path.join("MODEL_CARD.md")).unwrap();
    assert!(card.contains("| generator | dalle_bart |") && card.contains("- psnr: 12.5"), "{card}");
}

/// Saves the tiny bundle, changes something in its folder, and expects an error that says so.
fn check_refused(change: impl FnOnce(&Path), expected: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny");
    tiny_bundle().save(&path, Storage::F32).unwrap();
    change(&path);
    let message = Bundle::load(&path, &Device::flex()).expect_err("an error").to_string();
    for part in expected {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

fn edit(path: &Path, from: &str, to: &str) {
    let file = path.join("bundle.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "no `{from}` in\n{text}");
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn damage_is_named() {
    check_refused(|path| fs::write(path.join("generator.safetensors"), "x").unwrap(), &["generator.safetensors", "expected checksum", "damaged"]);
    check_refused(|path| fs::remove_file(path.join("judge.safetensors")).unwrap(), &["judge.safetensors"]);
    check_refused(|path| fs::write(path.join("text_tokenizer.json"), "{}").unwrap(), &["text_tokenizer.json", "expected checksum"]);
    check_refused(|path| fs::remove_file(path.join("bundle.toml")).unwrap(), &["expected a bundle", "folder without one"]);
    check_refused(|path| fs::write(path.join("bundle.toml"), "version = ").unwrap(), &["bundle.toml:1"]);
    check_refused(|path| edit(path, "version = 1", "version = 7\nfuture = true"), &["expected bundle version 1, found 7"]);
    check_refused(|path| edit(path, "image_size", "picture_size"), &["bundle.toml:", "unknown field `picture_size`"]);
    check_refused(|path| edit(path, "image_size = 16", "image_size = \"16\""), &["bundle.toml:", "invalid type"]);
    check_refused(|path| edit(path, "file = \"generator", "file = \"../generator"), &["expected the name of a file beside the manifest"]);
}

#[test]
fn parts_that_do_not_fit_are_named() {
    check_refused(|path| edit(path, "image_size = 16", "image_size = 18"), &["`image_tokenizer`: `image_size`: expected a multiple of 4", "found 18"]);
    check_refused(|path| edit(path, "image_size = 16", "image_size = 32"), &["`generator`: `image_token_count`: expected 64", "found 16"]);
    check_refused(|path| edit(path, "image_vocabulary = 32", "image_vocabulary = 31"), &["`generator`: `image_vocabulary`: expected 32"]);
    check_refused(|path| edit(path, "patch_size = 4", "patch_size = 0"), &["`contrastive`: `image.patch_size`: expected 1 to", "found 0"]);
    check_refused(
        |path| edit(path, "layer_count = 1\n", "layer_count = 1152921504606846976\n"),
        &["`contrastive`: `", "layer_count`", "found 1152921504606846976"],
    );
    check_refused(|path| edit(path, "block_count = 2", "block_count = 1152921504606846976"), &["`generator`: `", "block_count`", "found 1152921504606846976"]);
    check_refused(|path| edit(path, "code_channels = 8", "code_channels = 0"), &["`image_tokenizer`: `quantizer.code_channels`", "found 0"]);
    check_refused(
        |path| edit(path, "code_channels = 8", "code_channels = 4"),
        &["`image_tokenizer`: weights do not fit the network", "tensor `quantizer.codebook`: expected [32, 4], found [32, 8]"],
    );
    check_refused(|path| edit(path, "head_count = 4", "head_count = 5"), &["head_count", "found 5"]);
}

#[test]
fn missing_parts_are_asked_for_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer");
    Bundle { generator: None, contrastive: None, judge: None, ..tiny_bundle() }.save(&path, Storage::F32).unwrap();
    let bundle = BundleFolder::open(&path).unwrap();
    assert!(bundle.image_tokenizer(&Device::flex(), "reconstruct").is_ok());
    let message = bundle.generator(&Device::flex(), "make pictures").unwrap_err().to_string();
    assert!(message.contains("has no `generator`, which is needed to make pictures; hint: it has `image_tokenizer`"), "{message}");
}

#[test]
fn places_without_a_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    for (path, found) in [(folder.path().join("absent"), "found nothing"), (file, "found a file"), (folder.path().to_path_buf(), "a folder without one")] {
        let message = BundleFolder::open(&path).unwrap_err().to_string();
        assert!(message.contains(found) && message.contains("hint: "), "{message}");
    }
    // Other people's files are not replaced.
    let error = tiny_bundle().save(folder.path(), Storage::F32).unwrap_err();
    assert!(matches!(error, PipelineError::WouldOverwrite { .. }), "{error}");
    assert_eq!(entries(folder.path()), ["file"]);
}

#[test]
fn a_bundle_that_would_not_load_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut bundle = tiny_bundle();
    bundle.image_tokenizer.as_mut().unwrap().image_size = 32;
    let message = bundle.save(&folder.path().join("tiny"), Storage::F32).unwrap_err().to_string();
    assert!(message.contains("image_token_count"), "{message}");
    assert!(entries(folder.path()).is_empty(), "{:?}", entries(folder.path()));
}

#[test]
fn manifests_say_where_they_are_wrong() {
    let parse = |text: &str| Manifest::parse(Path::new("b/bundle.toml"), text).unwrap_err().to_string();
    assert_eq!(parse("version = 1\nname = 3\n"), "b/bundle.toml:2: invalid type: integer `3`, expected a string");
    assert!(parse("version = 1\nname = \"x\"\nwhat = 1\n").starts_with("b/bundle.toml:3: unknown field `what`, expected one of"));
    assert!(parse("name = \"x\"\n").contains("missing field `version`"));
}
