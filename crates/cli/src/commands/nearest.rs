//! `smalti nearest --bundle DIR --training DIR --data DIR`: does a bundle draw, or does it copy? Beside each drawn picture stands the training picture nearest
//! to it; held-out real pictures, which cannot be copies, say how near is near.

use super::evaluate::{InstrumentFlags, Instruments, Real, real_picture, real_pictures, splits};
use super::sampling::{self, SamplingFlags};
use crate::compute::{self, Compute};
use crate::failure::WrongUse;
use crate::made_files::{prepare_folder, write_png};
use crate::output::{print, print_json};
use crate::progress::Reporter;
use anyhow::Context;
use serde::Serialize;
use smalti_data::Picture;
use smalti_data::dataset::{self, CaptionRule, Dataset, DatasetConfig};
use smalti_data::grid::{GridOptions, assemble};
use smalti_data::numbers::with_number_below;
use smalti_data::resize::{Filter, resize};
use smalti_metrics::{FeatureNetwork, Features, Nearest};
use smalti_nn::weights::write_atomically;
use smalti_pipeline::BundleFolder;
use smalti_pipeline::text_to_image::Request;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Training pictures that are in memory at once.
const BATCH_SIZE: usize = 32;
/// Pictures are compared at this many pixels a side at most: copies do not differ in detail, and memory and time grow with the square.
const COMPARED_SIZE: usize = 64;
/// Side of a picture on the sheet, at least, so that its number fits below it.
const SHOWN_SIZE: usize = 64;
/// Pictures with their neighbours beside each other on the sheet.
const SHEET_COLUMNS: usize = 4;

/// Show how far drawn pictures are from those a bundle was trained on
///
/// Beside each drawn picture stands the training picture that is nearest in pixels and the one that is nearest in a judge's features. How far held-out real
/// pictures are from the training pictures is the reference: a bundle that draws is about as far, one that copies is nearer.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// The bundle that draws
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// The pictures it was trained on
    #[arg(long, value_name = "DIR")]
    training: PathBuf,
    /// Held-out pictures; their captions are the prompts
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Take the captions of training pictures as prompts: what is copied is copied most easily so
    #[arg(long)]
    training_captions: bool,
    /// Pictures drawn, and held-out pictures to compare with
    #[arg(long, value_name = "N", default_value_t = 64)]
    count: usize,
    /// Pictures drawn for each prompt, of which the best by the bundle's ranking counts
    #[arg(long, value_name = "K", default_value_t = 1)]
    candidates: usize,
    /// Decides the pictures
    #[arg(long, value_name = "S", default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// Folder for nearest.json, nearest.csv and the sheet
    #[arg(long, value_name = "DIR", default_value = "nearest")]
    out: PathBuf,
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
    training: PathBuf,
    data: PathBuf,
    training_captions: bool,
    count: usize,
    request: Request,
    out: PathBuf,
    json: bool,
    instruments: InstrumentFlags,
    compute: Compute,
}

pub fn resolve(flags: Flags) -> anyhow::Result<Job> {
    if flags.count == 0 {
        return Err(WrongUse("--count: expected at least 1, found 0".into()).into());
    }
    let keep = (flags.candidates > 1).then_some(1);
    let classifier = flags.sampling.classifier();
    let request = Request { count: flags.candidates, keep, seed: flags.seed, ..flags.sampling.request("a caption")? };
    request.validate()?;
    let Flags { bundle, training, data, training_captions, count, out, json, instruments, compute, .. } = flags;
    Ok(Job { bundle, classifier, training, data, training_captions, count, request, out, json, instruments, compute: compute.resolve()? })
}

