//! The loop on a problem small enough to run to the end in milliseconds: a linear map learns another.

use burn::tensor::{Device, Tensor, TensorData};
use rand::RngExt;
use smalti_data::Picture;
use smalti_nn::Initializer;
use smalti_nn::layers::Linear;
use smalti_nn::weights::{NamedTensors, collect};
use smalti_train::TrainError;
use smalti_train::learner::{Learner, Learns};
use smalti_train::learning_rate::{Decay, Schedule};
use smalti_train::recipe::{Measures, Pass, Recipe, RunFacts};
use smalti_train::run_folder::RunFolder;
use smalti_train::settings::{OptimizerSettings, TrainSettings};
use smalti_train::train_loop::{LoopSettings, Outcome, train};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

struct Toy {
    learners: [Learner<Linear>; 2],
    device: Device,
    /// Steps at which the loss is NaN, as often as told.
    poison: Vec<usize>,
    /// Set when this step is reached.
    stop_at: Option<(usize, &'static AtomicBool)>,
    /// Evaluations end in an error.
    evaluation_fails: bool,
    /// Samples do.
    sample_fails: bool,
    epoch_sum: f32,
}

impl Toy {
    fn new(settings: &LoopSettings) -> Self {
        let device = Device::flex().autodiff();
        let mut initializer = Initializer::new(7, &device);
        let learners = ["first", "second"]
            .map(|name| Learner::new(name, Linear::normal(3, 2, true, 0.5, &mut initializer), &settings.optimizer, settings.train.ema_decay));
        Self { learners, device, poison: Vec::new(), stop_at: None, evaluation_fails: false, sample_fails: false, epoch_sum: 0.0 }
    }

    fn weights(&self) -> Vec<NamedTensors> {
        self.learners.iter().flat_map(|learner| [collect(learner.network()), collect(&learner.averaged())]).collect()
    }
}

impl Recipe for Toy {
    type Batch = (Tensor<2>, Tensor<2>);

    fn learners(&mut self) -> Vec<&mut dyn Learns> {
        self.learners.iter_mut().map(|learner| learner as &mut dyn Learns).collect()
    }

    fn prepare(&mut self) -> Result<(), TrainError> {
        Ok(())
    }

    fn batch(&mut self, pass: Pass) -> Result<Self::Batch, TrainError> {
        let rows = (0..pass.batch_size).map(|row| {
            let mut rng = pass.rng(row);
            [0; 3].map(|_| rng.random::<f32>())
        });
        let x: Vec<[f32; 3]> = rows.collect();
        let y = x.iter().flat_map(|[a, b, c]| [a + 2.0 * b, b - c]).collect();
        let tensor = |values: Vec<f32>, width| Tensor::<2>::from_data(TensorData::new(values, [pass.batch_size, width]), &self.device);
        Ok((tensor(x.concat(), 3), tensor(y, 2)))
    }

    fn step(&mut self, (x, y): Self::Batch, pass: Pass) -> Result<Measures, TrainError> {
        let mut loss = (self.learners[0].network().forward(x.clone()) - y.clone()).powi_scalar(2).mean();
        loss = loss + (self.learners[1].network().forward(x) - y).abs().mean();
        if let Some(index) = self.poison.iter().position(|&step| step == pass.step) {
            self.poison.remove(index);
            return Ok(Measures::from([("total".to_string(), f64::NAN)]));
        }
        let mut gradients = loss.backward();
        for learner in &mut self.learners {
            learner.gather(&mut gradients, pass.share());
        }
        if let Some((step, stop)) = self.stop_at
            && step == pass.step
        {
            stop.store(true, Ordering::Relaxed);
        }
        Ok(Measures::from([("total".to_string(), loss.into_scalar::<f32>() as f64)]))
    }

    fn updated(&mut self, _pass: Pass) -> Result<Measures, TrainError> {
        self.epoch_sum += 1.0;
        Ok(Measures::new())
    }

    fn evaluate(&mut self) -> Result<Measures, TrainError> {
        if self.evaluation_fails {
            return Err(TrainError::Checkpoint { path: "evaluation".into(), reason: "broken off".to_string() });
        }
        let bias = collect(&self.learners[0].averaged())["bias"].values[0] as f64;
        Ok(Measures::from([("bias".to_string(), bias), ("total".to_string(), bias.abs())]))
    }

    fn sample(&mut self) -> Result<Option<Picture>, TrainError> {
        if self.sample_fails {
            return Err(TrainError::Checkpoint { path: "samples".into(), reason: "cannot be drawn".to_string() });
        }
        Ok(Some(Picture::filled(4, 4, [1, 2, 3])))
    }

    fn export(&mut self, folder: &Path, facts: &RunFacts) -> Result<(), TrainError> {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("facts.txt"), format!("{} {:?}", facts.steps, facts.measures)).unwrap();
        Ok(())
    }

