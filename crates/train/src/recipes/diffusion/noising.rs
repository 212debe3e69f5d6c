//! Examples: a clean canvas, drowned to a level drawn for it, and what the network must say of it.

use super::settings::DiffusionRecipe;
use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha12Rng;
use smalti_generation::diffusion::losses::{log_variance_bounds, training_step};
use smalti_generation::diffusion::{Level, Posterior, Process, Schedule, Variance, flow, sigmas};
use smalti_generation::random::fill_normal;
use smalti_models::generator::unet::loss::StepTerms;

/// Many examples, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Noised {
    pub clean: Vec<f32>,
    /// As the network sees it.
    pub input: Vec<f32>,
    pub target: Vec<f32>,
    pub timesteps: Vec<f32>,
    pub weights: Vec<f32>,
    /// The trained step of each, where the process has such.
    steps: Vec<usize>,
}

impl Noised {
    /// Draws a level and noise for `clean` and adds it.
    pub fn push(&mut self, recipe: &DiffusionRecipe, clean: &[f32], rng: &mut ChaCha12Rng) {
        let (level, step) = training_level(&recipe.process, recipe.loss.level_normal, rng);
        let mut noise = vec![0.0; clean.len()];
        fill_normal(rng, &mut noise);
        let sample = level.noised(clean, &noise);
        let scale = recipe.process.input_scale(&level) as f32;
        let parameterization = recipe.loss.parameterization;
        self.clean.extend(clean);
        self.input.extend(sample.iter().map(|value| value * scale));
        self.target.extend(parameterization.target(&level, clean, &noise));
        self.timesteps.push(level.timestep as f32);
        self.weights.push(recipe.loss.weighting.weight(parameterization, &level) as f32);
        self.steps.push(step);
    }

    /// What the variational bound needs to know of each example's step.
    pub fn step_terms(&self, recipe: &DiffusionRecipe, schedule: &Schedule, device: &Device) -> StepTerms {
        let column = |term: &dyn Fn(usize) -> f64| {
            let values: Vec<f32> = self.steps.iter().map(|&step| term(step) as f32).collect();
            Tensor::<1>::from_data(TensorData::new(values, [self.steps.len()]), device)
        };
        let posterior = |step: usize| Posterior::between(&schedule.level(step), &schedule.level_at(step as f64 - 1.0));
        let clean_of = |step: usize| recipe.loss.parameterization.clean_coefficients(&schedule.level(step));
        StepTerms {
            clean_of_noisy: column(&|step| clean_of(step).0),
            clean_of_prediction: column(&|step| clean_of(step).1),
            mean_of_clean: column(&|step| posterior(step).clean),
            mean_of_noisy: column(&|step| posterior(step).sample),
            log_posterior_variance: column(&|step| log_variance_bounds(schedule, step).0),
            log_beta: column(&|step| log_variance_bounds(schedule, step).1),
            first: column(&|step| if step == 0 { 1.0 } else { 0.0 }),
        }
    }
}

/// A level to train at, as the process's paper draws it, and its trained step where the process has such. `normal` replaces the paper's mean and standard
/// deviation.
pub fn training_level(process: &Process, normal: Option<[f64; 2]>, rng: &mut ChaCha12Rng) -> (Level, usize) {
    match process {
        Process::VariancePreserving(schedule) => {
            let step = training_step(rng, schedule);
            (schedule.level(step), step)
        }
        Process::Flow(config) => {
            let [mean, deviation] = normal.unwrap_or(FLOW_NORMAL);
            (config.level(flow::shifted(flow::logit_normal(rng, mean, deviation), config.shift)), 0)
        }
        Process::VarianceExploding(_) => {
            let [mean, deviation] = normal.unwrap_or(EDM_NORMAL);
            (sigmas::level(sigmas::training_sigma(rng, mean, deviation)), 0)
        }
    }
}

/// Stable Diffusion 3 (2403.03206), section 3.1.
const FLOW_NORMAL: [f64; 2] = [0.0, 1.0];
/// EDM (2206.00364), table 1.
const EDM_NORMAL: [f64; 2] = [-1.2, 1.2];

/// The schedule of a network whose variance is learned.
pub fn learned_variance(recipe: &DiffusionRecipe) -> Option<&Schedule> {
    match &recipe.process {
        Process::VariancePreserving(schedule) if recipe.loss.variance == Variance::Learned => Some(schedule),
        _ => None,
    }
}