pub fn run(job: Job) -> anyhow::Result<()> {
    let bundle = sampling::open(&job.bundle, job.classifier.as_deref())?;
    prepare_folder(&job.out)?;
    let (report, sheet) = job.compute.run(|| find(&job, &bundle))?;
    let write = |name: &str, text: &str| {
        let path = job.out.join(name);
        write_atomically(&path, |writer| writer.write_all(text.as_bytes())).with_context(|| path.display().to_string())
    };
    write("nearest.json", &serde_json::to_string_pretty(&report)?)?;
    write("nearest.csv", &report.csv())?;
    write_png(&sheet, &job.out.join("nearest.png"), &[("bundle", report.bundle.clone()), ("training", report.training.clone())])?;
    if job.json { print_json(&report) } else { print(&report.text(&job.out)) }
}

/// What `nearest.json` holds.
#[derive(Serialize)]
struct Report {
    bundle: String,
    training: String,
    training_count: usize,
    data: String,
    /// How pictures were compared: pixels, and features where there is a network of them.
    comparisons: Vec<Comparison>,
    /// Sorted: the most suspicious first.
    drawn: Vec<Entry>,
    held_out: Vec<Entry>,
}

#[derive(Serialize)]
struct Comparison {
    name: &'static str,
    /// What else decides the distances.
    conventions: String,
    drawn: Spread,
    held_out: Spread,
    /// Of the drawn pictures, those that are nearer to a training picture than 19 of 20 held-out ones are; 0.05 is no sign of copying.
    share_near: f64,
}

/// Of the distances to the nearest training picture.
#[derive(Clone, Copy, Serialize)]
struct Spread {
    least: f64,
    twentieth: f64,
    median: f64,
}

/// A picture and its nearest training pictures, one for each comparison.
#[derive(Serialize)]
struct Entry {
    /// Its number among the drawn pictures, or its key.
    picture: String,
    caption: String,
    nearest: Vec<Found>,
}

#[derive(Clone, Serialize)]
struct Found {
    training_picture: String,
    distance: f64,
    #[serde(skip)]
    index: usize,
}

/// A way of comparing pictures.
enum Measure<'a> {
    Pixels { size: usize },
    Features(&'a FeatureNetwork),
}

impl Measure<'_> {
    fn features(&self, pictures: &[Picture]) -> anyhow::Result<Features> {
        match self {
            Self::Pixels { size } => {
                let values = pictures.iter().flat_map(|picture| resize(picture, *size, *size, Filter::Area).rgb).map(f32::from).collect();
                Ok(Features::new(size * size * 3, values)?)
            }
            Self::Features(network) => Ok(network.features(pictures)?),
        }
    }

    /// Of pixels, the root of the mean square, in grey levels of 255; of features, the length of the difference.
    fn distance(&self, squared: f64) -> f64 {
        match self {
            Self::Pixels { size } => (squared / (size * size * 3) as f64).sqrt(),
            Self::Features(_) => squared.sqrt(),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Pixels { .. } => "pixels",
            Self::Features(_) => "features",
        }
    }

    fn conventions(&self, training: &str) -> String {
        match self {
            Self::Pixels { size } => format!("root mean square difference of 8-bit values at {size} x {size}"),
            Self::Features(network) => network.conventions(training).to_string(),
        }
    }
}

