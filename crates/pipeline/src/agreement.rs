//! The parts of a bundle must speak of the same pictures.

use crate::manifest::{
    Canvas, ClassifierConfig, ClassifierModel, ContrastiveModel, DiffusionConfig, GeneratorModel, ImageTokenSampling, ImageTokenizerModel, Manifest,
    TextCondition, TextEncoderModel,
};
use crate::{Part, PipelineError};
use smalti_models::generator::dalle_bart;

/// The parts must speak of the same pictures.
pub(crate) fn check_agreement(manifest: &Manifest) -> Result<(), PipelineError> {
    if let Some(entry) = &manifest.image_tokenizer {
        let part = Part::ImageTokenizer;
        entry.model.validate().map_err(|source| PipelineError::Config { part, source })?;
        let factor = entry.model.downsampling_factor();
        if entry.image_size == 0 || entry.image_size > 1 << 14 || !entry.image_size.is_multiple_of(factor) {
            return Err(disagreement(part, "image_size", format!("a multiple of {factor}, at most 16384"), entry.image_size));
        }
    }
    if let Some(entry) = &manifest.text_encoder {
        let part = Part::TextEncoder;
        entry.model.validate().map_err(|source| PipelineError::Config { part, source })?;
    }
    for (part, entry) in [(Part::Contrastive, &manifest.contrastive), (Part::Judge, &manifest.judge)] {
        if let Some(ContrastiveModel::Clip(config)) = entry.as_ref().map(|entry| &entry.model) {
            config.validate().map_err(|source| PipelineError::Config { part, source })?;
        }
    }
    if let Some(entry) = &manifest.classifier {
        check_classifier(&entry.model, manifest)?;
    }
    let Some(entry) = &manifest.generator else {
        return if manifest.super_resolution.is_empty() { Ok(()) } else { Err(disagreement(Part::SuperResolution(0), "generator", "a first stage", "none")) };
    };
    let first = match &entry.model {
        GeneratorModel::Diffusion(first) => {
            refuse_image_token_sampling(Part::Generator, entry.sampling)?;
            first
        }
        GeneratorModel::DalleBart(config) => {
            check_image_tokens(manifest, config)?;
            let sampling = entry.sampling.unwrap_or_default();
            sampling.validate().map_err(|source| PipelineError::Config { part: Part::Generator, source })?;
            return config.validate().map_err(|source| PipelineError::Config { part: Part::Generator, source });
        }
    };
    let mut stages: Vec<&DiffusionConfig> = vec![first];
    for (stage, entry) in manifest.super_resolution.iter().enumerate() {
        match &entry.model {
            GeneratorModel::Diffusion(config) => {
                refuse_image_token_sampling(Part::SuperResolution(stage), entry.sampling)?;
                stages.push(config);
            }
            GeneratorModel::DalleBart(_) => {
                return Err(disagreement(Part::SuperResolution(stage), "model", "diffusion networks in every stage", entry.model.kind()));
            }
        }
    }
    check_stages(&stages, latent_facts(manifest), manifest.text_encoder.as_ref().map(|entry| &entry.model))
}

/// `[generator.sampling]` speaks of image tokens; a diffusion network's model says itself how it is drawn, and two answers would be one too many.
pub(crate) fn refuse_image_token_sampling(part: Part, sampling: Option<ImageTokenSampling>) -> Result<(), PipelineError> {
    match sampling {
        Some(_) => Err(disagreement(part, "sampling", "none beside a diffusion network, whose model has its own", "settings for image tokens")),
        None => Ok(()),
    }
}

fn latent_facts(manifest: &Manifest) -> Option<LatentFacts<'_>> {
    let entry = manifest.image_tokenizer.as_ref()?;
    Some(LatentFacts { model: &entry.model, image_size: entry.image_size, latent_scale: entry.latent_scale })
}

/// A classifier, of the bundle itself or lent by another, must know the canvases of the generator; beside none it has only to be possible.
pub(crate) fn check_classifier(classifier: &ClassifierModel, manifest: &Manifest) -> Result<(), PipelineError> {
    let ClassifierModel::Noisy(config) = classifier;
    match manifest.generator.as_ref().map(|entry| &entry.model) {
        Some(GeneratorModel::Diffusion(generator)) => check_guidance(config, generator, latent_facts(manifest)),
        Some(GeneratorModel::DalleBart(_)) => Err(nothing_to_guide()),
        None => config.validate().map_err(|source| PipelineError::Config { part: Part::Classifier, source }),
    }
}

