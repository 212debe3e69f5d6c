//! `smalti evaluate --bundle DIR --data DIR`: how good a bundle is on held-out pictures, with the real pictures' own figures beside it; with `--sweep`, how good
//! every way of drawing with it is.
//!
//! Reading order:
mod instruments; // what measuring needs, loaded once
mod split; //       held-out pictures and what is known of them
mod sweep; //       a grid of ways of drawing

pub(super) use instruments::{InstrumentFlags, Instruments};
pub(super) use split::{Real, real_picture, real_pictures, splits};

use super::sampling::{self, SamplingFlags};
use crate::compute::{self, Compute};
use crate::failure::WrongUse;
use crate::made_files::{contact_sheet, prepare_folder, write_png};
use crate::output::{print, print_json};
use crate::progress::Reporter;
use anyhow::{Context, bail};
use burn::tensor::Device;
use smalti_data::Picture;
use smalti_data::dataset::Dataset;
use smalti_data::dolls::Parts;
use smalti_metrics::{Axis, CodeCounts, CodebookUsage, PictureKind, PictureShape, Reconstruction, ReconstructionMeter, Report, SplitReport, lpips};
use smalti_models::perceptual::lpips::Lpips;
use smalti_models::perceptual::vgg;
use smalti_nn::weights::{apply, safetensors};
use smalti_nn::{Initializer, Precision, precision, weights::write_atomically};
use smalti_pipeline::reconstruct::{Reconstruction as Reconstructed, reconstruct};
use smalti_pipeline::text_to_image::Request;
use smalti_pipeline::{BundleFolder, ImageTokenizerPart};
use split::Split;
use std::path::{Path, PathBuf};
use sweep::Way;

/// Pictures on a sheet that `--out` keeps.
const SHEET_COUNT: usize = 64;

/// Measure a bundle on held-out captioned pictures
///
/// Draws one picture for each held-out one and reports R-precision and CLIP score by a judge (of bundles that draw classes: class accuracy), Frechet distance,
/// precision, recall and variety, and how well the image tokenizer gives the real pictures back; beside each figure stands the same figure of the real pictures.
/// Of a bundle without a generator the reconstructions are measured in place of drawn pictures.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// The bundle to measure
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Held-out pictures, captioned unless the bundle takes no prompt; with the subfolders pairs and concepts (as `smalti data build` makes them), each is
    /// measured on its own
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Pictures of each split, evenly spread over it
    #[arg(long, value_name = "N", default_value_t = 500)]
    count: usize,
    /// Pictures drawn for each caption, of which the best by the bundle's ranking counts
    #[arg(long, value_name = "K", default_value_t = 1)]
    candidates: usize,
    /// Decides the pictures and what is drawn at random for the figures
    #[arg(long, value_name = "S", default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// LPIPS weights, from `smalti import --as lpips` [default: LPIPS is not measured]
    #[arg(long, value_name = "FILE")]
    lpips: Option<PathBuf>,
    /// Draw with each of these values of a sampling flag and compare, such as guidance-scale=1,2,4; `default` is as without the flag; given again, every
    /// combination is drawn. Into --out go sweep.csv, sweep.svg and sheets; what is there already is not drawn again
    #[arg(long, value_name = "NAME=V1,V2", value_parser = sweep::axis, requires = "out", conflicts_with = "lpips")]
    sweep: Vec<Axis>,
    /// Folder for the report and sheets of drawn and real pictures [default: nothing is kept]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    instruments: InstrumentFlags,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    compute: compute::Flags,
}

#[derive(Debug)]
pub struct Job {
    bundle: PathBuf,
    /// The bundle whose classifier is asked, if not that one's.
    classifier: Option<PathBuf>,
    data: PathBuf,
    count: usize,
    /// The prompt is each caption's.
    request: Request,
    /// Of a sweep, which draws in `ways` and not as `request` says.
    axes: Vec<Axis>,
    ways: Vec<Way>,
    instruments: InstrumentFlags,
    lpips: Option<PathBuf>,
    out: Option<PathBuf>,
    json: bool,
    compute: Compute,
}

