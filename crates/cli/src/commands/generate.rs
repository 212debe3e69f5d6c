//! `smalti generate "PROMPT"`: pictures of a prompt, the best kept.

use super::sampling::{self, SamplingFlags};
use super::settings::Settings;
use super::start::{Start, StartFiles, StartFlags};
use crate::interrupt::Interrupt;
use crate::made_files::{contact_sheet, file_stem, film_strip, prepare_folder, write_png};
use crate::output::{grouped, print, print_json};
use crate::preview::{self, When};
use crate::progress::Reporter;
use crate::{bundle_path, compute};
use anyhow::Context;
use serde::Serialize;
use smalti_nn::Precision;
use smalti_pipeline::text_to_image::{self, Estimate, Made, MadePicture, Request, TextToImage, Watch};
use smalti_pipeline::{BundleFolder, Part, Truncation};
use std::cell::RefCell;
use std::path::PathBuf;

/// Make pictures of a prompt
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// What to draw, such as "a red fox, noto style"; the name of a class, for bundles that draw classes; nothing, for those that take no prompt
    #[arg(default_value = "", hide_default_value = true)]
    prompt: String,
    /// The bundle that draws [default: bundles/pictograms of the repository]
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Pictures to draw; Ctrl-C makes do with the batches that are done
    #[arg(long, value_name = "N", default_value_t = 4)]
    count: usize,
    /// Pictures to keep, the best by the bundle's ranking [default: all, in the order drawn]
    #[arg(long, value_name = "M")]
    keep: Option<usize>,
    /// Picture I of a seed is always the same, whatever the count
    #[arg(long, value_name = "S", default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// Folder for the PNGs and the contact sheet
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Show each pixel of the contact sheet and of film strips as N by N: small pictures seen large, without blur
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    enlarge: u8,
    /// Print one JSON object: file, seed, score and image tokens of each picture
    #[arg(long)]
    json: bool,
    /// Check everything but the weights and print what would be made; load and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Show the pictures in the terminal, on stderr; in a terminal also small ones on their way, where the bundle has a diffusion network
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Auto, num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    preview: When,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    start: StartFlags,
    #[command(flatten)]
    compute: compute::Flags,
}

#[derive(Debug)]
pub struct Job {
    bundle: PathBuf,
    /// The bundle whose classifier is asked, if not that one's.
    classifier: Option<PathBuf>,
    request: Request,
    start: Start,
    out: PathBuf,
    enlarge: usize,
    json: bool,
    dry_run: bool,
    preview: When,
    compute: compute::Compute,
}

pub fn resolve(flags: Flags) -> anyhow::Result<Job> {
    let classifier = flags.sampling.classifier();
    let mut request = Request { count: flags.count, keep: flags.keep, seed: flags.seed, ..flags.sampling.request(flags.prompt)? };
    let start = flags.start.read_into(&mut request)?;
    request.validate()?;
    let compute = flags.compute.resolve()?;
    let Flags { out, json, dry_run, preview, .. } = flags;
    let enlarge = flags.enlarge.into();
    Ok(Job { bundle: bundle_path::resolve(flags.bundle)?, classifier, request, start, out, enlarge, json, dry_run, preview, compute })
}

impl Job {
    /// A PNG of this job; `name` is the number of a picture, or `sheet`.
    fn file(&self, name: &str) -> PathBuf {
        self.out.join(format!("{}-{}-{name}.png", file_stem(&self.request.prompt), self.request.seed))
    }
}

pub fn run(job: Job) -> anyhow::Result<()> {
    let bundle = sampling::open(&job.bundle, job.classifier.as_deref())?;
    job.start.check(bundle.manifest(), &job.request)?;
    // What the bundle cannot do is said before any weights are loaded.
    let parts = text_to_image::parts(&bundle, &job.request)?;
    let settings = Settings::of(&bundle, &job.request).context("the bundle was just seen to have a generator")?;
    let settings = Decided { settings, files: job.start.files.clone(), precision: job.compute.precision };
    if job.dry_run {
        let plan = plan(&job, &bundle, parts, settings);
        return if job.json { print_json(&plan) } else { print(&plan.text()) };
    }
    prepare_folder(&job.out)?;
    let interrupt = Interrupt::listen("stopping after the batch in hand, with the pictures drawn so far; once more stops at once, with none", false)?;
    let made = job.compute.run(|| {
        let text_to_image = TextToImage::load(&bundle, &job.compute.device)?;
        let reporter = RefCell::new(Reporter::new().with_looks(job.preview));
        let progress = &mut |progress| reporter.borrow_mut().pipeline(progress);
        let estimate = &mut |estimate: &Estimate| reporter.borrow_mut().estimate(estimate);
        let stop = &|| {
            interrupt.keep();
            interrupt.asked()
        };
        text_to_image.generate_watched(&job.request, &mut Watch { progress, estimate, stop })
    })?;
    made.truncated.iter().for_each(|truncation| smalti_train::say!("warning: {truncation}"));
    let result = write(&job, &made, bundle.manifest().id(), settings)?;
    if job.json {
        print_json(&result)?
    } else {
        print(&result.text())?
    }
    if made.drawn < job.request.count {
        smalti_train::say!("stopped after {} of {} pictures; the same command draws them again, and the others", made.drawn, job.request.count);
        interrupt.end();
    }
    Ok(())
}