/// Image tokens are not noise, of which a classifier could say anything.
pub(crate) fn nothing_to_guide() -> PipelineError {
    disagreement(Part::Classifier, "model", "none: the generator draws image tokens one after the other", "noisy")
}

/// A classifier must have been trained on what the network it guides is trained on.
pub(crate) fn check_guidance(classifier: &ClassifierConfig, generator: &DiffusionConfig, image_tokenizer: Option<LatentFacts>) -> Result<(), PipelineError> {
    let part = Part::Classifier;
    let possible = |source| PipelineError::Config { part, source };
    classifier.validate().map_err(possible)?;
    if classifier.canvas != generator.canvas {
        return Err(disagreement(part, "canvas", format!("{}, as the generator draws", generator.canvas), classifier.canvas));
    }
    if classifier.image_size != generator.image_size {
        return Err(disagreement(part, "image_size", format!("{}, as the generator draws", generator.image_size), classifier.image_size));
    }
    if classifier.process != generator.process {
        return Err(disagreement(part, "process", format!("that of the generator ({})", generator.process), &classifier.process));
    }
    let (expected, found) = (generator.network.channels(), classifier.network.input_channels);
    if expected != found {
        return Err(disagreement(part, "network.input_channels", format!("{expected}, as the generator draws"), found));
    }
    if let (Canvas::Latents, Some(facts)) = (classifier.canvas, image_tokenizer) {
        check_latent_scale(part, classifier.latent_scale, facts)?;
        classifier.check_side(facts.image_size / facts.model.downsampling_factor()).map_err(possible)?;
    }
    Ok(())
}

/// Latents must be as large as those that `part` was trained on.
fn check_latent_scale(part: Part, found: Option<f32>, image_tokenizer: LatentFacts) -> Result<(), PipelineError> {
    if found == image_tokenizer.latent_scale {
        return Ok(());
    }
    let expected = format!("{}, as the image tokenizer has; another scale is another image tokenizer", shown(image_tokenizer.latent_scale));
    Err(disagreement(part, "latent_scale", expected, shown(found)))
}

fn shown(scale: Option<f32>) -> String {
    scale.map_or("none".to_string(), |scale| scale.to_string())
}

/// What a generator of latents must agree with.
#[derive(Clone, Copy)]
pub(crate) struct LatentFacts<'a> {
    pub model: &'a ImageTokenizerModel,
    pub image_size: usize,
    pub latent_scale: Option<f32>,
}

/// The stages of a diffusion system, never none, must fit each other and the parts beside them, as far as those are there.
pub(crate) fn check_stages(
    stages: &[&DiffusionConfig],
    image_tokenizer: Option<LatentFacts>,
    text_encoder: Option<&TextEncoderModel>,
) -> Result<(), PipelineError> {
    if let Some(low_resolution) = &stages[0].low_resolution {
        let expected = format!("a first stage, which starts from nothing; this one enlarges pictures of {} pixels", low_resolution.image_size);
        return Err(disagreement(Part::Generator, "low_resolution", expected, "one that enlarges"));
    }
    check_diffusion(Part::Generator, stages[0], image_tokenizer, text_encoder)?;
    for (stage, pair) in stages.windows(2).enumerate() {
        let (part, below, config) = (Part::SuperResolution(stage), pair[0], pair[1]);
        let found = config.low_resolution.as_ref().map(|low_resolution| low_resolution.image_size);
        if found != Some(below.image_size) {
            let expected = format!("{}, the pictures of the stage below", below.image_size);
            return Err(disagreement(part, "low_resolution.image_size", expected, found.map_or("no such table".to_string(), |size| size.to_string())));
        }
        check_told_alike(part, stages[0], config)?;
        check_diffusion(part, config, image_tokenizer, text_encoder)?;
    }
    Ok(())
}

