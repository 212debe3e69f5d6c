//! `smalti inspect PATH`: what a bundle, run, weights file, checkpoint, recipe or picture is made of, and what drawing with it costs.

mod costs; // parameters, multiplications, memory and seconds

use super::settings::{sampler_text, threshold_text};
use crate::output::{grouped, print, print_json, size};
use anyhow::{Context, bail};
use costs::{Costs, Name, PublishedCosts};
use serde::Serialize;
use smalti_data::data_recipe::DataRecipe;
use smalti_data::picture::read_png_text;
use smalti_generation::diffusion::Parameterization;
use smalti_nn::weights::{TensorEntry, foreign, safetensors};
use smalti_pipeline::budget::Budget;
use smalti_pipeline::manifest::{Canvas, ClassifierConfig, ClassifierModel, DiffusionConfig, GeneratorModel, NetworkConfig};
use smalti_pipeline::{BundleFolder, Manifest, Part, Provenance, manifest};
use smalti_train::{Job as TrainJob, RecipeFile};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Show what a bundle, run, weights file, checkpoint, recipe or picture is made of
///
/// For bundles and recipes also what a picture costs: parameters and products of weights with features, counted from the sizes of the networks, the memory
/// they need at least, and, estimated from a short measurement on this machine, seconds.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// A bundle, the folder of a run, a .safetensors, .ckpt, .pt, .pth or .bin file, a recipe, or a PNG
    #[arg(required_unless_present = "published")]
    path: Option<PathBuf>,
    /// What a published system would cost, beside the parameters that its paper gives
    #[arg(long, value_name = "NAME", value_enum, conflicts_with = "path")]
    published: Option<Name>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug)]
pub struct Job {
    path: PathBuf,
    kind: Kind,
    json: bool,
}

#[derive(Debug)]
enum Kind {
    Bundle,
    Run,
    Recipe,
    Picture,
    Weights,
    Published(Name),
}

pub fn resolve(flags: Flags) -> anyhow::Result<Job> {
    let path = flags.path.unwrap_or_default();
    if let Some(name) = flags.published {
        return Ok(Job { path, kind: Kind::Published(name), json: flags.json });
    }
    let start = || path.display().to_string();
    let information = fs::metadata(&path).with_context(start)?;
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default();
    let kind = if information.is_dir() {
        match () {
            () if path.join(manifest::FILE_NAME).is_file() => Kind::Bundle,
            () if path.join("recipe.toml").is_file() => Kind::Run,
            () => bail!("{}: expected a bundle (with {}) or a run (with recipe.toml), found another folder", path.display(), manifest::FILE_NAME),
        }
    } else {
        match extension.as_str() {
            "toml" if path.ends_with(manifest::FILE_NAME) => {
                return resolve(Flags { path: Some(path.parent().map_or_else(PathBuf::new, as_folder)), ..flags });
            }
            "toml" => Kind::Recipe,
            "png" => Kind::Picture,
            _ => Kind::Weights,
        }
    };
    Ok(Job { path, kind, json: flags.json })
}

fn as_folder(parent: &Path) -> PathBuf {
    if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_path_buf() }
}

pub fn run(job: Job) -> anyhow::Result<()> {
    let path = job.path.as_path();
    match job.kind {
        Kind::Bundle => show(job.json, &bundle(path)?),
        Kind::Run => show(job.json, &run_folder(path)?),
        Kind::Recipe => show(job.json, &recipe(path)?),
        Kind::Picture => show(job.json, &picture(path)?),
        Kind::Weights => show(job.json, &weights(path)?),
        Kind::Published(name) => show(job.json, &PublishedCosts::of(name)),
    }
}

trait Described: Serialize {
    fn text(&self) -> String;
}

fn show(json: bool, description: &impl Described) -> anyhow::Result<()> {
    if json { print_json(description) } else { print(description.text().trim_end()) }
}

#[derive(Serialize)]
struct BundleDescription {
    bundle: String,
    id: String,
    parts: Vec<PartDescription>,
    size: u64,
    costs: Costs,
}

#[derive(Serialize)]
struct PartDescription {
    part: &'static str,
    network: &'static str,
    parameter_count: usize,
    storage: &'static str,
    file: String,
    size: u64,
    /// Network, process, conditions and usual sampling of a diffusion network.
    #[serde(skip_serializing_if = "Option::is_none")]
    diffusion: Option<DiffusionConfig>,
    /// Network, process, canvas and classes of a classifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    classifier: Option<ClassifierConfig>,
    /// Side in pixels of the pictures, and what brings latents to unit variance, of an image tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latent_scale: Option<f32>,
    provenance: Provenance,
}

