//! `smalti evaluate --bundle DIR --data DIR`: how good a bundle is on held-out pictures, with the real pictures' own figures beside it.

use super::sampling::{self, SamplingFlags};
use crate::compute::{self, Compute};
use crate::failure::WrongUse;
use crate::made_files::{contact_sheet, prepare_folder, write_png};
use crate::output::{print, print_json};
use crate::progress::Reporter;
use anyhow::{Context, bail};
use burn::tensor::Device;
use smalti_data::Picture;
use smalti_data::dataset::{self, CaptionRule, Dataset, DatasetConfig};
use smalti_data::picture::DecodeOptions;
use smalti_data::text_tokenizer::Encoded;
use smalti_metrics::feature_network::{caption_features, picture_features};
use smalti_metrics::report::{BesideReal, MeasureOptions};
use smalti_metrics::{
    CodeCounts, CodebookUsage, Evidence, FeatureNetwork, Generation, PictureShape, Reconstruction, ReconstructionMeter, Report, SplitReport, lpips,
};
use smalti_models::inception::Inception;
use smalti_models::perceptual::lpips::Lpips;
use smalti_models::perceptual::vgg;
use smalti_nn::weights::{apply, safetensors};
use smalti_nn::{Initializer, Precision, precision, weights::write_atomically};
use smalti_pipeline::manifest::{ClassifierModel, GeneratorModel};
use smalti_pipeline::reconstruct::{fitted, reconstruct};
use smalti_pipeline::text_to_image::{self, ClassifierGuidance, Request, TextToImage};
use smalti_pipeline::{BundleFolder, ContrastivePart, ImageTokenizerPart};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Pictures on a sheet that `--out` keeps.
const SHEET_COUNT: usize = 64;

/// Measure a bundle on held-out captioned pictures
///
/// Draws one picture for each caption and reports R-precision and CLIP score by the bundle's judge, Frechet distance, and how well the image tokenizer
/// gives the real pictures back; beside each figure stands the same figure of the real pictures.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// The bundle to measure; it needs a judge
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Captioned pictures; with the subfolders pairs and concepts (as `smalti data build` makes them), each is measured on its own
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
    /// Inception weights for the Frechet distance, from `smalti import --as inception` [default: the judge's features]
    #[arg(long, value_name = "FILE")]
    inception: Option<PathBuf>,
    /// LPIPS weights, from `smalti import --as lpips` [default: LPIPS is not measured]
    #[arg(long, value_name = "FILE")]
    lpips: Option<PathBuf>,
    /// Folder for the report and sheets of drawn and real pictures [default: nothing is kept]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
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
    splits: Vec<(String, Dataset)>,
    count: usize,
    /// The prompt is each caption's.
    request: Request,
    inception: Option<PathBuf>,
    lpips: Option<PathBuf>,
    out: Option<PathBuf>,
    json: bool,
    compute: Compute,
}

pub fn resolve(flags: Flags) -> anyhow::Result<Job> {
    if flags.count < 4 {
        return Err(WrongUse(format!("--count: expected at least 4, from which distances can be computed, found {}", flags.count)).into());
    }
    let keep = (flags.candidates > 1).then_some(1);
    let classifier = flags.sampling.classifier();
    let request = Request { count: flags.candidates, keep, seed: flags.seed, ..flags.sampling.request("a caption")? };
    request.validate()?;
    Ok(Job {
        compute: flags.compute.resolve()?,
        splits: splits(&flags.data)?,
        bundle: flags.bundle,
        classifier,
        count: flags.count,
        request,
        inception: flags.inception,
        lpips: flags.lpips,
        out: flags.out,
        json: flags.json,
    })
}

