//! The three systems, small, on eight pictures: accumulation, adversarial training, exact resume, what lands in the bundle.

use burn::tensor::Device;
use smalti_data::Picture;
use smalti_nn::weights::{NamedTensors, safetensors};
use smalti_pipeline::Bundle;
use smalti_train::log::{Entry, read};
use smalti_train::train_loop::Outcome;
use smalti_train::{Job, RecipeFile};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

const VQGAN: [&str; 10] = [
    "data.image_size=16",
    "data.evaluation_count=4",
    "model.network.base_channels=8",
    "model.network.channel_multipliers=[1, 1, 1, 1]",
    "model.network.group_count=4",
    "model.network.latent_channels=8",
    "model.quantizer.code_count=16",
    "model.quantizer.code_channels=4",
    "codebook_start.picture_count=8",
    "train.batch_size=4",
];

const ADVERSARIAL: [&str; 7] = [
    "loss.adversarial.kind=hinge",
    "loss.adversarial.weight=0.8",
    "loss.adversarial.start_step=2",
    "loss.adversarial.warm_up_steps=2",
    "loss.adversarial.adaptive_weight_cap=10.0",
    "loss.adversarial.learning_rate=1e-3",
    "loss.adversarial.discriminator={ picture_channels = 3, base_channels = 4, layer_count = 1, normalisation = { group = { group_count = 4 } } }",
];

const CLIP: [&str; 6] = [
    "data.image_size=16",
    "data.evaluation_count=8",
    "model.context_length=8",
    "model.image={ channels = 16, layer_count = 1, head_count = 2, feed_forward_channels = 32 }",
    "model.text={ channels = 16, layer_count = 1, head_count = 2, feed_forward_channels = 32 }",
    "train.batch_size=8",
];

const DALLE_BART: [&str; 9] = [
    "data.image_size=16",
    "data.evaluation_count=8",
    "model.text_token_count=8",
    "model.channels=16",
    "model.encoder={ block_count = 1, head_count = 2, feed_forward_channels = 16 }",
    "model.decoder={ block_count = 1, head_count = 2, feed_forward_channels = 16 }",
    "train.batch_size=4",
    "samples.top_k=4",
    "samples.prompts=[\"a red square\"]",
];

struct Runs {
    folder: tempfile::TempDir,
}

impl Runs {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..8 {
            let mut picture = Picture::filled(20, 20, [240; 3]);
            for pixel in picture.rgb.chunks_exact_mut(3).skip(40 * index).take(90) {
                pixel.copy_from_slice(&[30 * index as u8, 200 - 20 * index as u8, 90]);
            }
            let path = folder.path().join("pictures").join(format!("{index}.png"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            picture.write_png(&path, &[]).unwrap();
            std::fs::write(path.with_extension("txt"), format!("picture number {index}")).unwrap();
        }
        Self { folder }
    }

    fn path(&self, run: &str) -> PathBuf {
        self.folder.path().join(run)
    }

    /// Trains the sample recipe of `system` with its smoke table and some overrides; inline tables replace keys one by one.
    fn try_train(&self, system: &str, run: &str, overrides: &[&[&str]], resume: bool) -> Result<Outcome, String> {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../recipes/{system}/pictograms_sample.toml"));
        let mut sets =
            vec![format!("data.path=\"{}\"", self.path("pictures").display()), format!("data.image_token_cache=\"{}\"", self.path("cache").display())];
        for set in overrides.iter().flat_map(|overrides| overrides.iter()) {
            match (set.starts_with("model."), set.split_once("={ ")) {
                (true, Some((key, table))) => sets.extend(table.trim_end_matches(" }").split(", ").map(|entry| format!("{key}.{}", entry.replace(" = ", "=")))),
                _ => sets.push(set.to_string()),
            }
        }
        let file = RecipeFile::read(&recipe, &sets, true).unwrap();
        let job = Job::resolve(&file, Some(self.path(run))).unwrap_or_else(|error| panic!("{error}"));
        job.run(resume, &Device::flex(), &AtomicBool::new(false)).map_err(|error| error.to_string())
    }

    fn train(&self, system: &str, run: &str, overrides: &[&[&str]], resume: bool) {
        let outcome = self.try_train(system, run, overrides, resume).unwrap_or_else(|error| panic!("{system} {run}: {error}"));
        assert_eq!(outcome, Outcome::Finished);
    }

    /// What a generator's recipe names, trained: the image tokenizer `tokenizer`, and `ranking` to rank and to judge.
    fn train_named(&self) -> Vec<String> {
        self.train("vqgan", "tokenizer", &[&VQGAN], false);
        self.train("clip", "ranking", &[&CLIP], false);
        let named = [("image_tokenizer", "tokenizer"), ("contrastive", "ranking"), ("judge", "ranking")];
        named.map(|(key, run)| format!("{key}=\"{}\"", self.path(run).join("bundle").display())).to_vec()
    }

