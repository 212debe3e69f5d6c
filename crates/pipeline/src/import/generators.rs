//! DALL-E mini.

use super::files::{Network, checkpoint_files, fitted, network, not_this, read, wrong};
use super::text_tokenizers::text_tokenizer;
use super::{ImportedPart, Source, provenance};
use crate::parts::Generator;
use crate::{GeneratorPart, PipelineError};
use burn::tensor::Device;
use smalti_models::generator::dalle_bart::{self, DalleBart, import as dalle_bart_import};
use smalti_nn::Initializer;
use smalti_nn::weights::NamedTensors;
use std::path::Path;

pub(super) fn min_dalle(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let [encoder, decoder] = ["encoder", "decoder"].map(|side| {
        let files = checkpoint_files(&source.path)?;
        let found = files.into_iter().find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(side)));
        found.ok_or_else(|| wrong(&source.path, format!("expected a folder with {side}.pt, found none")))
    });
    let (encoder_path, decoder) = (encoder?, read(&decoder?)?);
    let encoder = read(&encoder_path)?;
    let config = dalle_bart_import::min_dalle_config(&encoder, &decoder).map_err(|error| not_this(&source.path, error))?;
    generator(source, &source.path, &config, dalle_bart_import::min_dalle(encoder, decoder), device)
}

pub(super) fn hugging_face_bart(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let Network { path, config, tensors } = network(&source.path)?;
    let config = dalle_bart_import::hugging_face_config(&config).map_err(|error| not_this(&path, error))?;
    generator(source, &path, &config, dalle_bart_import::hugging_face(tensors, &config), device)
}

fn generator(source: &Source, path: &Path, config: &dalle_bart::Config, tensors: NamedTensors, device: &Device) -> Result<ImportedPart, PipelineError> {
    let model = fitted(path, DalleBart::new(config, &mut Initializer::unread(device)), tensors, device)?;
    let text_tokenizer = text_tokenizer(source, config.text_vocabulary)?;
    Ok(ImportedPart::Generator(Box::new(GeneratorPart { model: Generator::DalleBart(model), text_tokenizer, sampling: None, provenance: provenance(path) })))
}
