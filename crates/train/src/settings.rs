//! The tables that every recipe has.

use crate::learning_rate::Schedule;
use crate::recipe_file::{RecipeError, RecipeFile};
use serde::{Deserialize, Serialize};
use smalti_nn::PrecisionChoice;

/// `[optimizer]`: AdamW (Loshchilov and Hutter 2019).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSettings {
    /// The peak of the schedule.
    pub learning_rate: f64,
    pub beta_1: f32,
    pub beta_2: f32,
    /// 1e-8 in the paper's experiments and in PyTorch.
    #[serde(default = "default_epsilon")]
    pub epsilon: f32,
    pub weight_decay: f32,
}

fn default_epsilon() -> f32 {
    1e-8
}

/// `[train]`: how long, how much at once, and how often to look.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    pub steps: usize,
    /// Pictures of one forward pass.
    pub batch_size: usize,
    /// Forward passes of one step; k passes of b pictures equal one of k * b.
    #[serde(default = "one")]
    pub accumulation: usize,
    /// The global norm to which gradients are cut down; absent: never.
    pub clip_norm: Option<f64>,
    /// Decay of the moving average of the weights, in [0, 1); absent: no average.
    pub ema_decay: Option<f64>,
    pub seed: u64,
    pub log_interval: usize,
    pub sample_interval: usize,
    pub evaluate_interval: usize,
    pub checkpoint_interval: usize,
    pub keep_checkpoints: usize,
    /// How often a step with a loss that is not finite may be answered by going back to the last checkpoint with a lower rate.
    #[serde(default = "default_max_rollbacks")]
    pub max_rollbacks: usize,
    /// What products and convolutions compute in; weights and optimiser are f32 either way.
    #[serde(default)]
    pub precision: PrecisionChoice,
}

/// The factor on the learning rate at each rollback.
pub const ROLLBACK_RATE_FACTOR: f64 = 0.5;

fn one() -> usize {
    1
}

fn default_max_rollbacks() -> usize {
    3
}

/// Checks the shared tables; what is wrong is named with its line.
pub fn validate(file: &RecipeFile, optimizer: &OptimizerSettings, schedule: &Schedule, train: &TrainSettings) -> Result<(), RecipeError> {
    let at_least_one = [
        ("train.steps", train.steps),
        ("train.batch_size", train.batch_size),
        ("train.accumulation", train.accumulation),
        ("train.log_interval", train.log_interval),
        ("train.sample_interval", train.sample_interval),
        ("train.evaluate_interval", train.evaluate_interval),
        ("train.checkpoint_interval", train.checkpoint_interval),
        ("train.keep_checkpoints", train.keep_checkpoints),
    ];
    for (key, value) in at_least_one {
        if value == 0 {
            return Err(file.reject(key, "expected at least 1, found 0"));
        }
    }
    if train.batch_size.checked_mul(train.accumulation).is_none_or(|size| size > MAX_STEP_SIZE) {
        let found = format!("{} x {}", train.batch_size, train.accumulation);
        return Err(file.reject("train.batch_size", format!("expected at most {MAX_STEP_SIZE} pictures a step, found {found}")));
    }
    let ranges = [
        ("optimizer.learning_rate", optimizer.learning_rate, f64::MIN_POSITIVE, 1.0),
        ("optimizer.beta_1", optimizer.beta_1 as f64, 0.0, 0.999_999),
        ("optimizer.beta_2", optimizer.beta_2 as f64, 0.0, 0.999_999_9),
        ("optimizer.epsilon", optimizer.epsilon as f64, f64::MIN_POSITIVE, 1.0),
        ("optimizer.weight_decay", optimizer.weight_decay as f64, 0.0, 10.0),
        ("schedule.final_fraction", schedule.final_fraction, 0.0, 1.0),
        ("train.clip_norm", train.clip_norm.unwrap_or(1.0), f64::MIN_POSITIVE, f64::MAX),
        ("train.ema_decay", train.ema_decay.unwrap_or(0.0), 0.0, 0.999_999_9),
    ];
    for (key, value, low, high) in ranges {
        expect_range(file, key, value, low, high)?;
    }
    Ok(())
}

/// A step of more pictures than this is a slip of the hand; it would need the memory of a cluster.
const MAX_STEP_SIZE: usize = 1 << 20;

/// `value` of `key` must lie in [low, high]; NaN does not.
pub fn expect_range(file: &RecipeFile, key: &str, value: f64, low: f64, high: f64) -> Result<(), RecipeError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    let low = if low == f64::MIN_POSITIVE { "more than 0".to_string() } else { format!("at least {low}") };
    let high = if high == f64::MAX { String::new() } else { format!(" and at most {high}") };
    Err(file.reject(key, format!("expected {low}{high}, found {value}")))
}
