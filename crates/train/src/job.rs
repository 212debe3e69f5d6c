//! A recipe file checked and ready to run: the one place where text becomes a job.

use crate::TrainError;
use crate::data_record::DataRecord;
use crate::recipe::Recipe;
use crate::recipe_file::{RecipeError, RecipeFile};
use crate::recipes::autoencoder_kl::{AutoencoderKlRecipe, AutoencoderKlTraining};
use crate::recipes::clip::{ClipRecipe, ClipTraining};
use crate::recipes::dalle_bart::{DalleBartRecipe, DalleBartTraining};
use crate::recipes::diffusion::DiffusionTraining;
use crate::recipes::diffusion::settings::DiffusionRecipe;
use crate::recipes::noisy_classifier::NoisyClassifierTraining;
use crate::recipes::noisy_classifier::settings::NoisyClassifierRecipe;
use crate::recipes::vqgan::{VqganRecipe, VqganTraining};
use crate::run_folder::RunFolder;
use crate::settings::TrainSettings;
use crate::train_loop::{LoopSettings, Outcome, train};
use burn::tensor::Device;
use serde::de::DeserializeOwned;
use smalti_nn::{Precision, precision};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// What will be trained, and where it is kept.
#[derive(Clone, Debug)]
pub struct Job {
    pub system: System,
    pub run: PathBuf,
    /// The recipe with every override, as TOML; `train.precision` says what it came to.
    pub recipe: String,
    pub precision: Precision,
}

/// The systems that can be trained, each with its checked recipe.
#[derive(Clone, Debug)]
pub enum System {
    Vqgan(Box<VqganRecipe>),
    AutoencoderKl(Box<AutoencoderKlRecipe>),
    Clip(Box<ClipRecipe>),
    DalleBart(Box<DalleBartRecipe>),
    Diffusion(Box<DiffusionRecipe>),
    NoisyClassifier(Box<NoisyClassifierRecipe>),
}

const SYSTEMS: [&str; 6] = ["vqgan", "autoencoder_kl", "clip", "dalle_bart", "diffusion", "noisy_classifier"];

impl System {
    fn train(&self) -> &TrainSettings {
        match self {
            Self::Vqgan(recipe) => &recipe.train,
            Self::AutoencoderKl(recipe) => &recipe.train,
            Self::Clip(recipe) => &recipe.train,
            Self::DalleBart(recipe) => &recipe.train,
            Self::Diffusion(recipe) => &recipe.train,
            Self::NoisyClassifier(recipe) => &recipe.train,
        }
    }
}

impl Job {
    /// Checks a recipe; `run` is the run folder when it shall not be `runs/<name>`.
    pub fn resolve(file: &RecipeFile, run: Option<PathBuf>) -> Result<Self, RecipeError> {
        let system = match file.get("system").and_then(|value| value.as_str()) {
            Some("vqgan") => System::Vqgan(checked(file, VqganRecipe::validate)?),
            Some("autoencoder_kl") => System::AutoencoderKl(checked(file, AutoencoderKlRecipe::validate)?),
            Some("clip") => System::Clip(checked(file, ClipRecipe::validate)?),
            Some("dalle_bart") => System::DalleBart(checked(file, DalleBartRecipe::validate)?),
            Some("diffusion") => System::Diffusion(checked(file, DiffusionRecipe::validate)?),
            Some("noisy_classifier") => System::NoisyClassifier(checked(file, NoisyClassifierRecipe::validate)?),
            Some(other) => return Err(file.reject("system", format!("expected one of {}, found `{other}`", SYSTEMS.join(", ")))),
            None => return Err(file.reject("system", format!("expected one of {}, found nothing", SYSTEMS.join(", ")))),
        };
        // Every system has a name, which was checked to be text with the rest.
        let name = file.get("name").and_then(|value| value.as_str()).unwrap_or_default();
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']) {
            return Err(file.reject("name", format!("expected the name of a folder, found `{name}`")));
        }
        let precision = system.train().precision.resolve();
        let recipe = file.resolved_with("train.precision", precision.name());
        Ok(Self { system, run: run.unwrap_or_else(|| Path::new("runs").join(name)), recipe, precision })
    }

    /// Trains to the end, or until `stop` is set. `resume` continues the run that is there. Call it inside the kernels' thread pool
    /// (`smalti_kernels::threads::install`): every parallel region then takes its threads without a hand-over.
    pub fn run(&self, resume: bool, device: &Device, stop: &AtomicBool) -> Result<Outcome, TrainError> {
        precision::within(self.precision, || self.run_in_precision(resume, device, stop))
    }

    fn run_in_precision(&self, resume: bool, device: &Device, stop: &AtomicBool) -> Result<Outcome, TrainError> {
        let run = if resume { RunFolder::resume(&self.run, &self.recipe)? } else { RunFolder::create(&self.run)? };
        match &self.system {
            System::Vqgan(recipe) => self.start(VqganTraining::new(recipe, device)?, &recipe.loop_settings(self.recipe.clone()), &run, stop),
            System::AutoencoderKl(recipe) => self.start(AutoencoderKlTraining::new(recipe, device)?, &recipe.loop_settings(self.recipe.clone()), &run, stop),
            System::DalleBart(recipe) => self.start(DalleBartTraining::new(recipe, device)?, &recipe.loop_settings(self.recipe.clone()), &run, stop),
            System::Diffusion(recipe) => self.start(DiffusionTraining::new(recipe, device)?, &recipe.loop_settings(self.recipe.clone()), &run, stop),
            System::NoisyClassifier(recipe) => {
                self.start(NoisyClassifierTraining::new(recipe, device)?, &recipe.loop_settings(self.recipe.clone()), &run, stop)
            }
            System::Clip(recipe) => self.start(ClipTraining::new(recipe, device)?, &recipe.loop_settings(self.recipe.clone()), &run, stop),
        }
    }

    fn start<R: Recipe>(&self, mut recipe: R, settings: &LoopSettings, run: &RunFolder, stop: &AtomicBool) -> Result<Outcome, TrainError> {
        let inputs = recipe.inputs()?;
        let data = recipe.pictures().map(|pictures| DataRecord::of(pictures.training(), inputs));
        let _alone = run.lock()?;
        data.iter().try_for_each(|data| run.check_data(data))?;
        run.begin(&self.recipe)?;
        data.iter().try_for_each(|data| data.write(&run.data()))?;
        train(&mut recipe, settings, run, stop)
    }
}

/// The recipe with its types, once it is known to be possible.
fn checked<R: DeserializeOwned>(file: &RecipeFile, validate: impl Fn(&R, &RecipeFile) -> Result<(), RecipeError>) -> Result<Box<R>, RecipeError> {
    let recipe: R = file.typed()?;
    validate(&recipe, file)?;
    Ok(Box::new(recipe))
}
