//! Committed recipes, trained small on eight pictures of two styles.
#![allow(dead_code)] // no test needs all of it

use burn::tensor::Device;
use smalti_data::Picture;
use smalti_nn::weights::{NamedTensors, safetensors};
use smalti_pipeline::BundleFolder;
use smalti_pipeline::text_to_image::TextToImage;
use smalti_train::log::{Entry, read};
use smalti_train::train_loop::Outcome;
use smalti_train::{Job, RecipeFile};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

pub const AUTOENCODER: [&str; 4] =
    ["data.image_size=16", "model.network.base_channels=8", "model.network.channel_multipliers=[1, 1]", "model.network.group_count=4"];

pub const CLIP: [&str; 8] = [
    "data.image_size=16",
    "data.evaluation_count=8",
    "model.context_length=8",
    "model.image.channels=16",
    "model.image.layer_count=1",
    "model.text.channels=16",
    "model.text.layer_count=1",
    "train.batch_size=8",
];

/// A U-Net of two levels.
pub const UNET: [&str; 5] = [
    "model.unet.level_channels=[8, 16]",
    "model.unet.residual_block_count=1",
    "model.unet.attention_levels=[1]",
    "model.unet.head_channels=8",
    "model.unet.group_count=4",
];

pub const TEXT: [&str; 1] = ["conditions.text.token_count=8"];

pub const EFFICIENT: [&str; 4] = [
    "model.efficient_unet.base_channels=8",
    "model.efficient_unet.levels=[{ channels = 8, residual_block_count = 1, downsample = false, self_attention = false, text_attention = false }, { channels = 16, residual_block_count = 1, downsample = true, self_attention = true, text_attention = true }]",
    "model.efficient_unet.head_channels=8",
    "model.efficient_unet.group_count=4",
];

pub struct Runs {
    folder: tempfile::TempDir,
}

impl Runs {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("pictures")).unwrap();
        let mut metadata = String::new();
        for index in 0..8 {
            let mut picture = Picture::filled(20, 20, [240; 3]);
            for pixel in picture.rgb.chunks_exact_mut(3).skip(40 * index).take(90) {
                pixel.copy_from_slice(&[30 * index as u8, 200 - 20 * index as u8, 90]);
            }
            picture.write_png(&folder.path().join(format!("pictures/{index}.png")), &[]).unwrap();
            let style = ["round", "square"][index % 2];
            metadata += &format!("{{\"file_name\": \"{index}.png\", \"text\": \"picture number {index}\", \"style\": \"{style}\"}}\n");
        }
        std::fs::write(folder.path().join("pictures/metadata.jsonl"), metadata).unwrap();
        Self { folder }
    }

    pub fn path(&self, run: &str) -> PathBuf {
        self.folder.path().join(run)
    }

    pub fn set_bundle(&self, key: &str, run: &str) -> String {
        format!("{key}=\"{}\"", self.path(run).join("bundle").display())
    }

    /// Trains a committed recipe with its smoke table and some overrides. Bundles that a recipe names to rank or to judge by are left out unless given.
    pub fn try_train(&self, recipe: &str, run: &str, overrides: &[&[&str]], bundles: &[String], resume: bool) -> Result<Outcome, String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../recipes/{recipe}.toml"));
        let mut sets =
            vec![format!("data.path=\"{}\"", self.path("pictures").display()), format!("data.image_token_cache=\"{}\"", self.path("cache").display())];
        let text = std::fs::read_to_string(&path).unwrap();
        let given = |key: &str| bundles.iter().any(|set| set.starts_with(&format!("{key}=")));
        let ranks = |line: &&str| ["contrastive", "judge"].iter().any(|key| line.starts_with(&format!("{key} = ")) && !given(key));
        let text = text.lines().filter(|line| !ranks(line)).collect::<Vec<_>>().join("\n");
        if text.contains("system = \"diffusion\"") {
            sets.push(format!("conditions.text_state_cache=\"{}\"", self.path("text states").display()));
        }
        sets.extend(overrides.iter().flat_map(|overrides| overrides.iter()).map(|set| set.to_string()));
        sets.extend(bundles.iter().cloned());
        let file = RecipeFile::from_text(&path, text, &sets, true).map_err(|error| error.to_string())?;
        let job = Job::resolve(&file, Some(self.path(run))).map_err(|error| error.to_string())?;
        job.run(resume, &Device::flex(), &AtomicBool::new(false)).map_err(|error| error.to_string())
    }

    pub fn train(&self, recipe: &str, run: &str, overrides: &[&[&str]], bundles: &[String], resume: bool) {
        let outcome = self.try_train(recipe, run, overrides, bundles, resume).unwrap_or_else(|error| panic!("{recipe} {run}: {error}"));
        assert_eq!(outcome, Outcome::Finished);
    }

    /// [`Self::train`], then again from the middle of it: the weights and averages of every one of its learners are the same to the bit.
    pub fn train_and_resume(&self, recipe: &str, run: &str, overrides: &[&[&str]], bundles: &[String], learners: &[&str]) {
        self.train(recipe, run, overrides, bundles, false);
        let resumed = format!("{run} resumed");
        std::fs::create_dir(self.path(&resumed)).unwrap();
        for file in ["recipe.toml", "log.jsonl"] {
            std::fs::copy(self.path(run).join(file), self.path(&resumed).join(file)).unwrap();
        }
        let middle = "checkpoints/step-00000003";
        copy_folder(&self.path(run).join(middle), &self.path(&resumed).join(middle));
        self.train(recipe, &resumed, overrides, bundles, true);
        for learner in learners {
            let before = safetensors::read(&self.path(run).join(middle).join(format!("{learner}.safetensors"))).unwrap();
            assert_ne!(self.weights(run, 6, learner), before, "{recipe}: {learner} learns after step 3");
            for name in [learner.to_string(), format!("{learner}.average")] {
                assert_eq!(self.weights(&resumed, 6, &name), self.weights(run, 6, &name), "{recipe}: {name}");
            }
        }
    }

    pub fn weights(&self, run: &str, step: usize, name: &str) -> NamedTensors {
        safetensors::read(&self.path(run).join(format!("checkpoints/step-{step:08}/{name}.safetensors"))).unwrap()
    }

    /// Named figures of the last evaluation.
    pub fn evaluation(&self, run: &str) -> smalti_train::recipe::Measures {
        let entries = read(&self.path(run).join("log.jsonl")).unwrap();
        entries.into_iter().rev().find_map(|entry| if let Entry::Evaluation { measures, .. } = entry { Some(measures) } else { None }).unwrap()
    }

    pub fn text_to_image(&self, run: &str) -> TextToImage {
        TextToImage::load(&BundleFolder::open(&self.path(run).join("bundle")).unwrap(), &Device::flex()).unwrap()
    }
}

pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Every file below a folder and when it was written.
pub fn walk(folder: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        } else {
            found.push((entry.path(), entry.metadata().unwrap().modified().unwrap()));
        }
    }
    found.sort();
    found
}
