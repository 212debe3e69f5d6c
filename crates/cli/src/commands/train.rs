//! `smalti train RECIPE.toml`: trains what a recipe says, into `runs/<name>`.

use crate::compute;
use crate::interrupt::Interrupt;
use crate::output::print;
use smalti_nn::Precision;
use smalti_train::RecipeFile;
use smalti_train::train_loop::Outcome;
use std::path::PathBuf;

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
    let interrupt = Interrupt::listen("stopping after the step in hand, which is saved; once more stops at once, with what was saved last", true)?;
    match job.compute.run(|| job.training.run(job.resume, &job.compute.device, &interrupt.asked))? {
        Outcome::Finished => print(&run.join("bundle").display().to_string()),
        Outcome::Stopped { step } => {
            smalti_train::say!("stopped after step {step}, which is saved; to go on: {}", job.resume_command);
            Ok(())
        }
    }
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
