//! `smalti sheet PROMPTS.txt`: one picture for each line of a file, on one sheet; nobody chooses.

use super::sampling::{self, SamplingFlags};
use super::settings::Settings;
use crate::made_files::{contact_sheet, prepare_folder, write_png};
use crate::output::{print, print_json};
use crate::preview::{self, When};
use crate::progress::Reporter;
use crate::{bundle_path, compute};
use anyhow::{Context, bail};
use serde::Serialize;
use smalti_pipeline::BundleFolder;
use smalti_pipeline::text_to_image::{self, Request, TextToImage};
use std::path::{Path, PathBuf};

/// Draw one picture for each line of a file, on one sheet
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// A text file with a prompt in each line
    #[arg(value_name = "PROMPTS")]
    prompts: PathBuf,
    /// The bundle that draws [default: bundles/pictograms of the repository]
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Pictures drawn for each prompt, of which the best by the bundle's ranking is shown
    #[arg(long, value_name = "K", default_value_t = 1)]
    candidates: usize,
    /// The first prompt's; each further prompt takes the next number
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Show each pixel as N by N: small pictures seen large, without blur
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    enlarge: u8,
    /// The PNG to write
    #[arg(long, value_name = "FILE", default_value = "sheet.png")]
    out: PathBuf,
    /// Print one JSON object: the sheet, and prompt, seed, number, score and image tokens of each picture
    #[arg(long)]
    json: bool,
    /// Show the sheet in the terminal, on stderr
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Auto, num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    preview: When,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    compute: compute::Flags,
}

#[derive(Debug)]
pub struct Job {
    /// One for each prompt, in its order.
    requests: Vec<Request>,
    /// In the file, counted from 1: where each request's prompt stands.
    lines: Vec<usize>,
    bundle: PathBuf,
    /// The bundle whose classifier is asked, if not that one's.
    classifier: Option<PathBuf>,
    enlarge: usize,
    out: PathBuf,
    json: bool,
    preview: When,
    compute: compute::Compute,
}

pub fn resolve(flags: Flags) -> anyhow::Result<Job> {
    let text = std::fs::read_to_string(&flags.prompts).with_context(|| flags.prompts.display().to_string())?;
    let keep = (flags.candidates > 1).then_some(1);
    let classifier = flags.sampling.classifier();
    let template = Request { count: flags.candidates, keep, seed: flags.seed, ..flags.sampling.request("")? };
    let (lines, prompts): (Vec<usize>, Vec<&str>) = (1..).zip(text.lines().map(str::trim)).filter(|(_, line)| !line.is_empty()).unzip();
    let request = |(prompt, index): (&str, u64)| Request { prompt: prompt.to_string(), seed: flags.seed.wrapping_add(index), ..template.clone() };
    let requests: Vec<Request> = prompts.into_iter().zip(0..).map(request).collect();
    if requests.is_empty() {
        bail!("{}: expected a prompt in each line, found none", flags.prompts.display());
    }
    requests.iter().try_for_each(Request::validate)?;
    let compute = flags.compute.resolve()?;
    Ok(Job {
        requests,
        lines,
        bundle: bundle_path::resolve(flags.bundle)?,
        classifier,
        enlarge: flags.enlarge.into(),
        out: flags.out,
        json: flags.json,
        preview: flags.preview,
        compute,
    })
}

#[derive(Serialize)]
struct Output {
    sheet: String,
    bundle: String,
    pictures: Vec<PictureOutput>,
}

#[derive(Serialize)]
struct PictureOutput {
    prompt: String,
    seed: u64,
    index: usize,
    score: Option<f32>,
    image_tokens: Vec<u32>,
}

pub fn run(job: Job) -> anyhow::Result<()> {
    let bundle = sampling::open(&job.bundle, job.classifier.as_deref())?;
    job.requests.iter().try_for_each(|request| text_to_image::parts(&bundle, request).map(drop))?;
    prepare_folder(job.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    let (pictures, outputs) = job.compute.run(|| draw(&job, &bundle))?;
    let sheet = contact_sheet(&pictures)?;
    let request = &job.requests[0];
    let texts = [
        ("bundle", bundle.manifest().id()),
        ("seed", request.seed.to_string()),
        ("settings", serde_json::to_string(&Settings::of(&bundle, request))?),
        ("precision", job.compute.precision.name().to_string()),
        ("prompts", job.requests.iter().map(|request| request.prompt.as_str()).collect::<Vec<_>>().join("\n")),
    ];
    write_png(&sheet, &job.out, &texts)?;
    preview::show(&sheet, job.preview);
    let output = Output { sheet: job.out.display().to_string(), bundle: bundle.manifest().id(), pictures: outputs };
    if job.json { print_json(&output) } else { print(&output.sheet) }
}

fn draw(job: &Job, bundle: &BundleFolder) -> anyhow::Result<(Vec<smalti_data::Picture>, Vec<PictureOutput>)> {
    let text_to_image = TextToImage::load(bundle, &job.compute.device)?;
    let mut reporter = Reporter::new();
    let (mut pictures, mut outputs) = (Vec::new(), Vec::new());
    for requests in job.requests.chunks(job.requests[0].count_in_batch()) {
        for (request, made) in requests.iter().zip(text_to_image.generate_all(requests, &mut |_| {})?) {
            let line = job.lines[outputs.len()]; // each prompt has one picture
            made.truncated.iter().for_each(|truncation| smalti_train::say!("warning: line {line}: {truncation}"));
            for made in made.pictures {
                let (prompt, seed) = (request.prompt.clone(), request.seed);
                outputs.push(PictureOutput { prompt, seed, index: made.index, score: made.score, image_tokens: made.image_tokens });
                pictures.push(made.picture.enlarged(job.enlarge));
            }
        }
        reporter.report("drawing a picture for each prompt", pictures.len(), job.requests.len());
    }
    Ok((pictures, outputs))
}
