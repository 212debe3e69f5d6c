//! A prompt becomes pictures, ranked by how well they fit the prompt.
//!
//! Picture i of seed S draws from its own random stream, and no network's result depends on its neighbours in a batch: it is the same bytes whatever the
//! count, the batch size and the number of threads.
//!
//! Reading order:
mod request; //        what to make
mod autoregressive; // text tokens -> image tokens, one after the other -> pixels
mod conditions; //     a prompt as what a diffusion network is told
mod guided; //         what a diffusion network says, guided by what it is told and by a classifier
mod diffusion; //      noise -> latents or pixels, step by step; one stage after the other in a cascade
mod estimate; //       a look at a picture on its way

pub use conditions::text_states;
pub use diffusion::{ENLARGING, augmentation_level};
pub use estimate::{Estimate, Watch};
pub use request::{ClassifierGuidance, DiffusionOptions, ImageTokenOptions, InitialPicture, Request};

use crate::agreement::{nothing_to_guide, refuse_image_token_sampling};
use crate::manifest::{Canvas, ClassifierModel, DiffusionConfig, GeneratorModel};
use crate::parts::Generator;
use crate::progress::Progress;
use crate::rerank::no_text_tokenizer;
use crate::{BundleFolder, ClassifierPart, ContrastivePart, GeneratorPart, ImageTokenizerPart, Part, PipelineError, TextEncoderPart, Truncation, rerank};
use autoregressive::Autoregressive;
use burn::tensor::Device;
use diffusion::DiffusionSystem;
use smalti_data::Picture;

/// One picture and how it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct MadePicture {
    pub picture: Picture,
    /// Its number among those drawn: with the seed it names the picture.
    pub index: usize,
    /// How well it fits the prompt, in [-1, 1]; absent when the bundle ranks nothing.
    pub score: Option<f32>,
    /// Row after row; none where the generator draws no image tokens.
    pub image_tokens: Vec<u32>,
    /// What the network took for the picture on the way, if the request asked for a film strip.
    pub film_strip: Vec<Picture>,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    pub pictures: Vec<MadePicture>,
    /// Pictures drawn, kept or not: as many as were asked for, if nobody stopped it.
    pub drawn: usize,
    /// Texts that were longer than their reader takes.
    pub truncated: Vec<Truncation>,
}

/// The parts of a bundle that make pictures, loaded once for many requests.
#[derive(Clone, Debug)]
pub struct TextToImage {
    system: System,
    contrastive: Option<ContrastivePart>,
}

#[derive(Clone, Debug)]
enum System {
    Autoregressive(Box<Autoregressive>),
    Diffusion(Box<DiffusionSystem>),
}

/// The parts that [`TextToImage`] would make the pictures of a request with, without loading any weights; what it would refuse is refused here too.
pub fn parts(bundle: &BundleFolder, request: &Request) -> Result<Vec<Part>, PipelineError> {
    request.validate()?;
    let (manifest, purpose) = (bundle.manifest(), "make pictures");
    let generator = manifest.generator.as_ref().ok_or_else(|| bundle.missing(Part::Generator, purpose))?;
    let needs = Needs::of(&generator.model);
    let mut parts = Vec::new();
    if needs.decoder {
        manifest.image_tokenizer.as_ref().ok_or_else(|| bundle.missing(Part::ImageTokenizer, purpose))?;
        parts.push(Part::ImageTokenizer);
    }
    if needs.text {
        let encoder = manifest.text_encoder.as_ref().ok_or_else(|| bundle.missing(Part::TextEncoder, purpose))?;
        encoder.text_tokenizer.as_ref().ok_or_else(|| no_text_tokenizer(Part::TextEncoder))?;
        parts.push(Part::TextEncoder);
    } else if generator.model.text_vocabulary().is_some() && generator.text_tokenizer.is_none() {
        return Err(no_text_tokenizer(Part::Generator));
    }
    parts.push(Part::Generator);
    parts.extend((0..manifest.super_resolution.len()).map(Part::SuperResolution));
    let classifier = bundle.classifier_entry().map(|entry| {
        let ClassifierModel::Noisy(config) = &entry.model;
        config
    });
    if request.diffusion.classifier.is_some() && classifier.is_some() {
        parts.push(Part::Classifier);
    }
    match &manifest.contrastive {
        Some(contrastive) if contrastive.text_tokenizer.is_none() => return Err(no_text_tokenizer(Part::Contrastive)),
        Some(_) => parts.push(Part::Contrastive),
        None => {}
    }
    match (&generator.model, manifest.canvas()) {
        (GeneratorModel::Diffusion(first), Some(canvas)) => {
            let further = manifest.super_resolution.iter().filter_map(|entry| match &entry.model {
                GeneratorModel::Diffusion(config) => Some(&**config),
                GeneratorModel::DalleBart(_) => None,
            });
            let stages: Vec<&DiffusionConfig> = std::iter::once(&**first).chain(further).collect();
            diffusion::plans(&stages, canvas, classifier, request)?;
        }
        _ => autoregressive::check(request)?,
    }
    check_keep(request, manifest.contrastive.is_some())?;
    Ok(parts)
}