/// The held-out splits below `data`, or all of it.
fn splits(data: &Path) -> anyhow::Result<Vec<(String, Dataset)>> {
    let open = |path: &Path| dataset::open(&DatasetConfig { captions: CaptionRule::Required, ..DatasetConfig::new(path) });
    let mut splits = Vec::new();
    for name in ["pairs", "concepts"] {
        if data.join(name).is_dir() {
            splits.push((name.to_string(), open(&data.join(name))?));
        }
    }
    if splits.is_empty() {
        let name = data.file_name().map_or_else(|| "data".to_string(), |name| name.to_string_lossy().into_owned());
        splits.push((name, open(data)?));
    }
    Ok(splits)
}

pub fn run(job: Job) -> anyhow::Result<()> {
    if let Some(out) = &job.out {
        prepare_folder(out)?;
    }
    let report = job.compute.run(|| evaluate(&job))?;
    if let Some(out) = &job.out {
        let path = out.join("evaluation.json");
        let text = serde_json::to_string_pretty(&report)?;
        write_atomically(&path, |writer| writer.write_all(text.as_bytes())).with_context(|| path.display().to_string())?;
    }
    if job.json { print_json(&report) } else { print(&report.to_string()) }
}

/// Everything that is loaded once.
struct Instruments {
    text_to_image: TextToImage,
    /// Of a bundle that has one; without, nothing is reconstructed.
    image_tokenizer: Option<ImageTokenizerPart>,
    /// What a caption is to the generator.
    prompts: Prompts,
    judge: ContrastivePart,
    features: FeatureNetwork,
    lpips: Option<Lpips>,
}

fn evaluate(job: &Job) -> anyhow::Result<Report> {
    let bundle = sampling::open(&job.bundle, job.classifier.as_deref())?;
    let device = &job.compute.device;
    let prompts = Prompts::of(&bundle);
    // What the bundle cannot do is said before any weights are loaded.
    text_to_image::parts(&bundle, &prompts.likely(&job.request))?;
    let judge = bundle.judge(device, "measure how well pictures fit their captions")?;
    let features = match &job.inception {
        Some(path) => FeatureNetwork::Inception { network: Box::new(inception(path, device)?), name: path.display().to_string() },
        None => FeatureNetwork::Clip { network: Box::new(judge.model.clone()), name: format!("judge of {}", bundle.manifest().id()) },
    };
    let instruments = Instruments {
        text_to_image: TextToImage::load(&bundle, device)?,
        image_tokenizer: bundle
            .manifest()
            .image_tokenizer
            .as_ref()
            .map(|_| bundle.for_inference().image_tokenizer(device, "reconstruct pictures"))
            .transpose()?,
        prompts,
        judge,
        features,
        lpips: job.lpips.as_deref().map(|path| lpips_network(path, device)).transpose()?,
    };
    let splits = job.splits.iter().map(|(name, dataset)| evaluate_split(job, &instruments, name, dataset)).collect::<anyhow::Result<_>>()?;
    let precision = job.compute.precision.name().to_string();
    Ok(Report { bundle: bundle.manifest().id(), judge: format!("judge of {}", bundle.manifest().id()), precision, splits })
}

