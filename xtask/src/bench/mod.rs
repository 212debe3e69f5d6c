//! `cargo xtask bench --torch PYTHON --out DIR`: our side and PyTorch's on one machine, taking turns, and what comes of it.
//!
//! Every sample is a line of `raw.csv`, written as soon as it is there; `ratios.json` and `README.md` are computed from those lines alone, after every row.
//! A run that was stopped goes on where it was when it is started again with the same folder; a row that fails is reported and may be tried again.

mod arguments; // what was asked for
mod machine; //   what the machine is, for the README
mod plan; //      which rows, in which of torch's modes
mod ratios; //    medians, best modes, ratios
mod readme; //    the run as people read it
mod samples; //   raw.csv
mod side; //      a process that measures one row when told

use anyhow::{Context, Result, ensure};
use arguments::Arguments;
use plan::{Pair, pairs};
use samples::{Sample, Samples};
use side::Side;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

pub fn run(root: &Path, words: &[&str]) -> Result<()> {
    let arguments = Arguments::parse(words)?;
    let program = match &arguments.smalti {
        Some(path) => path.clone(),
        None => {
            let status = Command::new(env!("CARGO")).args(["build", "--release", "--package", "smalti"]).current_dir(root).status()?;
            ensure!(status.success(), "cargo build --release --package smalti failed");
            root.join("target/release/smalti")
        }
    };
    std::fs::create_dir_all(&arguments.out).with_context(|| arguments.out.display().to_string())?;
    let mut samples = Samples::open(&arguments.out.join("raw.csv"))?;
    let bench = Bench { root, arguments: &arguments, program: &program };
    let pairs: Vec<Pair> = pairs().into_iter().filter(|pair| arguments.wants(pair)).collect();
    for (index, pair) in pairs.iter().enumerate() {
        if samples.complete(pair, arguments.repetitions) {
            continue;
        }
        eprintln!("{} of {}: {pair}", index + 1, pairs.len());
        let kept = samples.count(pair, samples::OURS);
        if let Err(error) = bench.measure(pair, kept, &mut samples) {
            eprintln!("  failed: {error:#}");
            samples.add(Sample::failed(pair, &format!("{error:#}")))?;
        }
        readme::write(&bench, &samples)?;
    }
    readme::write(&bench, &samples)
}

/// What stays the same for all rows.
pub struct Bench<'a> {
    root: &'a Path,
    arguments: &'a Arguments,
    program: &'a Path,
}

impl Bench<'_> {
    /// Both sides are started and warmed up, then they take turns; neither runs while the other is measured.
    fn measure(&self, pair: &Pair, first: usize, samples: &mut Samples) -> Result<()> {
        if pair.row == plan::START_UP {
            return self.measure_start_up(pair, first, samples);
        }
        let mut ours = Side::start(self.ours(pair)).context("smalti")?;
        let mut torch = pair.mode.map(|mode| Side::start(self.torch(pair, mode)).context("torch")).transpose()?;
        for repetition in first..self.arguments.repetitions.max(first + 1) {
            samples.add(Sample { repetition, ..ours.sample(pair, samples::OURS)? })?;
            if let Some(torch) = &mut torch {
                samples.add(Sample { repetition, ..torch.sample(pair, samples::TORCH)? })?;
            }
        }
        samples.add(ours.finish(pair, samples::OURS)?)?;
        if let Some(torch) = torch {
            samples.add(torch.finish(pair, samples::TORCH)?)?;
        }
        Ok(())
    }

    /// Whole programs, from their start to their end with one picture.
    fn measure_start_up(&self, pair: &Pair, first: usize, samples: &mut Samples) -> Result<()> {
        let folder = std::env::temp_dir().join(format!("smalti-start-{}", std::process::id()));
        let bundle = self.root.join("bundles/pictograms");
        let threads = self.threads(pair).to_string();
        for repetition in first..self.arguments.repetitions.max(first + 1) {
            let mut ours = Command::new(self.program);
            ours.args(["generate", "a red heart", "--count", "1", "--threads", &threads, "--json", "--bundle"]).arg(&bundle).arg("--out").arg(&folder);
            samples.add(Sample { repetition, ms: Some(whole(ours).context("smalti")?), ..Sample::of(pair, samples::OURS) })?;
            let mut torch = Command::new(&self.arguments.torch);
            torch.arg(self.root.join("benchsuite/torch_start.py")).arg(bundle.join("bundle.toml")).arg(&threads).env("OMP_NUM_THREADS", &threads);
            samples.add(Sample { repetition, ms: Some(whole(torch).context("torch")?), ..Sample::of(pair, samples::TORCH) })?;
        }
        std::fs::remove_dir_all(&folder).context("the pictures of the start-up row")
    }

    fn threads(&self, pair: &Pair) -> usize {
        pair.threads.unwrap_or(self.arguments.threads)
    }

    fn ours(&self, pair: &Pair) -> Command {
        let mut command = Command::new(self.program);
        command.args(["bench", "--serve", "--rows", pair.row, "--precision", pair.precision, "--threads", &self.threads(pair).to_string()]);
        command
    }

    fn torch(&self, pair: &Pair, mode: &str) -> Command {
        let threads = self.threads(pair).to_string();
        let mut command = Command::new(&self.arguments.torch);
        command.arg(self.root.join("benchsuite/torch_side.py")).args([pair.row, mode, &threads]).env("OMP_NUM_THREADS", &threads);
        command
    }
}

/// Milliseconds of a program from start to end.
fn whole(mut command: Command) -> Result<f64> {
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let ms = start.elapsed().as_secs_f64() * 1e3;
    ensure!(output.status.success(), "{}", side::last_line(&output.stderr));
    Ok(ms)
}
