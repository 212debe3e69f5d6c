//! The only training loop. It owns time; the recipe owns meaning.
//!
//! A step is: for each of its passes a batch, forward, backward, gradients gathered; then every learner's optimiser (all-reduce, clip, update, average).
//! Between steps the loop logs, saves, evaluates and samples, in this order: who breaks off while pictures are drawn loses no step. A loss or gradient that is not finite gives the step up before any weight has changed and
//! goes back to the last checkpoint with a lower rate. All randomness and the place in the data come from (seed, step), so a run that was stopped anywhere
//! and resumed ends with the bytes of the run that was not.

use crate::checkpoint::{self, Progress};
use crate::learning_rate::Schedule;
use crate::log::{self, Display, Entry, Log};
use crate::recipe::{Measures, Pass, Recipe, RunFacts};
use crate::run_folder::RunFolder;
use crate::settings::{OptimizerSettings, ROLLBACK_RATE_FACTOR, TrainSettings};
use crate::{TrainError, report};
use smalti_nn::weights::safetensors;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How a training ended, when not by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps done and the bundle exported.
    Finished,
    /// Asked to stop; a checkpoint of this step is saved.
    Stopped { step: usize },
}

/// The tables of a recipe that the loop obeys.
#[derive(Clone, Debug)]
pub struct LoopSettings {
    pub train: TrainSettings,
    pub optimizer: OptimizerSettings,
    pub schedule: Schedule,
    /// The resolved recipe, for the bundle.
    pub recipe: String,
}

/// Trains until the last step or until `stop` is set, starting from the newest valid checkpoint of `run` where there is one.
pub fn train<R: Recipe>(recipe: &mut R, settings: &LoopSettings, run: &RunFolder, stop: &AtomicBool) -> Result<Outcome, TrainError> {
    let mut warnings = Vec::new();
    let found = checkpoint::newest(&run.checkpoints(), &mut |warning| warnings.push(warning))?;
    let progress = match &found {
        Some((folder, progress)) => {
            restore(recipe, folder)?;
            progress.clone()
        }
        // Not back to the first step: what there is may be mended, and the log tells of it.
        None if !warnings.is_empty() => {
            let reason = format!("none is whole; hint: bring one back from a copy, or remove them all to begin again\n  {}", warnings.join("\n  "));
            return Err(TrainError::Checkpoint { path: run.checkpoints(), reason });
        }
        None => Progress::start(),
    };
    let display = Display::new(progress.step, settings.train.steps);
    warnings.iter().for_each(|warning| display.say(&format!("warning: {warning}")));
    let log = Log::open(&run.log(), progress.step)?;
    let mut training = Training { recipe, settings, run, display, log, progress, losses: Means::default(), clock: Instant::now(), measures: Measures::new() };
    if found.is_none() {
        training.recipe.prepare()?;
        training.save()?;
    }
    let outcome = training.run(stop);
    training.display.finish();
    outcome
}

struct Training<'a, R: Recipe> {
    recipe: &'a mut R,
    settings: &'a LoopSettings,
    run: &'a RunFolder,
    display: Display,
    log: Log,
    progress: Progress,
    losses: Means,
    /// Since the last time that `progress.seconds` was brought up to date.
    clock: Instant,
    /// Of the last evaluation.
    measures: Measures,
}