fn evaluate_split(job: &Job, instruments: &Instruments, name: &str, dataset: &Dataset) -> anyhow::Result<SplitReport> {
    let (real, texts) = real_pictures(dataset, job.count, instruments.text_to_image.image_size())?;
    let generated = generate(job, instruments, name, &texts)?;
    if let Some(out) = &job.out {
        for (kind, pictures) in [("generated", &generated), ("real", &real)] {
            write_png(&contact_sheet(&pictures[..pictures.len().min(SHEET_COUNT)])?, &out.join(format!("{name}-{kind}.png")), &[])?;
        }
    }
    let image_tokenizer = instruments.image_tokenizer.as_ref();
    let (reconstruction, codebook) = image_tokenizer.map(|part| measure_image_tokenizer(job, instruments, part, name, &real)).transpose()?.unzip();
    let distinct = texts.iter().collect::<BTreeSet<_>>().len();
    let usual = MeasureOptions::default();
    let options = MeasureOptions { candidate_count: usual.candidate_count.min(distinct), seed: job.request.seed, ..usual };
    if options.candidate_count < usual.candidate_count {
        eprintln!("warning: {name}: R-precision among {distinct} different captions, not {}; the figure is higher for it", usual.candidate_count);
    }
    let judge = &instruments.judge.model;
    // What measures computes in f32, whatever draws.
    let (captions, judged, features) = precision::within(Precision::F32, || {
        let captions = caption_features(judge, &encode(&instruments.judge, &texts)?)?;
        let judged = [picture_features(judge, &generated)?, picture_features(judge, &real)?];
        let features = [instruments.features.features(&generated)?, instruments.features.features(&real)?];
        anyhow::Ok((captions, judged, features))
    })?;
    let evidence = Evidence {
        texts: &texts,
        captions: &captions,
        judged: BesideReal { generated: &judged[0], real: &judged[1] },
        features: BesideReal { generated: &features[0], real: &features[1] },
    };
    Ok(SplitReport {
        split: name.to_string(),
        generation: Generation::measure(evidence, options)?,
        conventions: instruments.features.conventions(format!("{} real pictures of {}", real.len(), dataset.path().display())),
        reconstruction,
        codebook: codebook.flatten(),
    })
}

/// At most `count` pictures with their first captions, evenly spread over the data.
fn real_pictures(dataset: &Dataset, count: usize, image_size: usize) -> anyhow::Result<(Vec<Picture>, Vec<String>)> {
    let count = count.min(dataset.len());
    let (mut pictures, mut texts) = (Vec::new(), Vec::new());
    for place in 0..count {
        let index = place * dataset.len() / count;
        let sample = dataset.sample(index)?;
        let Some(caption) = sample.captions.into_iter().next() else { bail!("{}: picture `{}` has no caption", dataset.path().display(), sample.key) };
        let picture = Picture::decode(&sample.picture, &DecodeOptions::default()).with_context(|| format!("picture `{}`", sample.key))?;
        pictures.push(fitted(&picture, image_size)?);
        texts.push(caption);
    }
    Ok((pictures, texts))
}

/// One picture for each caption, each from a seed of its own.
fn generate(job: &Job, instruments: &Instruments, name: &str, texts: &[String]) -> anyhow::Result<Vec<Picture>> {
    let mut reporter = Reporter::new();
    let mut pictures = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let request = Request { seed: job.request.seed.wrapping_add(index as u64), ..instruments.prompts.request(&job.request, text) };
        let made = instruments.text_to_image.generate(&request, &mut |_| {})?;
        pictures.extend(made.pictures.into_iter().map(|made| made.picture));
        reporter.report(&format!("{name}: drawing a picture for each caption"), index + 1, texts.len());
    }
    Ok(pictures)
}

/// What a caption is to a bundle.
struct Prompts {
    of_generator: OfGenerator,
    /// Of the classifier, if the bundle has one.
    classifier_classes: Vec<String>,
}

/// What a generator makes of a caption.
enum OfGenerator {
    Captions,
    /// The class whose name the caption holds.
    Classes(Vec<String>),
    Nothing,
}

impl Prompts {
    fn of(bundle: &BundleFolder) -> Self {
        let of_generator = match bundle.manifest().generator.as_ref().map(|entry| &entry.model) {
            Some(GeneratorModel::Diffusion(config)) if config.text.is_none() && config.classes.is_empty() => OfGenerator::Nothing,
            Some(GeneratorModel::Diffusion(config)) if config.text.is_none() => OfGenerator::Classes(config.classes.clone()),
            _ => OfGenerator::Captions,
        };
        let classifier_classes = bundle.classifier_entry().map_or(Vec::new(), |entry| {
            let ClassifierModel::Noisy(config) = &entry.model;
            config.classes.clone()
        });
        Self { of_generator, classifier_classes }
    }