/// What besides prompt, seed, number and bundle decides a picture.
#[derive(Clone, Serialize)]
struct Decided {
    #[serde(flatten)]
    settings: Settings,
    #[serde(flatten)]
    files: StartFiles,
    precision: Precision,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Output {
    prompt: String,
    bundle: String,
    seed: u64,
    settings: Decided,
    pictures: Vec<PictureOutput>,
    contact_sheet: String,
    /// Texts that were longer than their reader takes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    truncated: Vec<Truncation>,
}

#[derive(Serialize)]
struct PictureOutput {
    file: String,
    seed: u64,
    index: usize,
    score: Option<f32>,
    image_tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    film_strip: Option<String>,
}

impl Output {
    fn text(&self) -> String {
        let score = |score: Option<f32>| score.map(|score| format!("  score {score:.4}")).unwrap_or_default();
        let mut lines: Vec<String> = self.pictures.iter().map(|picture| format!("{}{}", picture.file, score(picture.score))).collect();
        lines.extend(self.pictures.iter().filter_map(|picture| Some(format!("{}  film strip", picture.film_strip.as_ref()?))));
        lines.push(format!("{}  contact sheet", self.contact_sheet));
        lines.join("\n")
    }
}

/// What `--dry-run` prints.
#[derive(Serialize)]
struct Plan {
    prompt: String,
    bundle: String,
    parts: Vec<PlannedPart>,
    seed: u64,
    settings: Decided,
    count: usize,
    keep: usize,
    /// Of every picture; with `keep` below `count` only the best are written.
    files: Vec<String>,
    contact_sheet: String,
}

#[derive(Serialize)]
struct PlannedPart {
    part: &'static str,
    model: &'static str,
    parameter_count: usize,
}

fn plan(job: &Job, bundle: &BundleFolder, parts: Vec<Part>, settings: Decided) -> Plan {
    let Request { prompt, seed, count, keep, .. } = job.request.clone();
    let manifest = bundle.manifest();
    let planned =
        |part: Part| bundle.summary(part).map(|(weights, model, _)| PlannedPart { part: part.key(), model, parameter_count: weights.parameter_count });
    Plan {
        prompt,
        bundle: manifest.id(),
        parts: parts.into_iter().filter_map(planned).collect(),
        seed,
        settings,
        count,
        keep: keep.unwrap_or(count),
        files: (0..count).map(|index| job.file(&index.to_string()).display().to_string()).collect(),
        contact_sheet: job.file("sheet").display().to_string(),
    }
}

impl Plan {
    fn text(&self) -> String {
        let mut lines = vec![format!("prompt    {}", self.prompt), format!("bundle    {}", self.bundle)];
        lines.extend(self.parts.iter().map(|part| format!("part      {} {}, {} parameters", part.part, part.model, grouped(part.parameter_count))));
        lines.push(format!("seed      {}", self.seed));
        lines.push(format!("settings  {}", self.settings.settings.text()));
        lines.push(format!("precision {}", self.settings.precision.name()));
        lines.push(format!("pictures  {}, of which {} are kept", self.count, self.keep));
        lines.extend(self.files.iter().chain([&self.contact_sheet]).map(|file| format!("file      {file}")));
        lines.join("\n")
    }
}

fn write(job: &Job, made: &Made, bundle_id: String, settings: Decided) -> anyhow::Result<Output> {
    let Request { prompt, seed, .. } = &job.request;
    let texts = vec![
        ("prompt", prompt.clone()),
        ("seed", seed.to_string()),
        ("settings", serde_json::to_string(&settings)?),
        ("bundle", bundle_id.clone()),
        ("Software", concat!("smalti ", env!("CARGO_PKG_VERSION")).to_string()),
    ];
    let mut outputs = Vec::new();
    for MadePicture { picture, index, score, image_tokens, film_strip: way } in &made.pictures {
        let file = job.file(&index.to_string());
        let mut texts = texts.clone();
        texts.insert(2, ("picture", index.to_string()));
        texts.extend(score.map(|score| ("score", score.to_string())));
        write_png(picture, &file, &texts)?;
        let steps = job.file(&format!("{index}-steps"));
        if !way.is_empty() {
            write_png(&film_strip(way)?.enlarged(job.enlarge), &steps, &texts)?;
        }
        outputs.push(PictureOutput {
            file: file.display().to_string(),
            seed: *seed,
            index: *index,
            score: *score,
            image_tokens: image_tokens.clone(),
            film_strip: (!way.is_empty()).then(|| steps.display().to_string()),
        });
    }
    let pictures: Vec<_> = made.pictures.iter().map(|made| made.picture.clone()).collect();
    let sheet = contact_sheet(&pictures)?;
    let contact_sheet = job.file("sheet");
    write_png(&sheet.enlarged(job.enlarge), &contact_sheet, &texts)?;
    preview::show(&sheet, job.preview);
    Ok(Output {
        prompt: prompt.clone(),
        bundle: bundle_id,
        seed: *seed,
        settings,
        pictures: outputs,
        contact_sheet: contact_sheet.display().to_string(),
        truncated: made.truncated.clone(),
    })
}
