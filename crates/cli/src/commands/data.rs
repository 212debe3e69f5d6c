//! `smalti data build RECIPE.toml`: assembles a data set from packages on disk.

use crate::output::print;
use crate::progress::Reporter;
use smalti_data::pictograms::{self, Config, Split};
use std::path::PathBuf;

/// Make data sets
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Action {
    /// Build the shards of a data recipe
    Build {
        /// The data recipe, such as recipes/data/pictograms.toml
        recipe: PathBuf,
        /// Folder for the shards, new or empty
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Folder with the packages the recipe names [default: as the recipe says]
        #[arg(long, value_name = "DIR")]
        source: Option<PathBuf>,
    },
}

#[derive(Debug)]
pub struct Job {
    config: Config,
    source: PathBuf,
    out: PathBuf,
}

pub fn resolve(flags: Flags) -> anyhow::Result<Job> {
    let Action::Build { recipe, out, source } = flags.action;
    let config = Config::from_file(&recipe)?;
    Ok(Job { source: source.unwrap_or_else(|| config.source_folder.clone()), config, out })
}

pub fn run(job: Job) -> anyhow::Result<()> {
    let mut reporter = Reporter::new();
    let summary = pictograms::build(&job.config, &job.source, &job.out, &mut |done, total| reporter.report("drawing pictograms", done, total))?;
    for (reason, count) in summary.left_out_counts() {
        eprintln!("left out {count}: {reason}");
    }
    let counts: Vec<String> = Split::ALL.iter().map(|&split| format!("{} {}", summary.picture_count(split), split.name())).collect();
    print(&format!("{}: {} pictures", job.out.display(), counts.join(", ")))
}