fn bundle(path: &Path) -> anyhow::Result<BundleDescription> {
    let bundle = BundleFolder::open(path)?;
    bundle.verify()?;
    let manifest = bundle.manifest();
    let mut parts = Vec::new();
    for part in manifest.parts() {
        let Some((weights, network, provenance)) = manifest.summary(part) else { continue };
        let image_tokenizer = manifest.image_tokenizer.as_ref().filter(|_| part == Part::ImageTokenizer);
        parts.push(PartDescription {
            part: part.key(),
            network,
            parameter_count: weights.parameter_count,
            storage: weights.storage.name(),
            file: weights.file.clone(),
            size: file_size(&path.join(&weights.file))?,
            diffusion: diffusion(manifest, part).cloned(),
            classifier: classifier(manifest, part).cloned(),
            image_size: image_tokenizer.map(|entry| entry.image_size),
            latent_scale: image_tokenizer.and_then(|entry| entry.latent_scale),
            provenance: provenance.clone(),
        });
    }
    let costs = Costs::of(Budget::of_bundle(manifest));
    Ok(BundleDescription { bundle: manifest.name.clone(), id: manifest.id(), parts, size: folder_size(path)?, costs })
}

fn diffusion(manifest: &Manifest, part: Part) -> Option<&DiffusionConfig> {
    let entry = match part {
        Part::Generator => manifest.generator.as_ref()?,
        Part::SuperResolution(stage) => manifest.super_resolution.get(stage)?,
        _ => return None,
    };
    match &entry.model {
        GeneratorModel::Diffusion(config) => Some(config),
        GeneratorModel::DalleBart(_) => None,
    }
}

fn classifier(manifest: &Manifest, part: Part) -> Option<&ClassifierConfig> {
    let entry = manifest.classifier.as_ref().filter(|_| part == Part::Classifier)?;
    let ClassifierModel::Noisy(config) = &entry.model;
    Some(config)
}

/// What a person wants to know of a classifier before guiding with it.
fn classifier_lines(config: &ClassifierConfig) -> Vec<String> {
    let (size, network) = (config.image_size, &config.network);
    let canvas = match config.canvas {
        Canvas::Pixels => format!("noisy pixels of pictures of {size}x{size}"),
        Canvas::Latents => format!("noisy latents of {} channels of pictures of {size}x{size}", network.input_channels),
    };
    vec![
        format!("  classifies {canvas}"),
        format!("  network: levels of {:?} channels, {} blocks each", network.level_channels, network.residual_block_count),
        format!("  process: {}", config.process),
        format!("  classes: {}", config.classes.join(", ")),
    ]
}

/// What a person wants to know of a diffusion network before drawing with it.
fn diffusion_lines(config: &DiffusionConfig) -> Vec<String> {
    let (size, channels) = (config.image_size, config.network.channels());
    let mut lines = vec![match config.canvas {
        Canvas::Pixels => format!("  draws pixels of pictures of {size}x{size}"),
        Canvas::Latents => format!("  draws latents of {channels} channels, which the image tokenizer decodes to pictures of {size}x{size}"),
    }];
    lines.push(match &config.network {
        NetworkConfig::Unet(network) => {
            let attention = if network.attention_levels.is_empty() { "none of them".to_string() } else { format!("levels {:?}", network.attention_levels) };
            let (channels, blocks) = (&network.level_channels, network.residual_block_count);
            format!("  network: levels of {channels:?} channels, {blocks} blocks each, attention at {attention}")
        }
        NetworkConfig::EfficientUnet(network) => {
            let levels: Vec<String> =
                network.levels.iter().map(|level| format!("{} channels x {} blocks", level.channels, level.residual_block_count)).collect();
            format!("  network: levels of {}, {} parameters", levels.join(", "), grouped(network.parameter_count() as usize))
        }
    });
    let parameterization = match config.parameterization {
        Parameterization::Noise => "noise",
        Parameterization::Clean => "the clean picture",
        Parameterization::Velocity => "velocity",
        Parameterization::Edm { .. } => "EDM's mixture of noise and picture",
        Parameterization::Flow => "the direction of the flow",
    };
    lines.push(format!("  process: {}, predicts {parameterization}", config.process));
    match &config.text {
        Some(text) => {
            let padding = if text.attend_to_padding { "padding too" } else { "padding apart" };
            lines.push(format!("  text: {} tokens, {padding}", text.token_count));
        }
        None if config.classes.is_empty() => lines.push("  takes no prompt".to_string()),
        None => lines.push(format!("  classes: {}", config.classes.join(", "))),
    }
    lines.extend(config.low_resolution.as_ref().map(|low| format!("  enlarges pictures of {0}x{0}, augmentation {1}", low.image_size, low.noise_level)));
    let defaults = &config.sampling;
    let (sampler, threshold) = (sampler_text(defaults.sampler), threshold_text(defaults.threshold));
    lines.push(format!("  usually drawn in {} steps of {sampler}, guidance scale {}, threshold {threshold}", defaults.steps, defaults.guidance_scale));
    lines
}