/// Draws, streams over the training pictures once, and lays everything side by side.
fn find(job: &Job, bundle: &BundleFolder) -> anyhow::Result<(Report, Picture)> {
    let instruments = Instruments::load(bundle, &job.instruments, &[&job.request], &job.compute.device)?;
    let size = instruments.image_size();
    let mut measures = vec![Measure::Pixels { size: size.min(COMPARED_SIZE) }];
    match instruments.features() {
        Some(network) => measures.push(Measure::Features(network)),
        None => smalti_train::say!(
            "warning: pictures are compared pixel by pixel only; hint: name a bundle with a judge with --judge DIR to compare what they show"
        ),
    }
    let rule = instruments.prompts.caption_rule();
    let training_rule = if job.training_captions { rule } else { CaptionRule::Optional };
    let training = dataset::open(&DatasetConfig { captions: training_rule, ..DatasetConfig::new(&job.training) })?;
    let held_out = held_out(job, rule, size)?;
    let captions: Vec<String> = if job.training_captions {
        real_pictures(&training, job.count, rule, size)?.into_iter().map(|real| real.caption).collect()
    } else {
        held_out.iter().map(|real| real.caption.clone()).collect()
    };
    let drawn = instruments.draw("drawing pictures", &job.request, &captions)?;
    let pictures: Vec<Picture> = drawn.into_iter().map(|drawn| drawn.picture).chain(held_out.iter().map(|real| real.picture.clone())).collect();

    let mut nearest = measures.iter().map(|measure| Ok(Nearest::new(measure.features(&pictures)?))).collect::<anyhow::Result<Vec<_>>>()?;
    stream(&training, size, |batch| nearest.iter_mut().zip(&measures).try_for_each(|(nearest, measure)| anyhow::Ok(nearest.add(&measure.features(batch)?)?)))?;
    let neighbours = nearest.into_iter().map(|nearest| nearest.finish().context("a data set is never empty")).collect::<anyhow::Result<Vec<_>>>()?;
    let found = |picture: usize| -> Vec<Found> {
        let of_measure = |(neighbours, measure): (&Vec<smalti_metrics::Neighbour>, &Measure)| {
            let neighbour = neighbours[picture];
            let distance = measure.distance(neighbour.squared_distance);
            Found { training_picture: training.key(neighbour.index).to_string(), distance, index: neighbour.index }
        };
        neighbours.iter().zip(&measures).map(of_measure).collect()
    };
    let count = captions.len();
    let mut drawn: Vec<Entry> =
        captions.into_iter().enumerate().map(|(index, caption)| Entry { picture: index.to_string(), caption, nearest: found(index) }).collect();
    let held_out: Vec<Entry> =
        held_out.into_iter().enumerate().map(|(index, real)| Entry { picture: real.key, caption: real.caption, nearest: found(count + index) }).collect();
    let comparisons = measures.iter().enumerate().map(|(place, measure)| compare(measure, place, &training, &drawn, &held_out)).collect();
    // What pictures show counts more than where their pixels are.
    let decisive = measures.len() - 1;
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&one, &other| drawn[one].nearest[decisive].distance.total_cmp(&drawn[other].nearest[decisive].distance));
    let sheet = sheet(&order, &pictures, &drawn, &training, size)?;
    drawn.sort_by(|one, other| one.nearest[decisive].distance.total_cmp(&other.nearest[decisive].distance));
    let (training_place, data) = (job.training.display().to_string(), job.data.display().to_string());
    let report = Report { bundle: bundle.manifest().id(), training: training_place, training_count: training.len(), data, comparisons, drawn, held_out };
    Ok((report, sheet))
}

/// Evenly from all splits.
fn held_out(job: &Job, rule: CaptionRule, size: usize) -> anyhow::Result<Vec<Real>> {
    let splits = splits(&job.data, rule)?;
    let mut pictures = Vec::new();
    for (place, (_, dataset)) in splits.iter().enumerate() {
        let share = job.count * (place + 1) / splits.len() - job.count * place / splits.len();
        pictures.extend(real_pictures(dataset, share, rule, size)?);
    }
    Ok(pictures)
}

/// All pictures of a data set in its order, some at a time.
fn stream(dataset: &Dataset, size: usize, mut each: impl FnMut(&[Picture]) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut reporter = Reporter::new();
    let mut start = 0;
    while start < dataset.len() {
        let end = dataset.len().min(start + BATCH_SIZE);
        let batch = (start..end).map(|index| Ok(real_picture(dataset, index, CaptionRule::Optional, size)?.picture)).collect::<anyhow::Result<Vec<_>>>()?;
        each(&batch)?;
        start = end;
        reporter.report("comparing with training pictures", end, dataset.len());
    }
    Ok(())
}

