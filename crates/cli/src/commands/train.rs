//! `smalti train RECIPE.toml`: trains what a recipe says, into `runs/<name>`.

use anyhow::Context;
use burn::tensor::Device;
use smalti_train::train_loop::Outcome;
use smalti_train::{Job, RecipeFile};
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
}

pub fn run(flags: Flags) -> anyhow::Result<()> {
    let file = RecipeFile::read(&flags.recipe, &flags.set, flags.smoke)?;
    let job = Job::resolve(&file, flags.run.clone())?;
    if flags.dry_run {
        print!("# run: {}\n{}", job.run.display(), job.recipe);
        return Ok(());
    }
    let stop = stop_on_interrupt()?;
    match job.run(flags.resume, &Device::default(), &stop)? {
        Outcome::Finished => println!("{}", job.run.join("bundle").display()),
        Outcome::Stopped { step } => {
            eprintln!("stopped after step {step}, which is saved; to go on: {}", resume_command(&flags));
        }
    }
    Ok(())
}

/// Set by the first Ctrl-C; the second ends the process at once, which costs the work since the last checkpoint and nothing else.
fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("finishing this step, then saving; Ctrl-C again to stop at once");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(stop)
}

/// What to type to continue: the same flags with `--resume`.
fn resume_command(flags: &Flags) -> String {
    let mut words = vec!["smalti train".to_string(), flags.recipe.display().to_string()];
    words.extend(flags.run.iter().map(|run| format!("--run {}", run.display())));
    words.extend(flags.set.iter().map(|set| format!("--set {set}")));
    words.extend(flags.smoke.then(|| "--smoke".to_string()));
    words.push("--resume".to_string());
    words.join(" ")
}