    fn state(&self) -> NamedTensors {
        NamedTensors::from([("epoch_sum".to_string(), smalti_nn::weights::HostTensor::new([1], vec![self.epoch_sum]))])
    }

    fn restore(&mut self, state: NamedTensors) -> Result<(), TrainError> {
        self.epoch_sum = state["epoch_sum"].values[0];
        Ok(())
    }
}

fn settings(steps: usize) -> LoopSettings {
    LoopSettings {
        train: TrainSettings {
            steps,
            batch_size: 4,
            accumulation: 1,
            clip_norm: Some(0.5),
            ema_decay: Some(0.9),
            seed: 3,
            log_interval: 2,
            sample_interval: 5,
            evaluate_interval: 5,
            checkpoint_interval: 3,
            keep_checkpoints: 2,
            max_rollbacks: 2,
            precision: Default::default(),
        },
        optimizer: OptimizerSettings { learning_rate: 0.05, beta_1: 0.9, beta_2: 0.99, epsilon: 1e-8, weight_decay: 0.01 },
        schedule: Schedule { decay: Decay::Cosine, warm_up_steps: 2, final_fraction: 0.1 },
        recipe: "system = \"toy\"\n".to_string(),
    }
}

static NEVER: AtomicBool = AtomicBool::new(false);

fn new_run(folder: &Path, recipe: &str) -> RunFolder {
    let run = RunFolder::create(folder).unwrap();
    run.begin(recipe).unwrap();
    run
}

fn run_to_end(folder: &Path, settings: &LoopSettings) -> Toy {
    let run = if folder.exists() { RunFolder::resume(folder, &settings.recipe).unwrap() } else { new_run(folder, &settings.recipe) };
    let mut toy = Toy::new(settings);
    assert_eq!(train(&mut toy, settings, &run, &NEVER).unwrap(), Outcome::Finished);
    toy
}

#[test]
fn it_learns_and_leaves_all_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let toy = run_to_end(&run, &settings(20));
    assert_eq!(toy.epoch_sum, 20.0);
    for file in ["recipe.toml", "log.jsonl", "report.html", "losses.svg", "samples/step-00000005.png", "bundle/facts.txt", "checkpoints/step-00000020"] {
        assert!(run.join(file).exists(), "{file}");
    }
    assert_eq!(fs::read_dir(run.join("checkpoints")).unwrap().count(), 2, "keep_checkpoints");
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("<svg") && report.contains("data:image/png;base64,") && report.contains("held out: bias") && !report.contains("http"));
    let losses: Vec<f64> = smalti_train::log::read(&run.join("log.jsonl"))
        .unwrap()
        .iter()
        .filter_map(|entry| match entry {
            smalti_train::log::Entry::Training { losses, .. } => Some(losses["total"]),
            _ => None,
        })
        .collect();
    assert_eq!(losses.len(), 10);
    assert!(losses[9] < 0.8 * losses[0], "{losses:?}");
}

#[test]
fn stopped_anywhere_and_resumed_equals_never_stopped_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(11);
    let whole = run_to_end(&folder.path().join("whole"), &settings);
    for stop_after in 0..10 {
        let path = folder.path().join(format!("stopped-{stop_after}"));
        let stop: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        let mut toy = Toy::new(&settings);
        toy.stop_at = Some((stop_after, stop));
        let run = new_run(&path, &settings.recipe);
        assert_eq!(train(&mut toy, &settings, &run, stop).unwrap(), Outcome::Stopped { step: stop_after + 1 });
        let resumed = run_to_end(&path, &settings);
        assert_eq!(resumed.weights(), whole.weights(), "stopped after step {stop_after}");
        assert_eq!(resumed.epoch_sum, whole.epoch_sum);
        let newest = |run: &str| fs::read(folder.path().join(run).join("checkpoints/step-00000011/first.safetensors")).unwrap();
        assert_eq!(newest(&format!("stopped-{stop_after}")), newest("whole"));
        assert_eq!(looks(&path), looks(&folder.path().join("whole")), "stopped after step {stop_after}");
    }
}

/// Steps and figures of a run's evaluations, and the names of its sample sheets.
fn looks(run: &Path) -> (Vec<(usize, Measures)>, Vec<std::ffi::OsString>) {
    let evaluation = |entry| match entry {
        smalti_train::log::Entry::Evaluation { step, measures, .. } => Some((step, measures)),
        _ => None,
    };
    let evaluations = smalti_train::log::read(&run.join("log.jsonl")).unwrap().into_iter().filter_map(evaluation).collect();
    let mut sheets: Vec<_> = fs::read_dir(run.join("samples")).unwrap().map(|file| file.unwrap().file_name()).collect();
    sheets.sort();
    (evaluations, sheets)
}