pub fn resolve(flags: Flags) -> anyhow::Result<Job> {
    if flags.count < 4 {
        return Err(WrongUse(format!("--count: expected at least 4, from which distances can be computed, found {}", flags.count)).into());
    }
    let request = |sampling: SamplingFlags, candidates: Option<usize>| {
        let count = candidates.unwrap_or(flags.candidates);
        Ok(Request { count, keep: (count > 1).then_some(1), seed: flags.seed, ..sampling.request("a caption")? })
    };
    let ways = if flags.sweep.is_empty() { Vec::new() } else { sweep::ways(&flags.sweep, &flags.sampling, request)? };
    let request = match ways.first() {
        Some(way) => way.request.clone(),
        None => request(flags.sampling.clone(), None)?,
    };
    request.validate()?;
    Ok(Job {
        compute: flags.compute.resolve()?,
        bundle: flags.bundle,
        classifier: flags.sampling.classifier(),
        data: flags.data,
        count: flags.count,
        request,
        axes: flags.sweep,
        ways,
        instruments: flags.instruments,
        lpips: flags.lpips,
        out: flags.out,
        json: flags.json,
    })
}

pub fn run(job: Job) -> anyhow::Result<()> {
    let bundle = sampling::open(&job.bundle, job.classifier.as_deref())?;
    if let Some(out) = &job.out {
        prepare_folder(out)?;
    }
    if let (Some(out), false) = (&job.out, job.axes.is_empty()) {
        let sweep = job.compute.run(|| sweep::run(&job, &bundle, out))?;
        return if job.json { print_json(&sweep) } else { print(&sweep.to_string()) };
    }
    let report = job.compute.run(|| evaluate(&job, &bundle))?;
    if let Some(out) = &job.out {
        let path = out.join("evaluation.json");
        let text = serde_json::to_string_pretty(&report)?;
        write_atomically(&path, |writer| writer.write_all(text.as_bytes())).with_context(|| path.display().to_string())?;
    }
    if job.json { print_json(&report) } else { print(&report.to_string()) }
}

/// Why nothing can be measured, and what to do.
fn judge_hint(bundle: &BundleFolder) -> String {
    let path = bundle.path().display();
    format!("{path}: expected a `judge`, whose features distances need, found none; hint: name a bundle that has one with --judge DIR, or --inception FILE")
}

/// What is measured of the image tokenizer, if the bundle has one.
struct ImageTokenizer {
    part: ImageTokenizerPart,
    lpips: Option<Lpips>,
}

fn evaluate(job: &Job, bundle: &BundleFolder) -> anyhow::Result<Report> {
    let device = &job.compute.device;
    let manifest = bundle.manifest();
    let only_reconstructs = manifest.generator.is_none() && manifest.image_tokenizer.is_some();
    let Request { prompt, seed, batch_size, .. } = job.request.clone();
    if only_reconstructs && job.request != (Request { seed, batch_size, ..Request::new(prompt) }) {
        let path = bundle.path().display();
        bail!(WrongUse(format!(
            "{path}: expected no flags about drawing, for this bundle has no `generator` and its reconstructions are measured, found some"
        )));
    }
    let requests: &[&Request] = if only_reconstructs { &[] } else { &[&job.request] };
    let instruments = Instruments::load(bundle, &job.instruments, requests, device)?;
    if instruments.features().is_none() {
        bail!(judge_hint(bundle));
    }
    let part = manifest.image_tokenizer.as_ref().map(|_| bundle.for_inference().image_tokenizer(device, "reconstruct pictures")).transpose()?;
    let lpips = job.lpips.as_deref().map(|path| lpips_network(path, device)).transpose()?;
    let image_tokenizer = part.map(|part| ImageTokenizer { part, lpips });
    let datasets = splits(&job.data, instruments.prompts.caption_rule())?;
    let size = instruments.image_size();
    let parts = split::parts(&job.data)?.filter(|parts| {
        let fits = parts.size() == size;
        if !fits {
            smalti_train::say!(
                "warning: composition is not measured: expected pictures of {} pixels as the dolls', found a bundle that draws {size}",
                parts.size()
            );
        }
        fits
    });
    let splits = datasets.iter().map(|(name, dataset)| evaluate_split(job, &instruments, image_tokenizer.as_ref(), parts.as_ref(), name, dataset));
    Ok(Report {
        bundle: manifest.id(),
        judge: instruments.judge_name(),
        precision: job.compute.precision.name().to_string(),
        pictures: instruments.pictures(),
        splits: splits.collect::<anyhow::Result<_>>()?,
    })
}

