//! What can stop a training.

use crate::recipe_file::RecipeError;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("run {}: already exists; hint: --resume continues it, --run DIR starts another", path.display())]
    RunExists { path: PathBuf },
    #[error("run {}: another training is at work in it; hint: --run DIR starts another", path.display())]
    RunBusy { path: PathBuf },
    #[error("run {}: expected a run to resume, found {found}; hint: start it without --resume", path.display())]
    NothingToResume { path: PathBuf, found: &'static str },
    #[error("run {}: the recipe is not the one this run was started with: {difference}; hint: resume with {}, or start another run with --run DIR", path.display(), path.join("recipe.toml").display())]
    OtherRecipe { path: PathBuf, difference: String },
    #[error("run {}: what it learns from has changed: {difference}; hint: put it back, or start another run with --run DIR", path.display())]
    OtherData { path: PathBuf, difference: String },
    #[error("checkpoint {}: could not be written: {reason}; hint: earlier checkpoints are untouched, free some space and --resume", path.display())]
    CheckpointWrite { path: PathBuf, reason: String },
    #[error("checkpoint {}: {reason}", path.display())]
    Checkpoint { path: PathBuf, reason: String },
    #[error("step {step}: {what} is {value}")]
    NotFinite { step: usize, what: String, value: f32 },
    #[error("step {step}: {what} is {value}, after {rollbacks} rollbacks with a lower rate; hint: lower optimizer.learning_rate or set train.clip_norm")]
    Diverged { step: usize, what: String, value: f32, rollbacks: usize },
    #[error(transparent)]
    Data(#[from] smalti_data::DataError),
    #[error(transparent)]
    Picture(#[from] smalti_data::PictureError),
    #[error(transparent)]
    Metrics(#[from] smalti_metrics::MetricsError),
    #[error(transparent)]
    Pipeline(#[from] smalti_pipeline::PipelineError),
    #[error("{place}: {reason}")]
    Unfit { place: String, reason: String },
    #[error(transparent)]
    Weights(#[from] smalti_nn::weights::WeightsError),
}

impl TrainError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }
}
