//! `smalti rerank "PROMPT" IMAGE...`: pictures of any origin in the order in which they fit a prompt.

use crate::failure::WrongUse;
use crate::output::{print, print_json};
use crate::progress::Reporter;
use crate::{bundle_path, compute};
use serde::Serialize;
use smalti_data::Picture;
use smalti_data::picture::DecodeOptions;
use smalti_pipeline::{BundleFolder, rerank};
use std::path::PathBuf;

/// Sort pictures by how well they fit a prompt
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// What the pictures should show
    prompt: String,
    /// PNG, JPEG, WebP or SVG files
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// The bundle that ranks [default: bundles/pictograms of the repository]
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Print one JSON object: file and score of each picture, the best first
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: compute::Flags,
}

#[derive(Debug)]
pub struct Job {
    prompt: String,
    images: Vec<PathBuf>,
    bundle: PathBuf,
    json: bool,
    compute: compute::Compute,
}

pub fn resolve(flags: Flags) -> anyhow::Result<Job> {
    if flags.prompt.trim().is_empty() {
        return Err(WrongUse("prompt: expected some words, found none".into()).into());
    }
    let compute = flags.compute.resolve()?;
    Ok(Job { prompt: flags.prompt, images: flags.images, bundle: bundle_path::resolve(flags.bundle)?, json: flags.json, compute })
}

#[derive(Serialize)]
struct Output {
    prompt: String,
    bundle: String,
    pictures: Vec<Ranked>,
}

#[derive(Serialize)]
struct Ranked {
    file: String,
    score: f32,
}

pub fn run(job: Job) -> anyhow::Result<()> {
    let bundle = BundleFolder::open(&job.bundle)?;
    let scores = job.compute.run(|| {
        let contrastive = bundle.contrastive(&job.compute.device, "rank pictures")?;
        if let Some(truncation) = rerank::truncation(&contrastive, &job.prompt)? {
            smalti_train::say!("warning: {truncation}");
        }
        let mut reporter = Reporter::new();
        let read = |index: usize| Ok(Picture::open(&job.images[index], &DecodeOptions::default())?);
        rerank::scores_of(&contrastive, &job.prompt, job.images.len(), read, &mut |progress| reporter.pipeline(progress))
    })?;
    let ranked = rerank::order(&scores).into_iter().map(|index| Ranked { file: job.images[index].display().to_string(), score: scores[index] }).collect();
    let output = Output { prompt: job.prompt, bundle: bundle.manifest().id(), pictures: ranked };
    if job.json {
        return print_json(&output);
    }
    print(&output.pictures.iter().map(|ranked| format!("{:.4}  {}", ranked.score, ranked.file)).collect::<Vec<_>>().join("\n"))
}