fn evaluate_split(
    job: &Job,
    instruments: &Instruments,
    image_tokenizer: Option<&ImageTokenizer>,
    parts: Option<&Parts>,
    name: &str,
    dataset: &Dataset,
) -> anyhow::Result<SplitReport> {
    let split = Split::prepare(instruments, name, dataset, job.count, job.request.seed)?;
    let (mut measured, mut reconstructed) = (None, Vec::new());
    if let Some(image_tokenizer) = image_tokenizer {
        reconstructed = reconstructions(image_tokenizer, name, &split.real)?;
        measured = Some(measure_image_tokenizer(job, image_tokenizer, &reconstructed, &split.real)?);
    }
    let pictures: Vec<Picture> = match instruments.pictures() {
        PictureKind::Generated => {
            let drawn = instruments.draw(&format!("{name}: drawing a picture for each caption"), &job.request, &split.captions)?;
            drawn.into_iter().map(|drawn| drawn.picture).collect()
        }
        PictureKind::Reconstructed => reconstructed.into_iter().map(|reconstructed| reconstructed.picture).collect(),
    };
    if let Some(out) = &job.out {
        for (kind, pictures) in [(instruments.pictures().name(), &pictures), ("real", &split.real)] {
            write_png(&contact_sheet(&pictures[..pictures.len().min(SHEET_COUNT)])?, &out.join(format!("{name}-{kind}.png")), &[])?;
        }
    }
    let (reconstruction, codebook) = measured.unzip();
    let features = instruments.features().context("whether there are features was seen before")?;
    Ok(SplitReport {
        split: name.to_string(),
        generation: split.measure(instruments, &pictures)?,
        composition: parts.map(|parts| split.composition(parts, &pictures)).transpose()?,
        conventions: features.conventions(format!("{} real pictures of {}", split.real.len(), split.place)),
        reconstruction,
        codebook: codebook.flatten(),
    })
}

fn reconstructions(image_tokenizer: &ImageTokenizer, name: &str, real: &[Picture]) -> anyhow::Result<Vec<Reconstructed>> {
    let mut reporter = Reporter::new();
    let stage = format!("{name}: reconstructing");
    Ok(reconstruct(&image_tokenizer.part, real, &mut |progress| reporter.report(&stage, progress.done, progress.total))?)
}

fn measure_image_tokenizer(
    job: &Job,
    image_tokenizer: &ImageTokenizer,
    reconstructions: &[Reconstructed],
    real: &[Picture],
) -> anyhow::Result<(Reconstruction, Option<CodebookUsage>)> {
    let ImageTokenizer { part: image_tokenizer, lpips: lpips_network } = image_tokenizer;
    let mut meter = ReconstructionMeter::default();
    let mut counts = image_tokenizer.model.discrete().map(|model| CodeCounts::new(model.code_count()));
    for (reconstruction, original) in reconstructions.iter().zip(real) {
        let (made, original) = (reconstruction.picture.to_f32(), original.to_f32());
        let shape = PictureShape { height: reconstruction.picture.height, width: reconstruction.picture.width, channels: 3 };
        meter.add(&made, &original, shape)?;
        if let Some(network) = lpips_network {
            meter.add_lpips(&precision::within(Precision::F32, || lpips::lpips(network, &made, &original, shape, &job.compute.device))?);
        }
        counts.iter_mut().try_for_each(|counts| counts.add(&reconstruction.image_tokens))?;
    }
    Ok((meter.finish()?, counts.map(|counts| counts.usage()).transpose()?))
}

fn lpips_network(path: &Path, device: &Device) -> anyhow::Result<Lpips> {
    let tensors = safetensors::read(path)?;
    let network = Lpips::new(&vgg::Config::vgg16(), &mut Initializer::new(0, device))?;
    apply(network, tensors, device).with_context(|| path.display().to_string())
}