#[test]
fn a_step_is_saved_before_it_is_looked_at_and_looked_at_after_resuming() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(10);
    settings.train.checkpoint_interval = 5;
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    run_to_end(&whole, &settings);
    let mut toy = Toy { evaluation_fails: true, ..Toy::new(&settings) };
    train(&mut toy, &settings, &new_run(&broken, &settings.recipe), &NEVER).unwrap_err();
    assert!(broken.join("checkpoints/step-00000005").exists());
    assert_eq!(looks(&broken), (vec![], vec![]));
    run_to_end(&broken, &settings);
    assert_eq!(looks(&broken), looks(&whole));
}

#[test]
fn accumulation_of_k_small_batches_equals_one_large_batch() {
    let folder = tempfile::tempdir().unwrap();
    let mut small = settings(6);
    (small.train.batch_size, small.train.accumulation) = (2, 4);
    let mut single = settings(6);
    (single.train.batch_size, single.train.accumulation) = (1, 8);
    let mut large = settings(6);
    large.train.batch_size = 8;
    let expected = run_to_end(&folder.path().join("large"), &large).weights();
    for (name, settings) in [("small", small), ("single", single)] {
        let found = run_to_end(&folder.path().join(name), &settings).weights();
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            for (a, b) in found.1.values.iter().zip(&expected.1.values) {
                assert!((a - b).abs() < 1e-5, "{name} {}: {a} {b}", found.0);
            }
        }
    }
}

#[test]
fn broken_checkpoints_are_skipped_and_the_run_ends_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(9);
    let whole = run_to_end(&folder.path().join("whole"), &settings);
    type Break = fn(&Path);
    let breaks: [(&str, Break); 6] = [
        ("truncated", |newest| fs::OpenOptions::new().write(true).open(newest.join("first.safetensors")).unwrap().set_len(60).unwrap()),
        ("flipped", |newest| {
            let path = newest.join("second.optimizer.bpk");
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("missing", |newest| fs::remove_file(newest.join("second.average.safetensors")).unwrap()),
        ("no manifest", |newest| fs::remove_file(newest.join("checkpoint.json")).unwrap()),
        ("other manifest", |newest| {
            let path = newest.join("checkpoint.json");
            let text = fs::read_to_string(&path).unwrap().replace("\"step\": 6", "\"step\": 7");
            fs::write(path, text).unwrap();
        }),
        ("half-written", |newest| fs::rename(newest, newest.with_file_name(".step-00000006.tmp")).unwrap()),
    ];
    for (name, break_it) in breaks {
        let path = folder.path().join(name);
        let stop: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        let mut toy = Toy::new(&settings);
        toy.stop_at = Some((5, stop));
        train(&mut toy, &settings, &new_run(&path, &settings.recipe), stop).unwrap();
        break_it(&path.join("checkpoints/step-00000006"));
        let mut warnings = Vec::new();
        let newest = smalti_train::checkpoint::newest(&path.join("checkpoints"), &mut |warning| warnings.push(warning)).unwrap().unwrap();
        assert_eq!(newest.1.step, 3, "{name}");
        assert!(name == "half-written" || warnings.len() == 1 && warnings[0].contains("step-00000006"), "{name}: {warnings:?}");
        assert_eq!(run_to_end(&path, &settings).weights(), whole.weights(), "{name}");
        assert!(!path.join("checkpoints/.step-00000006.tmp").exists());
    }
}

#[test]
fn broken_checkpoints_do_not_crowd_out_whole_ones() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(6);
    (settings.train.checkpoint_interval, settings.train.keep_checkpoints) = (2, 1);
    let path = folder.path().join("run");
    settings.train.keep_checkpoints = 2;
    run_to_end(&path, &settings);
    let weights = |step: usize| path.join(format!("checkpoints/step-{step:08}/first.safetensors"));
    fs::write(weights(6), "no weights").unwrap();
    settings.train.keep_checkpoints = 1;
    settings.train.steps = 5;
    run_to_end(&path, &settings);
    assert!(weights(5).exists() && !weights(4).exists(), "the newest whole one is kept, the one before it is not");
}

#[test]
fn without_any_whole_checkpoint_nothing_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(6);
    let path = folder.path().join("run");
    run_to_end(&path, &settings);
    for checkpoint in fs::read_dir(path.join("checkpoints")).unwrap() {
        fs::remove_file(checkpoint.unwrap().path().join("second.safetensors")).unwrap();
    }
    fs::write(path.join("checkpoints/notes.tmp"), "a file of somebody else").unwrap();
    let log = fs::read(path.join("log.jsonl")).unwrap();
    let run = RunFolder::resume(&path, &settings.recipe).unwrap();
    let error = train(&mut Toy::new(&settings), &settings, &run, &NEVER).unwrap_err().to_string();
    assert!(error.contains("none is whole") && error.contains("step-00000006: second.safetensors") && error.contains("step-00000003"), "{error}");
    assert!(fs::read(path.join("log.jsonl")).unwrap() == log && path.join("checkpoints/notes.tmp").exists());
}