fn compare(measure: &Measure, place: usize, training: &Dataset, drawn: &[Entry], held_out: &[Entry]) -> Comparison {
    let sorted = |entries: &[Entry]| {
        let mut distances: Vec<f64> = entries.iter().map(|entry| entry.nearest[place].distance).collect();
        distances.sort_by(f64::total_cmp);
        distances
    };
    let (drawn, held_out) = (sorted(drawn), sorted(held_out));
    let limit = Spread::of(&held_out).twentieth;
    let near_count = drawn.iter().filter(|&&distance| distance < limit).count();
    let conventions = measure.conventions(&format!("{} pictures of {}", training.len(), training.path().display()));
    let share_near = near_count as f64 / drawn.len().max(1) as f64;
    Comparison { name: measure.name(), conventions, drawn: Spread::of(&drawn), held_out: Spread::of(&held_out), share_near }
}

impl Spread {
    /// Of sorted distances, at least one.
    fn of(sorted: &[f64]) -> Self {
        let at = |share: f64| sorted.get(((sorted.len().saturating_sub(1)) as f64 * share).round() as usize).copied().unwrap_or(f64::NAN);
        Self { least: at(0.0), twentieth: at(0.05), median: at(0.5) }
    }
}

/// Each picture with its nearest ones, distances below, the most suspicious first.
fn sheet(order: &[usize], pictures: &[Picture], drawn: &[Entry], training: &Dataset, size: usize) -> anyhow::Result<Picture> {
    let shown_size = size.max(SHOWN_SIZE.div_ceil(size) * size);
    let shown = |picture: &Picture, number: &str| {
        // Small pictures are enlarged without blur: their pixels are what is compared.
        with_number_below(&picture.enlarged(shown_size / size), number, (shown_size / 32).max(1))
    };
    let mut groups = Vec::new();
    for &index in order {
        let mut cells = vec![shown(&pictures[index], &drawn[index].picture)];
        for (place, found) in drawn[index].nearest.iter().enumerate() {
            let real = real_picture(training, found.index, CaptionRule::Optional, size)?;
            // Grey levels need one digit after the point, unit vectors three.
            let digits = if place == 0 { 1 } else { 3 };
            cells.push(shown(&real.picture, &format!("{:.digits$}", found.distance)));
        }
        groups.push(assemble(&cells, &GridOptions { column_count: cells.len(), gap: 1, background: [255; 3] })?);
    }
    Ok(assemble(&groups, &GridOptions { column_count: SHEET_COLUMNS, gap: 6, background: [225; 3] })?)
}

impl Report {
    /// A line for each drawn and each held-out picture.
    fn csv(&self) -> String {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let mut text = String::from("kind,picture,caption");
        for comparison in &self.comparisons {
            let _ = write!(text, ",{0}_distance,{0}_training_picture", comparison.name);
        }
        text.push('\n');
        for (kind, entries) in [("drawn", &self.drawn), ("held_out", &self.held_out)] {
            for entry in entries {
                let _ = write!(text, "{kind},{},{}", quoted(&entry.picture), quoted(&entry.caption));
                entry.nearest.iter().for_each(|found| {
                    let _ = write!(text, ",{},{}", found.distance, quoted(&found.training_picture));
                });
                text.push('\n');
            }
        }
        text
    }

    fn text(&self, out: &Path) -> String {
        let mut lines = vec![format!("bundle    {}", self.bundle), format!("training  {} pictures of {}", self.training_count, self.training)];
        lines.push(format!("{:<12}{:<26}{:<26}nearer than 19 of 20 held out", "nearest in", "drawn: least, median", "held out: least, median"));
        for Comparison { name, drawn, held_out, share_near, .. } in &self.comparisons {
            let pair = |spread: &Spread| format!("{:.3}, {:.3}", spread.least, spread.median);
            lines.push(format!("{name:<12}{:<26}{:<26}{:.1} % (5 % is chance)", pair(drawn), pair(held_out), 100.0 * share_near));
        }
        // Those of features begin with the word.
        let named = |name: &str, conventions: &str| if conventions.starts_with(name) { conventions.to_string() } else { format!("{name}: {conventions}") };
        lines.extend(self.comparisons.iter().map(|comparison| named(comparison.name, &comparison.conventions)));
        lines.push(format!("{}", out.join("nearest.png").display()));
        lines.join("\n")
    }
}