    /// The request for a caption: without a prompt where the generator is to draw anything, and without the classifier where the caption names none of its
    /// classes and the flags none either.
    fn request(&self, template: &Request, caption: &str) -> Request {
        let prompt = match &self.of_generator {
            OfGenerator::Captions => caption.to_string(),
            OfGenerator::Classes(classes) => held(classes, caption).unwrap_or_default(),
            OfGenerator::Nothing => String::new(),
        };
        let mut request = Request { prompt, ..template.clone() };
        if let Some(guidance) = request.diffusion.classifier.take() {
            let class = guidance.class.or_else(|| held(&self.classifier_classes, caption));
            request.diffusion.classifier = class.map(|class| ClassifierGuidance { class: Some(class), ..guidance });
        }
        request
    }

    /// As [`Self::request`], for a caption that names a class if there are such: what such a request lacks, all lack.
    fn likely(&self, template: &Request) -> Request {
        let mut request = self.request(template, &template.prompt);
        if let Some(guidance) = &template.diffusion.classifier {
            let class = guidance.class.clone().or_else(|| self.classifier_classes.first().cloned());
            request.diffusion.classifier = Some(ClassifierGuidance { class, ..guidance.clone() });
        }
        request
    }
}

/// The longest of the names that a caption holds.
fn held(names: &[String], caption: &str) -> Option<String> {
    let caption = caption.to_lowercase();
    let held = names.iter().filter(|name| caption.contains(&name.to_lowercase()));
    held.max_by_key(|name| name.len()).cloned()
}

fn encode(judge: &ContrastivePart, texts: &[String]) -> anyhow::Result<Vec<Encoded>> {
    let text_tokenizer = judge.text_tokenizer.as_ref().context("judge: expected a text tokenizer in the bundle, found none")?;
    let length = judge.model.config().text.context_length;
    Ok(texts.iter().map(|text| text_tokenizer.encode(text, length)).collect::<Result<_, _>>()?)
}

fn measure_image_tokenizer(
    job: &Job,
    instruments: &Instruments,
    image_tokenizer: &ImageTokenizerPart,
    name: &str,
    real: &[Picture],
) -> anyhow::Result<(Reconstruction, Option<CodebookUsage>)> {
    let mut reporter = Reporter::new();
    let stage = format!("{name}: reconstructing");
    let reconstructions = reconstruct(image_tokenizer, real, &mut |progress| reporter.report(&stage, progress.done, progress.total))?;
    let mut meter = ReconstructionMeter::default();
    let mut counts = image_tokenizer.model.discrete().map(|model| CodeCounts::new(model.code_count()));
    for (reconstruction, original) in reconstructions.iter().zip(real) {
        let (made, original) = (reconstruction.picture.to_f32(), original.to_f32());
        let shape = PictureShape { height: reconstruction.picture.height, width: reconstruction.picture.width, channels: 3 };
        meter.add(&made, &original, shape)?;
        if let Some(network) = &instruments.lpips {
            meter.add_lpips(&precision::within(Precision::F32, || lpips::lpips(network, &made, &original, shape, &job.compute.device))?);
        }
        counts.iter_mut().try_for_each(|counts| counts.add(&reconstruction.image_tokens))?;
    }
    Ok((meter.finish()?, counts.map(|counts| counts.usage()).transpose()?))
}

fn inception(path: &Path, device: &Device) -> anyhow::Result<Inception> {
    let tensors = safetensors::read(path)?;
    apply(Inception::new(&mut Initializer::new(0, device)), tensors, device).with_context(|| path.display().to_string())
}

fn lpips_network(path: &Path, device: &Device) -> anyhow::Result<Lpips> {
    let tensors = safetensors::read(path)?;
    let network = Lpips::new(&vgg::Config::vgg16(), &mut Initializer::new(0, device))?;
    apply(network, tensors, device).with_context(|| path.display().to_string())
}