impl<R: Recipe> Training<'_, R> {
    fn run(&mut self, stop: &AtomicBool) -> Result<Outcome, TrainError> {
        let train = &self.settings.train;
        let mut saved = self.progress.step;
        self.look_if_broken_off()?;
        while self.progress.step < train.steps {
            match self.step() {
                Ok(()) => {}
                Err(TrainError::NotFinite { step, what, value }) => {
                    self.roll_back(step, &what, value)?;
                    saved = self.progress.step;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let step = self.progress.step;
            let (due, last) = (|interval: usize| step.is_multiple_of(interval), step == train.steps);
            self.display.step(step);
            if due(train.log_interval) || last {
                self.log_losses()?;
            }
            let stopping = stop.load(Ordering::Relaxed) && !last;
            if due(train.checkpoint_interval) || last || stopping {
                self.save()?;
                saved = step;
            }
            if stopping {
                return Ok(Outcome::Stopped { step });
            }
            if self.evaluation_is_due() {
                self.evaluate()?;
            }
            if self.sample_is_due() {
                self.sample();
            }
        }
        debug_assert_eq!(saved, self.progress.step);
        self.finish()?;
        Ok(Outcome::Finished)
    }

    /// One step of the optimisers. On an error no weight has changed, save when the error comes from the recipe's `updated`.
    fn step(&mut self) -> Result<(), TrainError> {
        let TrainSettings { seed, accumulation, batch_size, clip_norm, steps, .. } = self.settings.train;
        let step = self.progress.step;
        let pass = |index| Pass { seed, step, index, accumulation, batch_size };
        let mut losses = Measures::new();
        for index in 0..accumulation {
            let batch = self.recipe.batch(pass(index))?;
            for (name, value) in self.recipe.step(batch, pass(index))? {
                if !value.is_finite() {
                    return Err(TrainError::NotFinite { step, what: format!("loss `{name}`"), value: value as f32 });
                }
                *losses.entry(name).or_insert(0.0) += value * pass(index).share();
            }
        }
        let fraction = self.progress.rate_factor * self.settings.schedule.fraction(step, steps);
        for learner in self.recipe.learners() {
            if let Some(norm) = learner.update(step, fraction, clip_norm)? {
                losses.insert(format!("gradient norm of {}", learner.name()), norm);
            }
        }
        losses.extend(self.recipe.updated(pass(accumulation - 1))?);
        self.losses.add(losses);
        self.progress.step += 1;
        Ok(())
    }

    fn roll_back(&mut self, step: usize, what: &str, value: f32) -> Result<(), TrainError> {
        if self.progress.rollbacks >= self.settings.train.max_rollbacks {
            return Err(TrainError::Diverged { step, what: what.to_string(), value, rollbacks: self.progress.rollbacks });
        }
        let (folder, saved) = checkpoint::newest(&self.run.checkpoints(), &mut |warning| self.display.say(&format!("warning: {warning}")))?
            .ok_or_else(|| TrainError::Checkpoint { path: self.run.checkpoints(), reason: "no valid checkpoint to go back to".to_string() })?;
        restore(self.recipe, &folder)?;
        self.measure_time();
        let seconds = self.progress.seconds;
        let rate_factor = self.progress.rate_factor * ROLLBACK_RATE_FACTOR;
        self.progress = Progress { step: saved.step, rollbacks: self.progress.rollbacks + 1, rate_factor, seconds };
        self.losses = Means::default();
        self.log = Log::open(&self.run.log(), saved.step)?;
        self.record(Entry::Rollback { step, to_step: saved.step, reason: format!("{what} is {value}"), rate_factor })?;
        // Saved at once, so that the lower rate survives a crash too.
        self.save()
    }

    fn log_losses(&mut self) -> Result<(), TrainError> {
        let elapsed = self.measure_time();
        let TrainSettings { batch_size, accumulation, steps, .. } = self.settings.train;
        let (count, losses) = self.losses.take();
        if count == 0 {
            return Ok(());
        }
        let step = self.progress.step;
        let rate = self.settings.optimizer.learning_rate * self.progress.rate_factor * self.settings.schedule.fraction(step - 1, steps);
        let seconds_a_step = (elapsed / count as f64).max(1e-9);
        let pictures_per_second = (batch_size * accumulation) as f64 / seconds_a_step;
        let entry = Entry::Training { step, losses, learning_rate: rate, pictures_per_second, seconds: self.progress.seconds };
        self.log.write(&entry)?;
        self.display.entry(&entry, (steps - step) as f64 * seconds_a_step);
        Ok(())
    }

    fn evaluation_is_due(&self) -> bool {
        let TrainSettings { steps, evaluate_interval, .. } = self.settings.train;
        self.progress.step.is_multiple_of(evaluate_interval) || self.progress.step == steps
    }

    fn sample_is_due(&self) -> bool {
        let TrainSettings { steps, sample_interval, .. } = self.settings.train;
        self.progress.step.is_multiple_of(sample_interval) || self.progress.step == steps
    }

    /// Evaluates and samples a run that was broken off after its step was saved and before it was looked at.
    fn look_if_broken_off(&mut self) -> Result<(), TrainError> {
        let step = self.progress.step;
        if step == 0 {
            return Ok(());
        }
        let evaluated = |entry: &Entry| matches!(entry, Entry::Evaluation { step: of, .. } if *of == step);
        if self.evaluation_is_due() && !log::read(&self.run.log())?.iter().any(evaluated) {
            self.evaluate()?;
        }
        if self.sample_is_due() && !self.sheet().exists() {
            self.sample();
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<(), TrainError> {
        let measures = self.recipe.evaluate()?;
        self.measure_time();
        self.measures = measures.clone();
        if measures.is_empty() {
            return Ok(());
        }
        self.record(Entry::Evaluation { step: self.progress.step, measures, seconds: self.progress.seconds })
    }

    /// Something to look at, which no training is given up for.
    fn sample(&mut self) {
        let drawn = self.recipe.sample().and_then(|sheet| sheet.map_or(Ok(()), |sheet| Ok(sheet.write_png(&self.sheet(), &[])?)));
        self.measure_time();
        if let Err(error) = drawn.and_then(|()| self.write_report()) {
            self.display.say(&format!("warning: no samples of step {}: {error}", self.progress.step));
        }
    }

    /// The file of this step's samples.
    fn sheet(&self) -> PathBuf {
        self.run.samples().join(format!("step-{:08}.png", self.progress.step))
    }

    fn save(&mut self) -> Result<(), TrainError> {
        self.measure_time();
        let (recipe, keep) = (&mut *self.recipe, self.settings.train.keep_checkpoints);
        checkpoint::save(&self.run.checkpoints(), &self.progress, keep, |folder| {
            recipe.learners().iter().try_for_each(|learner| learner.save(folder))?;
            Ok(safetensors::write(&folder.join(RECIPE_STATE), &recipe.state(), safetensors::Storage::F32)?)
        })?;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), TrainError> {
        if self.measures.is_empty() {
            // A run resumed after its last step has its figures in the log.
            let entries = log::read(&self.run.log())?;
            let last = entries.iter().rev().find_map(|entry| if let Entry::Evaluation { measures, .. } = entry { Some(measures.clone()) } else { None });
            self.measures = last.unwrap_or_default();
        }
        let Progress { step: steps, seconds, .. } = self.progress;
        let name = self.run.name();
        let facts = RunFacts { name, recipe: self.settings.recipe.clone(), steps, seconds, measures: self.measures.clone() };
        self.recipe.export(&self.run.bundle(), &facts)?;
        self.write_report()
    }

    fn write_report(&self) -> Result<(), TrainError> {
        report::write(self.run, &log::read(&self.run.log())?)
    }

    fn record(&mut self, entry: Entry) -> Result<(), TrainError> {
        self.display.entry(&entry, 0.0);
        self.log.write(&entry)
    }

    /// Adds the time since the last call to the run's; returns it.
    fn measure_time(&mut self) -> f64 {
        let elapsed = self.clock.elapsed().as_secs_f64();
        self.clock = Instant::now();
        self.progress.seconds += elapsed;
        elapsed
    }
}

/// File of `Recipe::state` in a checkpoint; learners have other names.
const RECIPE_STATE: &str = "recipe_state.safetensors";

fn restore<R: Recipe>(recipe: &mut R, folder: &Path) -> Result<(), TrainError> {
    recipe.learners().into_iter().try_for_each(|learner| learner.restore(folder))?;
    recipe.restore(safetensors::read(&folder.join(RECIPE_STATE))?)
}

/// Sums of named figures; a figure that some steps lack is averaged over those that have it.
#[derive(Default)]
struct Means {
    steps: usize,
    sums: std::collections::BTreeMap<String, (f64, usize)>,
}

impl Means {
    fn add(&mut self, figures: Measures) {
        self.steps += 1;
        for (name, value) in figures {
            let (sum, count) = self.sums.entry(name).or_insert((0.0, 0));
            *sum += value;
            *count += 1;
        }
    }

    /// The number of steps and the means, starting anew.
    fn take(&mut self) -> (usize, Measures) {
        let Self { steps, sums } = std::mem::take(self);
        (steps, sums.into_iter().map(|(name, (sum, count))| (name, sum / count as f64)).collect())
    }
}