    fn write_captions(&self, what: &str) {
        (0..8).for_each(|index| std::fs::write(self.path(&format!("pictures/{index}.txt")), format!("{what} {index}")).unwrap());
    }

    fn weights(&self, run: &str, step: usize, name: &str) -> NamedTensors {
        safetensors::read(&self.path(run).join(format!("checkpoints/step-{step:08}/{name}.safetensors"))).unwrap()
    }

    /// The figures of each logged step.
    fn losses(&self, run: &str) -> Vec<smalti_train::recipe::Measures> {
        let entries = read(&self.path(run).join("log.jsonl")).unwrap();
        entries.into_iter().filter_map(|entry| if let Entry::Training { losses, .. } = entry { Some(losses) } else { None }).collect()
    }
}

fn assert_close(found: &NamedTensors, expected: &NamedTensors, tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (name, expected) in expected {
        for (a, b) in found[name].values.iter().zip(&expected.values) {
            assert!((a - b).abs() <= tolerance, "{what}: `{name}`: {a} and {b}");
        }
    }
}

#[test]
fn accumulation_of_small_batches_equals_the_large_one_in_every_system() {
    let runs = Runs::new();
    // A large epsilon: Adam divides by the size of a gradient, and where that is rounding noise so is the step.
    let plain: &[&str] = &["train.steps=3", "optimizer.epsilon=1e-3", "schedule.warm_up_steps=0"];
    for (system, overrides, name) in [("vqgan", &VQGAN[..], "vqgan"), ("clip", &CLIP[..], "clip")] {
        runs.train(system, &format!("{system}-large"), &[overrides, plain, &["train.batch_size=4"]], false);
        runs.train(system, &format!("{system}-small"), &[overrides, plain, &["train.batch_size=1", "train.accumulation=4"]], false);
        let [small, large] = ["small", "large"].map(|size| runs.weights(&format!("{system}-{size}"), 3, name));
        assert_close(&small, &large, 2e-4, system);
    }
}

#[test]
fn the_discriminator_learns_first_alone_and_then_its_judgement_reaches_the_decoder() {
    let runs = Runs::new();
    let often: &[&str] = &["train.steps=7", "train.log_interval=1", "train.checkpoint_interval=3"];
    runs.train("vqgan", "whole", &[&VQGAN, &ADVERSARIAL, often], false);
    let losses = runs.losses("whole");
    for (step, losses) in losses.iter().enumerate() {
        assert_eq!(losses.contains_key("discriminator"), step >= 2, "step {step}: {losses:?}");
        assert_eq!(losses.contains_key("adversarial"), step >= 4, "step {step}: {losses:?}");
        assert!(losses.get("adaptive weight").is_none_or(|&weight| (0.0..=10.0).contains(&weight)), "step {step}: {losses:?}");
        assert!(losses.values().all(|value| value.is_finite()));
    }
    // Both optimisers go on exactly where they were.
    std::fs::create_dir(runs.path("resumed")).unwrap();
    for file in ["recipe.toml", "log.jsonl"] {
        std::fs::copy(runs.path("whole").join(file), runs.path("resumed").join(file)).unwrap();
    }
    copy_folder(&runs.path("whole/checkpoints/step-00000006"), &runs.path("resumed/checkpoints/step-00000006"));
    runs.train("vqgan", "resumed", &[&VQGAN, &ADVERSARIAL, often], true);
    for name in ["vqgan", "vqgan.average", "discriminator"] {
        assert_eq!(runs.weights("resumed", 7, name), runs.weights("whole", 7, name), "{name}");
    }
}

#[test]
fn a_generator_bundle_holds_what_its_recipe_named_and_its_image_tokens_are_made_once() {
    let runs = Runs::new();
    runs.train("vqgan", "tokenizer", &[&VQGAN], false);
    runs.train("clip", "ranking", &[&CLIP], false);
    runs.train("clip", "judge", &[&CLIP, &["train.seed=2"]], false);
    let named = [("image_tokenizer", "tokenizer"), ("contrastive", "ranking"), ("judge", "judge")];
    let named = named.map(|(key, run)| format!("{key}=\"{}\"", runs.path(run).join("bundle").display()));
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    runs.train("dalle_bart", "generator", &[&DALLE_BART, &named], false);
    let bundle = Bundle::load(&runs.path("generator/bundle"), &Device::flex()).unwrap();
    let scale = bundle.image_tokenizer.as_ref().and_then(|part| part.latent_scale).expect("measured on data");
    assert!(scale > 0.0 && scale.is_finite());
    let (contrastive, judge) = (bundle.contrastive.unwrap(), bundle.judge.unwrap());
    assert_ne!(smalti_nn::weights::collect(&contrastive.model), smalti_nn::weights::collect(&judge.model), "the judge is another training");
    let provenance = bundle.generator.unwrap().provenance;
    assert_eq!(provenance.steps, Some(6));
    assert!(provenance.recipe.unwrap().contains("system = \"dalle_bart\"") && provenance.results.keys().any(|name| name.contains("cross-entropy")));

    let parts: Vec<_> = std::fs::read_dir(runs.path("cache")).unwrap().flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap()).collect();
    assert_eq!(parts.len(), 1);
    let made = parts[0].as_ref().unwrap().metadata().unwrap().modified().unwrap();
    runs.train("dalle_bart", "again", &[&DALLE_BART, &named], false);
    assert_eq!(parts[0].as_ref().unwrap().metadata().unwrap().modified().unwrap(), made, "read, not made again");
    assert_eq!(runs.weights("again", 6, "generator"), runs.weights("generator", 6, "generator"), "the same recipe gives the same weights");

