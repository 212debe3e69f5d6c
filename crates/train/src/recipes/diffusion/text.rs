//! The frozen text encoder of a diffusion training.

use crate::TrainError;
use burn::tensor::Device;
use smalti_models::text_encoder::clip_text::{self, ClipText, State};
use smalti_nn::Initializer;
use smalti_nn::weights::{apply, collect};
use smalti_pipeline::parts::TextEncoder;
use smalti_pipeline::{BundleFolder, ContrastivePart, Part, TextEncoderPart};
use std::path::Path;

/// The text encoder of a bundle, or the text tower of its contrastive part, as Stable Diffusion uses CLIP's.
pub fn load(path: &Path, device: &Device) -> Result<TextEncoderPart, TrainError> {
    let folder = BundleFolder::open(path)?;
    let parts = folder.manifest().parts();
    if parts.contains(&Part::TextEncoder) || !parts.contains(&Part::Contrastive) {
        return Ok(folder.text_encoder(device, "encode captions")?);
    }
    text_tower(folder.contrastive(device, "encode captions")?, device)
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