/// What the first stage is told is all there is to tell the others; they may be told nothing.
fn check_told_alike(part: Part, first: &DiffusionConfig, config: &DiffusionConfig) -> Result<(), PipelineError> {
    if !config.classes.is_empty() && config.classes != first.classes {
        let expected = format!("none, or those of the first stage ({})", listed(&first.classes));
        return Err(disagreement(part, "classes", expected, listed(&config.classes)));
    }
    match &config.text {
        Some(text) if first.text.as_ref() != Some(text) => {
            let shown =
                |text: &TextCondition| format!("{} text tokens, padding {}", text.token_count, if text.attend_to_padding { "attended to" } else { "hidden" });
            let expected = format!("none, or that of the first stage ({})", first.text.as_ref().map_or("none".to_string(), shown));
            Err(disagreement(part, "text", expected, shown(text)))
        }
        _ => Ok(()),
    }
}

fn listed(classes: &[String]) -> String {
    if classes.is_empty() { "none".to_string() } else { classes.join(", ") }
}

fn check_image_tokens(manifest: &Manifest, generator: &dalle_bart::Config) -> Result<(), PipelineError> {
    let Some(entry) = &manifest.image_tokenizer else { return Ok(()) };
    let Some(code_count) = entry.model.code_count() else {
        return Err(disagreement(Part::ImageTokenizer, "model", "one with a codebook, whose image tokens the generator draws", entry.model.kind()));
    };
    if generator.image_vocabulary != code_count {
        let expected = format!("{code_count}, the number of codes of the image tokenizer");
        return Err(disagreement(Part::Generator, "image_vocabulary", expected, generator.image_vocabulary));
    }
    let token_count = (entry.image_size / entry.model.downsampling_factor()).pow(2);
    if generator.image_token_count != token_count {
        let expected = format!("{token_count}, as {0}x{0} pixels become", entry.image_size);
        return Err(disagreement(Part::Generator, "image_token_count", expected, generator.image_token_count));
    }
    Ok(())
}

fn check_diffusion(
    part: Part,
    config: &DiffusionConfig,
    image_tokenizer: Option<LatentFacts>,
    text_encoder: Option<&TextEncoderModel>,
) -> Result<(), PipelineError> {
    config.validate().map_err(|source| PipelineError::Config { part, source })?;
    let mut side = config.image_size;
    if config.canvas == Canvas::Latents
        && let Some(entry) = image_tokenizer
    {
        if config.image_size != entry.image_size {
            return Err(disagreement(part, "image_size", format!("{}, as the image tokenizer has", entry.image_size), config.image_size));
        }
        let (expected, found) = (entry.model.latent_channels(), config.network.channels());
        if expected != found {
            return Err(disagreement(part, "network", format!("{expected} channels, as the latents of the image tokenizer have"), found));
        }
        if entry.latent_scale.is_none_or(|scale| !(scale.is_finite() && scale > 0.0)) {
            let expected = "what brings latents to unit variance, which a generator of latents needs";
            return Err(disagreement(Part::ImageTokenizer, "latent_scale", expected, shown(entry.latent_scale)));
        }
        if config.latent_scale.is_some() {
            check_latent_scale(part, config.latent_scale, entry)?;
        }
        side /= entry.model.downsampling_factor();
    }
    let divisor = config.network.side_divisor();
    if !side.is_multiple_of(divisor) {
        return Err(disagreement(part, "image_size", format!("a canvas whose side is a multiple of {divisor}"), side));
    }
    if let (Some(text), Some(encoder)) = (&config.text, text_encoder) {
        let (expected, found) = (Some(encoder.channels()), config.network.text_channels());
        if expected != found {
            let found = found.map_or("none".to_string(), |channels| channels.to_string());
            return Err(disagreement(part, "text channels", format!("{}, as the text encoder has", encoder.channels()), found));
        }
        if let Some(length) = encoder.context_length().filter(|&length| text.token_count > length) {
            return Err(disagreement(part, "text.token_count", format!("at most {length}, which the text encoder reads"), text.token_count));
        }
    }
    Ok(())
}

fn disagreement(part: Part, key: &'static str, expected: impl ToString, found: impl ToString) -> PipelineError {
    PipelineError::Disagreement { part, key, expected: expected.to_string(), found: found.to_string() }
}
