//! What measuring needs, loaded once: the bundle that draws, a judge, a network of features.

use crate::progress::Reporter;
use anyhow::{Context, bail};
use burn::tensor::Device;
use smalti_data::Picture;
use smalti_data::dataset::CaptionRule;
use smalti_data::text_tokenizer::Encoded;
use smalti_metrics::feature_network::{caption_features, picture_features};
use smalti_metrics::{FeatureNetwork, Features, PictureKind};
use smalti_models::inception::Inception;
use smalti_nn::weights::{apply, safetensors};
use smalti_nn::{Initializer, Precision, precision};
use smalti_pipeline::manifest::{ClassifierModel, GeneratorModel};
use smalti_pipeline::text_to_image::{self, ClassifierGuidance, Request, TextToImage};
use smalti_pipeline::{BundleFolder, ContrastivePart};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Measuring")]
pub(in crate::commands) struct InstrumentFlags {
    /// Another bundle whose judge measures [default: the bundle's own]
    #[arg(long, value_name = "DIR")]
    judge: Option<PathBuf>,
    /// Inception weights for distances between pictures, from `smalti import --as inception` [default: the judge's features]
    #[arg(long, value_name = "FILE")]
    inception: Option<PathBuf>,
}

/// A CLIP that measures, and whose it is.
struct Judge {
    part: ContrastivePart,
    name: String,
}

/// Vectors of the same pictures.
pub(super) struct Seen {
    /// By the judge, where there is one.
    pub judged: Option<Features>,
    pub features: Features,
}

/// A picture and how long it took.
pub(in crate::commands) struct Drawn {
    pub picture: Picture,
    pub seconds: f64,
}

pub(in crate::commands) struct Instruments {
    /// Nothing where nothing will be drawn.
    text_to_image: Option<TextToImage>,
    image_size: usize,
    pub prompts: Prompts,
    judge: Option<Judge>,
    features: Option<FeatureNetwork>,
}

impl Instruments {
    /// `requests` are all that will be drawn; what the bundle cannot do is said before any weights are loaded. Without any an image tokenizer is enough.
    pub fn load(bundle: &BundleFolder, flags: &InstrumentFlags, requests: &[&Request], device: &Device) -> anyhow::Result<Self> {
        let prompts = Prompts::of(bundle);
        for request in requests {
            text_to_image::parts(bundle, &prompts.likely(request))?;
        }
        let judge = judge(bundle, flags.judge.as_deref(), device)?;
        let features = match (&flags.inception, &judge) {
            (Some(path), _) => Some(FeatureNetwork::Inception { network: Box::new(inception(path, device)?), name: path.display().to_string() }),
            (None, Some(judge)) => Some(FeatureNetwork::Clip { network: Box::new(judge.part.model.clone()), name: judge.name.clone() }),
            (None, None) => None,
        };
        let text_to_image = if requests.is_empty() { None } else { Some(TextToImage::load(bundle, device)?) };
        let image_size = match &text_to_image {
            Some(text_to_image) => text_to_image.image_size(),
            None => bundle.manifest().image_tokenizer.as_ref().context("expected an image tokenizer where nothing is drawn, found none")?.image_size,
        };
        Ok(Self { text_to_image, image_size, prompts, judge, features })
    }

    /// Side in pixels of what is drawn or reconstructed.
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// What is measured: drawn pictures, or reconstructions where nothing will be drawn.
    pub fn pictures(&self) -> PictureKind {
        if self.text_to_image.is_some() { PictureKind::Generated } else { PictureKind::Reconstructed }
    }

    pub fn judge_name(&self) -> Option<String> {
        self.judge.as_ref().map(|judge| judge.name.clone())
    }

    /// The network of features; without one, pictures can only be compared pixel by pixel.
    pub fn features(&self) -> Option<&FeatureNetwork> {
        self.features.as_ref()
    }

    /// Features and the judge's opinion, which are one where the judge is the network of features.
    pub(super) fn see(&self, pictures: &[Picture]) -> anyhow::Result<Seen> {
        let Some(network) = &self.features else { bail!("no network of features; hint: name a judge with --judge DIR") };
        // What measures computes in f32, whatever draws.
        precision::within(Precision::F32, || {
            let features = network.features(pictures)?;
            let judged = match (&self.judge, network) {
                (None, _) => None,
                (Some(_), FeatureNetwork::Clip { .. }) => Some(features.clone()),
                (Some(judge), FeatureNetwork::Inception { .. }) => Some(picture_features(&judge.part.model, pictures)?),
            };
            Ok(Seen { judged, features })
        })
    }

    /// The judge's embedding of each text; nothing without a judge.
    pub(super) fn read(&self, texts: &[String]) -> anyhow::Result<Option<Features>> {
        let Some(Judge { part, .. }) = &self.judge else { return Ok(None) };
        let text_tokenizer = part.text_tokenizer.as_ref().context("judge: expected a text tokenizer in the bundle, found none")?;
        let length = part.model.config().text.context_length;
        let encoded = texts.iter().map(|text| text_tokenizer.encode(text, length)).collect::<Result<Vec<Encoded>, _>>()?;
        Ok(Some(precision::within(Precision::F32, || caption_features(&part.model, &encoded))?))
    }

