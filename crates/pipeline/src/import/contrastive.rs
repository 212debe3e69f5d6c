//! CLIP, both towers.

use super::files::{Network, fitted, network, not_this, one_checkpoint, read};
use super::text_tokenizers::text_tokenizer;
use super::{ImportedPart, Source, provenance};
use crate::{ContrastivePart, PipelineError};
use burn::tensor::Device;
use smalti_data::text_tokenizer::SpecialTokens;
use smalti_models::contrastive::clip::{self, Clip};
use smalti_nn::Initializer;
use smalti_nn::weights::NamedTensors;
use std::path::Path;

pub(super) fn hugging_face_clip(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let Network { path, config, tensors } = network(&source.path)?;
    let clip::import::HuggingFaceConfig { config, end_token } = clip::import::hugging_face_config(&config).map_err(|error| not_this(&path, error))?;
    contrastive(source, &path, &config, clip::import::hugging_face(tensors), Some(end_token), device)
}

pub(super) fn open_ai_clip(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let path = one_checkpoint(&source.path)?;
    let tensors = read(&path)?;
    let config = clip::import::open_ai_config(&tensors).map_err(|error| not_this(&path, error))?;
    contrastive(source, &path, &config, clip::import::open_ai(tensors), None, device)
}

fn contrastive(
    source: &Source,
    path: &Path,
    config: &clip::Config,
    tensors: NamedTensors,
    end_token: Option<u32>,
    device: &Device,
) -> Result<ImportedPart, PipelineError> {
    let model = Clip::new(config, &mut Initializer::unread(device)).map_err(|error| not_this(path, error))?;
    let model = fitted(path, model, tensors, device)?;
    let mut text_tokenizer = text_tokenizer(source, config.text.vocabulary_size)?;
    if let (Some(known), Some(end)) = (&text_tokenizer, end_token) {
        let specials = SpecialTokens { end, ..known.special_tokens() };
        text_tokenizer = Some(known.clone().with_special_tokens(specials)?);
    }
    Ok(ImportedPart::Contrastive(Box::new(ContrastivePart { model, text_tokenizer, provenance: provenance(path) })))
}
