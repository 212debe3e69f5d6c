//! `smalti data build RECIPE.toml`: assembles a data set from packages on disk.

use crate::output::print;
use crate::progress::Reporter;
use smalti_data::data_recipe::DataRecipe;
use smalti_data::pictograms::Split;
use smalti_data::{dolls, pictograms};
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
        /// Side of the pictures in pixels [default: as the recipe says]
        #[arg(long, value_name = "PIXELS")]
        size: Option<u32>,
    },
}

#[derive(Debug)]
pub struct Job {
    recipe: DataRecipe,
    source: PathBuf,
    out: PathBuf,
}

pub fn resolve(flags: Flags) -> anyhow::Result<Job> {
    let Action::Build { recipe, out, source, size } = flags.action;
    let recipe = DataRecipe::from_file(&recipe)?;
    let recipe = if let Some(size) = size { recipe.with_size(size) } else { recipe };
    Ok(Job { source: source.unwrap_or_else(|| recipe.source_folder().to_path_buf()), recipe, out })
}

pub fn run(job: Job) -> anyhow::Result<()> {
    let mut reporter = Reporter::new();
    let counts = match &job.recipe {
        DataRecipe::Pictograms(config) => {
            let summary = pictograms::build(config, &job.source, &job.out, &mut |done, total| reporter.report("drawing pictograms", done, total))?;
            for (reason, count) in summary.left_out_counts() {
                smalti_train::say!("left out {count}: {reason}");
            }
            let counts: Vec<String> = Split::ALL.iter().map(|&split| format!("{} {}", summary.picture_count(split), split.name())).collect();
            counts.join(", ")
        }
        DataRecipe::Dolls(config) => {
            let summary = dolls::build(config, &job.source, &job.out, &mut |done, total| reporter.report("putting dolls together", done, total))?;
            smalti_train::say!("held out {} of {} combinations of two parts", summary.held_out_combination_count, summary.combination_count);
            format!("{} train, {} pairs", summary.train_count, summary.held_out_count)
        }
    };
    print(&format!("{}: {counts} pictures", job.out.display()))
}