impl Described for BundleDescription {
    fn text(&self) -> String {
        let mut lines = vec![format!("bundle {}  ({}, checksums hold)", self.id, size(self.size))];
        for part in &self.parts {
            let PartDescription { part: name, network, parameter_count, storage, file, size: bytes, image_size, latent_scale, provenance, .. } = part;
            lines.push(format!("\n{name}  {network}, {} parameters as {storage}, {file} {}", grouped(*parameter_count), size(*bytes)));
            let scale = latent_scale.map(|scale| format!(", latent scale {scale}")).unwrap_or_default();
            lines.extend(image_size.map(|size| format!("  pictures of {size}x{size}{scale}")));
            lines.extend(part.diffusion.iter().flat_map(diffusion_lines));
            lines.extend(part.classifier.iter().flat_map(classifier_lines));
            lines.extend(provenance.source.iter().map(|source| format!("  imported from {source}")));
            lines.extend(provenance.data.iter().map(|data| format!("  trained on {data}")));
            let seconds = provenance.seconds.map(|seconds| format!(", {seconds:.0} s")).unwrap_or_default();
            lines.extend(provenance.steps.map(|steps| format!("  {} steps{seconds}", grouped(steps))));
            lines.extend(provenance.results.iter().map(|(name, value)| format!("  {name}: {value:.4}")));
        }
        lines.extend(self.costs.lines());
        lines.join("\n")
    }
}

#[derive(Serialize)]
struct RunDescription {
    run: String,
    system: String,
    checkpoints: Vec<String>,
    log_line_count: usize,
    /// The last line of the log.
    last: Option<serde_json::Value>,
    has_bundle: bool,
}

fn run_folder(path: &Path) -> anyhow::Result<RunDescription> {
    let recipe = path.join("recipe.toml");
    let file = RecipeFile::read(&recipe, &[], false)?;
    let system = file.get("system").and_then(toml::Value::as_str).unwrap_or("unknown").to_string();
    let mut checkpoints: Vec<String> = match fs::read_dir(path.join("checkpoints")) {
        Ok(entries) => entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| !name.ends_with(".tmp")).collect(),
        Err(_) => Vec::new(),
    };
    checkpoints.sort();
    let log = fs::read_to_string(path.join("log.jsonl")).unwrap_or_default();
    let last = log.lines().rev().find_map(|line| serde_json::from_str(line).ok());
    let has_bundle = path.join("bundle").join(manifest::FILE_NAME).is_file();
    Ok(RunDescription { run: path.display().to_string(), system, checkpoints, log_line_count: log.lines().count(), last, has_bundle })
}

impl Described for RunDescription {
    fn text(&self) -> String {
        let none = || "none".to_string();
        let checkpoints = if self.checkpoints.is_empty() { none() } else { self.checkpoints.join(", ") };
        format!(
            "run {}\nsystem       {}\ncheckpoints  {checkpoints}\nlog          {} lines, the last: {}\nbundle       {}",
            self.run,
            self.system,
            self.log_line_count,
            self.last.as_ref().map_or_else(none, serde_json::Value::to_string),
            if self.has_bundle { "bundle/" } else { "not yet" },
        )
    }
}

#[derive(Serialize)]
struct RecipeDescription {
    recipe: String,
    system: String,
    /// The recipe as it is understood.
    resolved: String,
    /// One pass for one picture by the networks that the recipe trains; of data recipes none.
    #[serde(skip_serializing_if = "Option::is_none")]
    costs: Option<Costs>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    costs_unknown: Option<String>,
}

fn recipe(path: &Path) -> anyhow::Result<RecipeDescription> {
    let file = RecipeFile::read(path, &[], false)?;
    let (system, resolved, budget) = if file.get("kind").is_some() {
        DataRecipe::from_file(path)?;
        ("data".to_string(), file.resolved(), None)
    } else {
        let job = TrainJob::resolve(&file, None)?;
        let budget = job.budget();
        (file.get("system").and_then(toml::Value::as_str).unwrap_or("unknown").to_string(), job.recipe, Some(budget))
    };
    let (costs, costs_unknown) = match budget {
        Some(Ok(budget)) => (Some(Costs::of(budget)), None),
        Some(Err(reason)) => (None, Some(reason)),
        None => (None, None),
    };
    Ok(RecipeDescription { recipe: path.display().to_string(), system, resolved, costs, costs_unknown })
}

