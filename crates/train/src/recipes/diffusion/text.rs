//! The frozen text encoder of a diffusion training.

use super::settings::{ConditionSettings, DiffusionRecipe};
use crate::TrainError;
use crate::pictures::Pictures;
use crate::settings::TrainSettings;
use crate::text_states::TextStates;
use burn::tensor::Device;
use smalti_models::text_encoder::clip_text::{self, ClipText, State};
use smalti_nn::Initializer;
use smalti_nn::weights::{apply, collect};
use smalti_pipeline::parts::TextEncoder;
use smalti_pipeline::{Bundle, BundleFolder, ContrastivePart, Part, TextEncoderPart};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The text encoder of a recipe, and the states of the captions of its pictures; `None` where the network is told no text. A stage of a cascade reads by the
/// encoder of the stage below.
pub fn states(recipe: &DiffusionRecipe, below: Option<&Bundle>, pictures: &Pictures, device: &Device) -> Result<Option<TextStates>, TrainError> {
    let ConditionSettings { text: condition, text_state_cache: cache, .. } = &recipe.conditions;
    let (Some(condition), Some((_, path))) = (condition, reader(recipe)) else { return Ok(None) };
    let folder = BundleFolder::open(path)?;
    let part = lending(&folder);
    let encoder = match (part, below.and_then(|below| below.text_encoder.clone())) {
        (_, Some(encoder)) => encoder,
        (Part::Contrastive, None) if below.is_none() => text_tower(folder.contrastive(device, "encode captions")?, device)?,
        _ => folder.text_encoder(device, "encode captions")?,
    };
    let checksum = folder.manifest().summary(part).map_or("", |(weights, ..)| &weights.sha256);
    // Before anything is encoded: the text tokens of a caption must fit the encoder.
    if let Some(length) = encoder.model.config().context_length().filter(|&length| condition.token_count > length) {
        let reason =
            format!("expected at most {length} text tokens, which its text encoder reads, found conditions.text.token_count = {}", condition.token_count);
        return Err(TrainError::Unfit { place: path.display().to_string(), reason });
    }
    let TrainSettings { steps, batch_size, accumulation, .. } = recipe.train;
    let captions = if cache.as_os_str().is_empty() { BTreeSet::new() } else { captions(pictures) };
    // A training that ends before it has met so many captions would wait longer for their states than it saves.
    let pays = !captions.is_empty() && captions.len() <= steps.saturating_mul(batch_size * accumulation);
    Ok(Some(match pays {
        true => TextStates::cached(encoder, checksum, condition.clone(), cache, captions)?,
        false => TextStates::fresh(encoder, condition.clone()),
    }))
}

/// The key of the recipe and the bundle whose part reads captions.
pub fn reader(recipe: &DiffusionRecipe) -> Option<(&'static str, &PathBuf)> {
    let own = recipe.text_encoder.as_ref().map(|path| ("text_encoder", path));
    own.or(recipe.stage_below.as_ref().map(|path| ("stage_below", path)))
}

/// Every caption that training and evaluations may ask for; one that cannot be read is said by whoever needs it.
fn captions(pictures: &Pictures) -> BTreeSet<String> {
    let dataset = pictures.training();
    let training = (0..dataset.len()).filter_map(|index| dataset.description(index).ok()).flat_map(|description| description.captions);
    let evaluation = pictures.evaluation().iter().filter_map(|item| item.captions.first().cloned());
    training.chain(evaluation).chain([String::new()]).collect()
}

/// The part of a bundle that reads captions: its text encoder, or the text tower of its contrastive part, as Stable Diffusion uses CLIP's.
pub fn lending(folder: &BundleFolder) -> Part {
    let parts = folder.manifest().parts();
    if parts.contains(&Part::TextEncoder) || !parts.contains(&Part::Contrastive) { Part::TextEncoder } else { Part::Contrastive }
}

fn text_tower(contrastive: ContrastivePart, device: &Device) -> Result<TextEncoderPart, TrainError> {
    let config = contrastive.model.config();
    let config = clip_text::Config {
        vocabulary_size: config.text.vocabulary_size,
        context_length: config.text.context_length,
        transformer: config.text.transformer.clone(),
        projection_channels: Some(config.embedding_channels),
        state: State::Last,
    };
    let impossible = |error: smalti_models::ConfigError| TrainError::Unfit { place: "text encoder".to_string(), reason: error.to_string() };
    let model = ClipText::new(&config, &mut Initializer::unread(device)).map_err(impossible)?;
    // The two have the same weights by the same names.
    let model = apply(model, collect(&contrastive.model.text), device)?;
    Ok(TextEncoderPart { model: TextEncoder::ClipText(model), text_tokenizer: contrastive.text_tokenizer, provenance: contrastive.provenance })
}