#[test]
fn samples_that_cannot_be_drawn_stop_no_training() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, run) = (settings(6), folder.path().join("run"));
    let mut toy = Toy { sample_fails: true, ..Toy::new(&settings) };
    assert_eq!(train(&mut toy, &settings, &new_run(&run, &settings.recipe), &NEVER).unwrap(), Outcome::Finished);
    assert!(looks(&run).1.is_empty() && run.join("bundle/facts.txt").exists());
}

#[test]
fn a_loss_that_is_not_finite_goes_back_with_a_lower_rate() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(9);
    let path = folder.path().join("run");
    let run = new_run(&path, &settings.recipe);
    let mut toy = Toy::new(&settings);
    toy.poison = vec![4, 7];
    assert_eq!(train(&mut toy, &settings, &run, &NEVER).unwrap(), Outcome::Finished);
    let rollbacks: Vec<_> = smalti_train::log::read(&run.log())
        .unwrap()
        .into_iter()
        .filter_map(|entry| match entry {
            smalti_train::log::Entry::Rollback { step, to_step, reason, rate_factor } => Some((step, to_step, reason, rate_factor)),
            _ => None,
        })
        .collect();
    assert_eq!(rollbacks, [(4, 3, "loss `total` is NaN".to_string(), 0.5), (7, 6, "loss `total` is NaN".to_string(), 0.25)]);
    assert!(toy.weights().iter().flatten().all(|(_, tensor)| tensor.values.iter().all(|value| value.is_finite())));
    assert_eq!(toy.epoch_sum, 9.0, "the recipe's own state went back too");
}

#[test]
fn rollbacks_end_with_an_error_that_names_step_and_loss_even_across_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(9);
    let path = folder.path().join("run");
    let mut toy = Toy::new(&settings);
    toy.poison = vec![4, 4, 4];
    let error = train(&mut toy, &settings, &new_run(&path, &settings.recipe), &NEVER).unwrap_err().to_string();
    assert!(error.contains("step 4: loss `total` is NaN, after 2 rollbacks"), "{error}");
    let mut toy = Toy::new(&settings);
    toy.poison = vec![4];
    let error = train(&mut toy, &settings, &RunFolder::resume(&path, &settings.recipe).unwrap(), &NEVER).unwrap_err().to_string();
    assert!(error.contains("after 2 rollbacks"), "{error}");
}

#[test]
fn a_run_is_trained_once_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunFolder::create(&folder.path().join("run")).unwrap();
    let held = run.lock().unwrap();
    assert!(held.is_some());
    let error = RunFolder::create(&folder.path().join("run")).unwrap().lock().unwrap_err().to_string();
    assert!(error.contains("another training is at work"), "{error}");
    drop(held);
    run.lock().unwrap();
}

#[test]
fn runs_are_neither_overwritten_nor_resumed_with_another_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let recipe = "[train]\nsteps = 4\nseed = 1\n";
    assert!(RunFolder::resume(&path, recipe).err().unwrap().to_string().contains("hint: start it without --resume"));
    new_run(&path, recipe);
    assert!(RunFolder::create(&path).err().unwrap().to_string().contains("--resume continues it"));
    let error = RunFolder::resume(&path, &recipe.replace("seed = 1", "seed = 2")).err().unwrap().to_string();
    assert!(error.contains("`train.seed` was 1, is 2"), "{error}");
    RunFolder::resume(&path, &recipe.replace("steps = 4", "steps = 8")).unwrap();
    RunFolder::resume(&path, &format!("{recipe}[samples]\ncount = 2\nthreshold = {{ dynamic = {{ percentile = 0.995 }} }}\n")).unwrap();
}

#[test]
fn an_unwritable_checkpoint_is_an_error_and_leaves_the_old_ones() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(4);
    let path = folder.path().join("run");
    run_to_end(&path, &settings);
    let progress = smalti_train::checkpoint::Progress { step: 9, ..smalti_train::checkpoint::Progress::start() };
    let full = |_: &Path| Err(TrainError::Unfit { place: "first.safetensors".to_string(), reason: "no space left on device".to_string() });
    let error = smalti_train::checkpoint::save(&path.join("checkpoints"), &progress, 2, full).unwrap_err().to_string();
    assert!(error.contains("step-00000009") && error.contains("no space left on device") && error.contains("earlier checkpoints are untouched"), "{error}");
    let newest = smalti_train::checkpoint::newest(&path.join("checkpoints"), &mut |warning| panic!("{warning}")).unwrap().unwrap();
    assert_eq!(newest.1.step, 4);
}