/// What a kind of generator cannot do without.
struct Needs {
    decoder: bool,
    text: bool,
}

impl Needs {
    fn of(generator: &GeneratorModel) -> Self {
        match generator {
            GeneratorModel::DalleBart(_) => Self { decoder: true, text: false },
            GeneratorModel::Diffusion(config) => Self { decoder: config.canvas == Canvas::Latents, text: config.text.is_some() },
        }
    }
}

/// The best can only be kept where there is something to rank by: a network, and a prompt.
fn check_keep(request: &Request, ranks: bool) -> Result<(), PipelineError> {
    let expected = match request.keep {
        Some(_) if !ranks => "a bundle with a `contrastive` part to rank by",
        Some(_) if request.prompt.trim().is_empty() => "a prompt to rank by",
        _ => return Ok(()),
    };
    let hint = Some("leave --keep out to keep every picture");
    Err(PipelineError::Request { key: "keep", expected: expected.to_string(), found: "none".to_string(), hint })
}

/// The parts that make pictures; which are needed depends on the generator.
#[derive(Clone, Debug)]
pub struct Parts {
    pub image_tokenizer: Option<ImageTokenizerPart>,
    pub text_encoder: Option<TextEncoderPart>,
    pub generator: GeneratorPart,
    pub super_resolution: Vec<GeneratorPart>,
    /// For requests that ask for it.
    pub classifier: Option<ClassifierPart>,
    pub contrastive: Option<ContrastivePart>,
}

impl TextToImage {
    pub fn load(bundle: &BundleFolder, device: &Device) -> Result<Self, PipelineError> {
        let bundle = &bundle.for_inference();
        let (manifest, purpose) = (bundle.manifest(), "make pictures");
        let generator = bundle.generator(device, purpose)?;
        // What is needed and missing is named.
        let needs = Needs::of(&generator.model.config());
        Self::new(Parts {
            image_tokenizer: needs.decoder.then(|| bundle.image_tokenizer(device, purpose)).transpose()?,
            text_encoder: needs.text.then(|| bundle.text_encoder(device, purpose)).transpose()?,
            generator,
            super_resolution: bundle.super_resolution(device)?,
            classifier: bundle.classifier_entry().map(|_| bundle.classifier(device, "lead pictures to a class")).transpose()?,
            contrastive: manifest.contrastive.as_ref().map(|_| bundle.contrastive(device, "rank pictures")).transpose()?,
        })
    }