    // Changed versions lie beside the plain ones, which are not made again, and are drawn the same in every run.
    let varied: &[&str] = &["data.encoded_variants=3", "data.placement_jitter={ shift = 0.2, shrink = 0.2 }"];
    runs.train("dalle_bart", "varied", &[&DALLE_BART, &named, varied], false);
    let words = |folder: std::fs::DirEntry| std::fs::read(folder.path().join("part-00000.words")).unwrap();
    let variants: Vec<_> = std::fs::read_dir(runs.path("cache")).unwrap().map(|folder| words(folder.unwrap())).collect();
    assert_eq!(variants.len(), 3);
    assert!(variants[0] != variants[1] && variants[1] != variants[2] && variants[0] != variants[2]);
    assert_eq!(parts[0].as_ref().unwrap().metadata().unwrap().modified().unwrap(), made);
    runs.train("dalle_bart", "varied-again", &[&DALLE_BART, &named, varied], false);
    assert_eq!(runs.weights("varied-again", 6, "generator"), runs.weights("varied", 6, "generator"));
    assert_ne!(runs.weights("varied", 6, "generator"), runs.weights("generator", 6, "generator"));

    runs.train("dalle_bart", "small", &[&DALLE_BART, &named, &["train.batch_size=1", "train.accumulation=4", "optimizer.epsilon=1e-3"]], false);
    runs.train("dalle_bart", "large", &[&DALLE_BART, &named, &["optimizer.epsilon=1e-3"]], false);
    assert_close(&runs.weights("small", 6, "generator"), &runs.weights("large", 6, "generator"), 2e-4, "accumulation");
}

#[test]
fn a_run_goes_on_only_with_what_it_was_started_with() {
    let runs = Runs::new();
    let named = runs.train_named();
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    runs.train("dalle_bart", "run", &[&DALLE_BART, &named], false);
    let resumed = || runs.try_train("dalle_bart", "run", &[&DALLE_BART, &named, &["train.steps=7"]], true);

    std::fs::rename(runs.path("tokenizer"), runs.path("kept")).unwrap();
    runs.train("vqgan", "tokenizer", &[&VQGAN, &["train.seed=2"]], false);
    let error = resumed().unwrap_err();
    assert!(error.contains("what it learns from has changed: `image_tokenizer` is no longer the one it was started with"), "{error}");
    std::fs::remove_dir_all(runs.path("tokenizer")).unwrap();
    std::fs::rename(runs.path("kept"), runs.path("tokenizer")).unwrap();

    runs.write_captions("drawing");
    let error = resumed().unwrap_err();
    assert!(error.contains("its captions make another text tokenizer"), "{error}");
    runs.write_captions("picture number");
    assert_eq!(resumed().unwrap(), Outcome::Finished);
}

/// With their image tokens read from the cache, too.
#[test]
fn broken_pictures_and_blank_captions_are_left_out_up_to_the_limit() {
    let runs = Runs::new();
    let named = runs.train_named();
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    std::fs::write(runs.path("pictures/broken.png"), b"\x89PNG\r\n\x1a\n but no more").unwrap();
    std::fs::write(runs.path("pictures/broken.txt"), "a broken one").unwrap();
    std::fs::write(runs.path("pictures/3.txt"), " ").unwrap();
    let train = |run: &str, limit: usize| {
        let limits = [format!("data.broken_limit={limit}"), "data.problem_limit=1".to_string()];
        runs.try_train("dalle_bart", run, &[&DALLE_BART, &named, &[&limits[0], &limits[1]]], false)
    };
    assert_eq!(train("first", 2).unwrap(), Outcome::Finished);
    let error = train("second", 1).unwrap_err();
    assert!(error.contains("2 broken pictures, `broken_limit` is 1"), "{error}");
    assert_eq!(train("third", 2).unwrap(), Outcome::Finished);
    assert_eq!(runs.weights("third", 6, "generator"), runs.weights("first", 6, "generator"));
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