    /// The best picture of each caption, each from a seed of its own.
    pub fn draw(&self, stage: &str, request: &Request, captions: &[String]) -> anyhow::Result<Vec<Drawn>> {
        let text_to_image = self.text_to_image.as_ref().context("expected every request to be known before anything is drawn, found another")?;
        let mut reporter = Reporter::new();
        let mut drawn = Vec::new();
        let requests: Vec<Request> = captions
            .iter()
            .zip(0..)
            .map(|(caption, index)| Request { seed: request.seed.wrapping_add(index), ..self.prompts.request(request, caption) })
            .collect();
        for requests in requests.chunks(request.count_in_batch()) {
            let started = Instant::now();
            let made = text_to_image.generate_all(requests, &mut |_| {})?;
            let seconds = started.elapsed().as_secs_f64() / requests.len() as f64;
            drawn.extend(made.into_iter().flat_map(|made| made.pictures.into_iter().take(1)).map(|made| Drawn { picture: made.picture, seconds }));
            reporter.report(stage, drawn.len(), captions.len());
        }
        Ok(drawn)
    }
}

/// The judge of another bundle, or of this one. Another bundle's ranking network judges as well as its judge: it ranked none of these pictures.
fn judge(bundle: &BundleFolder, other: Option<&Path>, device: &Device) -> anyhow::Result<Option<Judge>> {
    const PURPOSE: &str = "measure pictures";
    let Some(path) = other else {
        let name = format!("judge of {}", bundle.manifest().id());
        return Ok(bundle.manifest().judge.as_ref().map(|_| bundle.judge(device, PURPOSE)).transpose()?.map(|part| Judge { part, name }));
    };
    let other = BundleFolder::open(path)?;
    let id = other.manifest().id();
    let (part, name) = if other.manifest().judge.is_none() && id != bundle.manifest().id() && other.manifest().contrastive.is_some() {
        (other.contrastive(device, PURPOSE)?, format!("contrastive of {id}"))
    } else {
        (other.judge(device, PURPOSE)?, format!("judge of {id}"))
    };
    Ok(Some(Judge { part, name }))
}

/// What a caption is to a bundle.
pub(in crate::commands) struct Prompts {
    pub of_generator: OfGenerator,
    /// Of the classifier, if the bundle has one.
    pub classifier_classes: Vec<String>,
}

/// What a generator makes of a caption.
pub(in crate::commands) enum OfGenerator {
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
            Some(_) => OfGenerator::Captions,
            None => OfGenerator::Nothing,
        };
        let classifier_classes = bundle.classifier_entry().map_or(Vec::new(), |entry| {
            let ClassifierModel::Noisy(config) = &entry.model;
            config.classes.clone()
        });
        Self { of_generator, classifier_classes }
    }

    /// Pictures without a caption are of use where none is read.
    pub fn caption_rule(&self) -> CaptionRule {
        match self.of_generator {
            OfGenerator::Captions => CaptionRule::Required,
            OfGenerator::Classes(_) | OfGenerator::Nothing => CaptionRule::Optional,
        }
    }

    /// The request for a caption: without a prompt where the generator is to draw anything, and without the classifier where the caption names none of its
    /// classes and the flags none either.
    fn request(&self, template: &Request, caption: &str) -> Request {
        let prompt = match &self.of_generator {
            OfGenerator::Captions => caption.to_string(),
            OfGenerator::Classes(classes) => class_of(classes, caption).map(|class| classes[class].clone()).unwrap_or_default(),
            OfGenerator::Nothing => String::new(),
        };
        let mut request = Request { prompt, ..template.clone() };
        if let Some(guidance) = request.diffusion.classifier.take() {
            let held = || class_of(&self.classifier_classes, caption).map(|class| self.classifier_classes[class].clone());
            let class = guidance.class.clone().or_else(held);
            request.diffusion.classifier = class.map(|class| ClassifierGuidance { class: Some(class), ..guidance });
        }
        request
    }

    /// As [`Self::request`], for something that can be asked for: what such a request lacks, all lack.
    fn likely(&self, template: &Request) -> Request {
        let example = match &self.of_generator {
            OfGenerator::Captions => "a caption".to_string(),
            OfGenerator::Classes(classes) => classes.first().cloned().unwrap_or_default(),
            OfGenerator::Nothing => String::new(),
        };
        let mut request = self.request(template, &example);
        if let Some(guidance) = &template.diffusion.classifier {
            let class = guidance.class.clone().or_else(|| self.classifier_classes.first().cloned());
            request.diffusion.classifier = Some(ClassifierGuidance { class, ..guidance.clone() });
        }
        request
    }
}

/// The longest name that a caption holds.
pub(super) fn class_of(classes: &[String], caption: &str) -> Option<usize> {
    let caption = caption.to_lowercase();
    let held = (0..classes.len()).filter(|&class| caption.contains(&classes[class].to_lowercase()));
    held.max_by_key(|&class| classes[class].len())
}

fn inception(path: &Path, device: &Device) -> anyhow::Result<Inception> {
    let tensors = safetensors::read(path)?;
    apply(Inception::new(&mut Initializer::unread(device)), tensors, device).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_in_a_caption_is_its_class() {
        let classes = ["fish", "Goldfish", "cat"].map(str::to_string);
        assert_eq!(class_of(&classes, "a goldfish, flat style"), Some(1));
        assert_eq!(class_of(&classes, "A Fish"), Some(0));
        assert_eq!(class_of(&classes, "a dog"), None);
    }
}
