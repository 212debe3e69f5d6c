//! CLIP's text tower, T5 and BERT.

use super::files::{Network, fitted, network, not_this};
use super::text_tokenizers::{bert_text_tokenizer, clip_text_tokenizer, t5_text_tokenizer};
use super::{ImportedPart, Source, provenance};
use crate::parts::TextEncoder;
use crate::{PipelineError, TextEncoderPart};
use burn::tensor::Device;
use smalti_data::text_tokenizer::TextTokenizer;
use smalti_models::text_encoder::bert::{self, Bert};
use smalti_models::text_encoder::clip_text::{self, ClipText, State};
use smalti_models::text_encoder::t5::{self, T5Encoder};
use smalti_nn::Initializer;
use std::path::Path;

/// The text tokenizer is beside the weights or, as in the folder of a pipeline, in `tokenizer/` beside their folder.
pub(super) fn hugging_face_clip_text(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let network = network(&source.path)?;
    let path = network.path.clone();
    let model = clip_text(network, device)?;
    let folders = [source.folder().to_path_buf(), source.folder().join("../tokenizer")];
    let text_tokenizer = clip_text_tokenizer(source, &folders, model.config().vocabulary_size)?;
    Ok(part(&path, TextEncoder::ClipText(model), text_tokenizer))
}

/// Of its states the last count: Stable Diffusion 2, which draws from the next to last layer, is published without the last.
pub(super) fn clip_text(network: Network, device: &Device) -> Result<ClipText, PipelineError> {
    let Network { path, config, tensors } = network;
    let config = clip_text::import::hugging_face_config(&config, State::Last).map_err(|error| not_this(&path, error))?;
    let model = ClipText::new(&config, &mut Initializer::unread(device)).map_err(|error| not_this(&path, error))?;
    fitted(&path, model, clip_text::import::hugging_face(tensors, &config).tensors, device)
}

pub(super) fn hugging_face_t5(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let Network { path, config, tensors } = network(&source.path)?;
    let config = t5::import::hugging_face_config(&config).map_err(|error| not_this(&path, error))?;
    let model = T5Encoder::new(&config, &mut Initializer::unread(device)).map_err(|error| not_this(&path, error))?;
    let model = fitted(&path, model, t5::import::hugging_face(tensors).tensors, device)?;
    Ok(part(&path, TextEncoder::T5(model), t5_text_tokenizer(source, config.vocabulary_size)?))
}

pub(super) fn hugging_face_bert(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let Network { path, config, tensors } = network(&source.path)?;
    let config = bert::import::hugging_face_config(&config).map_err(|error| not_this(&path, error))?;
    let model = Bert::new(&config, &mut Initializer::unread(device)).map_err(|error| not_this(&path, error))?;
    let model = fitted(&path, model, bert::import::hugging_face(tensors).tensors, device)?;
    Ok(part(&path, TextEncoder::Bert(model), bert_text_tokenizer(source, config.vocabulary_size)?))
}

fn part(path: &Path, model: TextEncoder, text_tokenizer: Option<TextTokenizer>) -> ImportedPart {
    ImportedPart::TextEncoder(Box::new(TextEncoderPart { model, text_tokenizer, provenance: provenance(path) }))
}