impl Described for RecipeDescription {
    fn text(&self) -> String {
        let mut text = format!("# {}: a valid recipe, system {}\n{}", self.recipe, self.system, self.resolved);
        // What follows is no part of the recipe, which may be copied from here.
        let lines = self.costs.iter().flat_map(Costs::lines).chain(self.costs_unknown.iter().map(|reason| format!("\ncosts: {reason}")));
        for line in lines.flat_map(|line| line.lines().map(str::to_string).collect::<Vec<_>>()) {
            text += &if line.is_empty() { "\n".to_string() } else { format!("\n# {line}") };
        }
        text
    }
}

#[derive(Serialize)]
struct PictureDescription {
    picture: String,
    width: usize,
    height: usize,
    texts: BTreeMap<String, String>,
}

fn picture(path: &Path) -> anyhow::Result<PictureDescription> {
    let place = || path.display().to_string();
    let bytes = fs::read(path).with_context(place)?;
    let picture = smalti_data::Picture::decode(&bytes, &Default::default()).with_context(place)?;
    let texts = read_png_text(&bytes).with_context(place)?.into_iter().collect();
    Ok(PictureDescription { picture: place(), width: picture.width, height: picture.height, texts })
}

impl Described for PictureDescription {
    fn text(&self) -> String {
        let texts = self.texts.iter().map(|(key, text)| format!("\n{}: {}", printable(key), printable(text)));
        format!("{}  {}x{} pixels", self.picture, self.width, self.height) + &texts.collect::<String>()
    }
}

#[derive(Serialize)]
struct WeightsDescription {
    file: String,
    format: &'static str,
    size: u64,
    parameter_count: usize,
    metadata: BTreeMap<String, String>,
    tensors: Vec<TensorDescription>,
}

#[derive(Serialize)]
struct TensorDescription {
    name: String,
    shape: Vec<usize>,
    format: String,
}

fn weights(path: &Path) -> anyhow::Result<WeightsDescription> {
    let is_safetensors = foreign::is_safetensors(path)?;
    let metadata = if is_safetensors { safetensors::read_metadata(path)? } else { BTreeMap::new() };
    let tensors = foreign::list(path)?.into_iter().map(|TensorEntry { name, shape, format }| TensorDescription { name, shape, format }).collect::<Vec<_>>();
    let format = if is_safetensors { "safetensors" } else { "PyTorch checkpoint" };
    let floats = tensors.iter().filter(|tensor| tensor.format.contains('f'));
    // A hostile file may claim sizes whose product is beyond all numbers.
    let parameter_count = floats.map(|tensor| tensor.shape.iter().fold(1usize, |count, &axis| count.saturating_mul(axis))).fold(0, usize::saturating_add);
    Ok(WeightsDescription { file: path.display().to_string(), format, size: file_size(path)?, parameter_count, metadata, tensors })
}

impl Described for WeightsDescription {
    fn text(&self) -> String {
        let mut lines =
            vec![format!("{}  {}, {}: {} tensors, {} parameters", self.file, self.format, size(self.size), self.tensors.len(), grouped(self.parameter_count))];
        lines.extend(self.metadata.iter().map(|(key, text)| format!("{}: {}", printable(key), printable(text))));
        let width = self.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0).min(80);
        lines.extend(self.tensors.iter().map(|tensor| format!("  {:width$}  {:5} {:?}", printable(&tensor.name), tensor.format, tensor.shape)));
        lines.join("\n")
    }
}

/// Other people's texts must not command the terminal.
fn printable(text: &str) -> String {
    let shown = |character: char| if character.is_control() && character != '\n' { character.escape_default().to_string() } else { character.to_string() };
    text.chars().map(shown).collect()
}

fn file_size(path: &Path) -> anyhow::Result<u64> {
    Ok(fs::metadata(path).with_context(|| path.display().to_string())?.len())
}

fn folder_size(path: &Path) -> anyhow::Result<u64> {
    let place = || path.display().to_string();
    let mut total = 0;
    for entry in fs::read_dir(path).with_context(place)? {
        total += entry.with_context(place)?.metadata().with_context(place)?.len();
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn other_peoples_texts_cannot_command_the_terminal() {
        assert_eq!(printable("\u{1b}]0;title\u{7}a red\nheart\u{9b}2J"), "\\u{1b}]0;title\\u{7}a red\nheart\\u{9b}2J");
    }
}
