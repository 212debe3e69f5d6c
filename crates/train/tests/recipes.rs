//! Every committed recipe: it is valid, with and without its smoke table, and what it is called agrees with where it lies.

use smalti_train::{Job, RecipeFile};
use std::path::{Path, PathBuf};

/// DDPM, latent diffusion and Imagen's cascade are one training under the names they are known by.
const FOLDERS: [&str; 8] = ["vqgan", "clip", "dalle_bart", "autoencoder_kl", "ddpm", "latent_diffusion", "imagen", "noisy_classifier"];
const DIFFUSION: [&str; 3] = ["ddpm", "latent_diffusion", "imagen"];

fn recipes() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut found = Vec::new();
    for system in FOLDERS {
        let folder = root.join(system);
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            found.push(entry.unwrap().path());
        }
    }
    found.sort();
    found
}

#[test]
fn committed_recipes_are_valid_and_say_what_they_are() {
    assert!(recipes().len() >= 14, "{:?}", recipes());
    for path in recipes() {
        let system = path.parent().unwrap().file_name().unwrap().to_str().unwrap().to_string();
        let text = std::fs::read_to_string(&path).unwrap();
        let shown = format!("recipes/{system}/{}", path.file_name().unwrap().to_str().unwrap());
        assert!(text.starts_with("# "), "{shown}: opens with what it reproduces");
        for part in [&format!("smalti train {shown}"), "cost", "result", "[smoke]"] {
            assert!(text.contains(part), "{shown}: expected {part:?}");
        }
        for smoke in [false, true] {
            let file = RecipeFile::read(&path, &[], smoke).unwrap_or_else(|error| panic!("{error}"));
            let job = Job::resolve(&file, None).unwrap_or_else(|error| panic!("{error}"));
            let run = job.run.to_str().unwrap();
            assert!(run.starts_with("runs/") && run.ends_with("-smoke") == smoke, "{shown}: {run}");
            let expected = if DIFFUSION.contains(&system.as_str()) { "diffusion" } else { &system };
            assert_eq!(file.get("system").and_then(|value| value.as_str()), Some(expected), "{shown}");
        }
    }
}

#[test]
fn impossible_sizes_are_named_with_key_and_line() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let cases = [
        ("vqgan", "data.image_size=63", "`data.image_size`: expected a multiple of 8"),
        ("vqgan", "model.network.group_count=7", "`model.network.group_count`"),
        ("vqgan", "model.quantizer.code_count=0", "`model.quantizer.code_count`"),
        ("vqgan", "model.network.base_chanels=8", "did you mean `base_channels`?"),
        ("vqgan", "data.flip_probability=2.0", "`data.flip_probability`: expected a probability in [0, 1], found 2"),
        ("vqgan", "data.image_size=0", "`data.image_size`"),
        ("vqgan", "loss.l1=-1.0", "`loss.l1`: expected at least 0"),
        ("vqgan", "name=../elsewhere", "`name`: expected the name of a folder"),
        ("vqgan", "system=vqvae", "`system`: expected one of vqgan, autoencoder_kl, clip, dalle_bart, diffusion, noisy_classifier, found `vqvae`"),
        ("clip", "model.patch_size=7", "`model.patch_size`"),
        ("clip", "train.batch_size=1", "`train.batch_size`: expected at least 2 pictures"),
        ("clip", "text_tokenizer.vocabulary_size=100", "`text_tokenizer.vocabulary_size`: expected 259"),
        ("clip", "model.image.head_count=5", "`model.image.head_count`"),
        ("dalle_bart", "model.channels=255", "`model.encoder.head_count`: expected a divisor of channels = 255"),
        ("dalle_bart", "loss.caption_drop_rate=1.5", "`loss.caption_drop_rate`: expected at least 0 and at most 1, found 1.5"),
        ("dalle_bart", "image_tokeniser=x", "did you mean `image_tokenizer`?"),
        ("dalle_bart", "model.norms=pre", "unknown variant `pre`, expected `post` or `norm_former`"),
    ];
    for (system, set, expected) in cases {
        let path = root.join(system).join("pictograms_sample.toml");
        let error = RecipeFile::read(&path, &[set.to_string()], false).and_then(|file| Job::resolve(&file, None)).expect_err(set).to_string();
        assert!(error.contains(expected) && error.contains("pictograms_sample.toml"), "{set}: expected {expected:?} in {error:?}");
    }
}