    /// The parts must fit each other.
    pub fn new(parts: Parts) -> Result<Self, PipelineError> {
        let Parts { image_tokenizer, text_encoder, generator, super_resolution, classifier, contrastive } = parts;
        let system = match generator.model {
            Generator::DalleBart(_) if classifier.is_some() => return Err(nothing_to_guide()),
            Generator::DalleBart(model) => {
                let image_tokenizer = image_tokenizer.ok_or_else(|| absent(Part::ImageTokenizer, "one that makes pictures of image tokens"))?;
                System::Autoregressive(Box::new(Autoregressive::new(image_tokenizer, model, generator.text_tokenizer, generator.sampling.unwrap_or_default())?))
            }
            Generator::Diffusion(model) => {
                refuse_image_token_sampling(Part::Generator, generator.sampling)?;
                let system = DiffusionSystem::new(image_tokenizer, text_encoder, *model, super_resolution, classifier)?;
                System::Diffusion(Box::new(system))
            }
        };
        Ok(Self { system, contrastive })
    }

    /// Whether pictures get a score, which `keep` needs.
    pub fn ranks(&self) -> bool {
        self.contrastive.is_some()
    }

    /// Side in pixels of the pictures it makes.
    pub fn image_size(&self) -> usize {
        match &self.system {
            System::Autoregressive(system) => system.image_size(),
            System::Diffusion(system) => system.image_size(),
        }
    }

    /// Makes the pictures of a request. `progress` is called after each step of each batch, and while decoding and ranking.
    pub fn generate(&self, request: &Request, progress: &mut dyn FnMut(Progress)) -> Result<Made, PipelineError> {
        self.generate_watched(request, &mut Watch { progress, estimate: &mut |_| {}, stop: &|| false })
    }

    /// The same pictures, with a look at them on their way.
    pub fn generate_watched(&self, request: &Request, watch: &mut Watch) -> Result<Made, PipelineError> {
        let mut made = self.generate_alike(std::slice::from_ref(request), watch)?;
        Ok(made.pop().expect("as many as there are requests"))
    }

    /// What [`Self::generate`] makes of each request. Where prompts can share a batch they do (diffusion), which takes less time than one after the other.
    pub fn generate_all(&self, requests: &[Request], progress: &mut dyn FnMut(Progress)) -> Result<Vec<Made>, PipelineError> {
        let alike = requests.chunk_by(Request::may_share_batches);
        let made = alike.map(|requests| self.generate_alike(requests, &mut Watch { progress: &mut *progress, estimate: &mut |_| {}, stop: &|| false }));
        Ok(made.collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Of requests that may share batches.
    fn generate_alike(&self, requests: &[Request], watch: &mut Watch) -> Result<Vec<Made>, PipelineError> {
        for request in requests {
            request.validate()?;
            check_keep(request, self.ranks())?;
        }
        let unranked: Vec<Made> = match &self.system {
            System::Autoregressive(system) => requests.iter().map(|request| system.draw(request, watch)).collect::<Result<_, _>>()?,
            System::Diffusion(system) => system.draw(requests, watch)?,
        };
        requests.iter().zip(unranked).map(|(request, made)| self.ranked(request, made, watch.progress)).collect()
    }

    /// With scores, and the best alone if the request says so.
    fn ranked(&self, request: &Request, mut made: Made, progress: &mut dyn FnMut(Progress)) -> Result<Made, PipelineError> {
        // Without a prompt there is nothing to rank by.
        let Some(contrastive) = self.contrastive.as_ref().filter(|_| !request.prompt.trim().is_empty()) else { return Ok(made) };
        let pictures: Vec<Picture> = made.pictures.iter().map(|made| made.picture.clone()).collect();
        let scores = rerank::scores(contrastive, &request.prompt, &pictures, progress)?;
        made.truncated.extend(rerank::truncation(contrastive, &request.prompt)?);
        made.pictures.iter_mut().zip(&scores).for_each(|(made, score)| made.score = Some(*score));
        if let Some(keep) = request.keep {
            made.pictures = rerank::order(&scores).into_iter().take(keep).map(|index| made.pictures[index].clone()).collect();
        }
        Ok(made)
    }
}

fn absent(part: Part, expected: &str) -> PipelineError {
    PipelineError::Disagreement { part, key: part.key(), expected: expected.to_string(), found: "none".to_string() }
}
