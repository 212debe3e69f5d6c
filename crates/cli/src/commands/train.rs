//! `smalti train RECIPE.toml`: trains what a recipe says, into `runs/<name>`.

use crate::compute;
use crate::output::print;
use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use smalti_nn::Precision;
use smalti_train::RecipeFile;
use smalti_train::train_loop::Outcome;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Train a system from a recipe
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// The recipe, such as recipes/vqgan/pictograms.toml
    recipe: PathBuf,
    /// Folder of the run [default: runs/NAME, as the recipe names it]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Change a key of the recipe, such as train.steps=1000; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Lay the recipe's [smoke] table over it: a run of a minute that shows everything works
    #[arg(long)]
    smoke: bool,
    /// Continue the run from its newest valid checkpoint
    #[arg(long)]
    resume: bool,
    /// Check the recipe and print it with every change applied; train nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    compute: compute::Flags,
}

#[derive(Debug)]
pub struct Job {
    training: smalti_train::Job,
    resume: bool,
    dry_run: bool,
    compute: compute::Compute,
    /// What to type to go on after a stop.
    resume_command: String,
}

pub fn resolve(flags: Flags) -> anyhow::Result<Job> {
    let mut overrides = flags.set.clone();
    overrides.extend(flags.compute.precision.map(|precision| format!("train.precision={}", precision.word())));
    let file = RecipeFile::read(&flags.recipe, &overrides, flags.smoke)?;
    let training = smalti_train::Job::resolve(&file, flags.run.clone())?;
    let resume_command = resume_command(&flags);
    let on_cpu = flags.compute.device == compute::Kind::Cpu;
    let compute = flags.compute.resolve()?;
    if training.precision == Precision::Bf16 && !on_cpu {
        return Err(compute::other_than_cpu().into());
    }
    Ok(Job { training, resume: flags.resume, dry_run: flags.dry_run, compute, resume_command })
}

pub fn run(job: Job) -> anyhow::Result<()> {
    let run = &job.training.run;
    if job.dry_run {
        return print(&format!("# run: {}\n{}", run.display(), job.training.recipe));
    }
    let stop = stop_on_interrupt()?;
    match job.compute.run(|| job.training.run(job.resume, &job.compute.device, &stop))? {
        Outcome::Finished => print(&run.join("bundle").display().to_string()),
        Outcome::Stopped { step } => {
            smalti_train::say!("stopped after step {step}, which is saved; to go on: {}", job.resume_command);
            Ok(())
        }
    }
}

/// Set by the first Ctrl-C (or a termination by a scheduler, or the end of the terminal). The second ends the process at once, which costs the work since the
/// last checkpoint and nothing else.
fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let heard = if ignores_hang_up() { vec![SIGINT, SIGTERM] } else { vec![SIGINT, SIGTERM, SIGHUP] };
    let mut signals = Signals::new(heard).context("cannot listen for Ctrl-C")?;
    let asked = Arc::clone(&stop);
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if asked.swap(true, Ordering::Relaxed) {
                std::process::exit(128 + signal);
            }
            smalti_train::say!("stopping after the step in hand, which is saved; once more stops at once, with what was saved last");
        }
    });
    Ok(stop)
}

/// Whether the end of the terminal is nothing to this process, as `nohup` has it; where that cannot be known it stays as it is.
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    ignored.is_none_or(|bits| bits >> (SIGHUP - 1) & 1 == 1)
}

/// What to type to continue: the same flags with `--resume`.
fn resume_command(flags: &Flags) -> String {
    let mut words = vec!["smalti train".to_string(), quoted(&flags.recipe.display().to_string())];
    words.extend(flags.run.iter().map(|run| format!("--run {}", quoted(&run.display().to_string()))));
    words.extend(flags.set.iter().map(|set| format!("--set {}", quoted(set))));
    words.extend(flags.compute.precision.map(|precision| format!("--precision {}", precision.word())));
    words.extend((flags.compute.device != compute::Kind::Cpu).then(|| format!("--device {}", flags.compute.device.word())));
    words.extend(flags.compute.threads.as_ref().map(|threads| format!("--threads {threads}")));
    words.extend(flags.smoke.then(|| "--smoke".to_string()));
    words.push("--resume".to_string());
    words.join(" ")
}

/// One word for a POSIX shell, as it is where nothing in it means something there.
fn quoted(word: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_./=:,+@%".contains(character);
    if !word.is_empty() && word.chars().all(plain) { word.to_string() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("train.steps=100"), "train.steps=100");
        assert_eq!(quoted("model.encoder={ block_count = 2 }"), "'model.encoder={ block_count = 2 }'");
        assert_eq!(quoted("it's [1,2]"), r"'it'\''s [1,2]'");
        assert_eq!(quoted(""), "''");
    }
}
