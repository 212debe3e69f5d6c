//! The text side of a run: `[text_tokenizer]` of a recipe, and captions as tensors.

use crate::TrainError;
use crate::recipe_file::{RecipeError, RecipeFile};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use smalti_data::DataError;
use smalti_data::dataset::Dataset;
use smalti_data::text_tokenizer::TextTokenizer;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// `[text_tokenizer]`: trained on the captions of the training pictures, or any published one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextTokenizerSettings {
    /// The most entries of a vocabulary trained on the captions; few captions make fewer.
    pub vocabulary_size: usize,
    /// A `tokenizer.json` to use instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// Three special tokens and 256 bytes.
const SMALLEST_VOCABULARY: usize = 259;

impl TextTokenizerSettings {
    pub fn validate(&self, file: &RecipeFile) -> Result<(), RecipeError> {
        if !(SMALLEST_VOCABULARY..=1 << 20).contains(&self.vocabulary_size) {
            let expected = format!("expected {SMALLEST_VOCABULARY} to {}, found {}", 1 << 20, self.vocabulary_size);
            return Err(file.reject("text_tokenizer.vocabulary_size", expected));
        }
        Ok(())
    }

    /// The same captions give the same text tokenizer.
    pub fn make(&self, training: &Dataset) -> Result<TextTokenizer, TrainError> {
        match &self.file {
            Some(path) => Ok(TextTokenizer::from_file(path)?),
            None => Ok(TextTokenizer::train(&training.captions()?, self.vocabulary_size)?),
        }
    }
}

/// The captions of every picture of a data set, and which of `readable` may be shown: not those whose caption is missing or blank where one is required,
/// which were said and counted before.
pub fn of_readable(dataset: &Dataset, mut readable: Vec<usize>) -> Result<(Vec<Vec<String>>, Vec<usize>), TrainError> {
    let (mut captions, mut blank) = (Vec::with_capacity(dataset.len()), BTreeSet::new());
    for index in 0..dataset.len() {
        captions.push(match dataset.description(index) {
            Ok(description) => description.captions,
            Err(DataError::BlankCaption { .. }) => {
                blank.insert(index);
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        });
    }
    readable.retain(|index| !blank.contains(index));
    if readable.is_empty() {
        return Err(TrainError::Unfit { place: dataset.path().display().to_string(), reason: "no picture can be read".to_string() });
    }
    Ok((captions, readable))
}

/// Captions as a network wants them.
#[derive(Clone, Debug)]
pub struct TextBatch {
    /// [batch, length]
    pub tokens: Tensor<2, Int>,
    /// [batch, length]: false on padding.
    pub visible: Tensor<2, Bool>,
    /// Where each caption ends.
    pub ends: Vec<usize>,
}

impl TextBatch {
    /// Every caption padded or cut to `length` text tokens.
    pub fn new<S: AsRef<str>>(text_tokenizer: &TextTokenizer, captions: &[S], length: usize, device: &Device) -> Result<Self, TrainError> {
        let (mut tokens, mut visible, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for caption in captions {
            let encoded = text_tokenizer.encode(caption.as_ref(), length)?;
            tokens.extend(encoded.tokens.iter().map(|&token| token as i64));
            visible.extend(encoded.visible);
            ends.push(encoded.end);
        }
        let shape = [captions.len(), length];
        let tokens = Tensor::from_data(TensorData::new(tokens, shape), device);
        let visible = Tensor::from_data(TensorData::new(visible, shape), device);
        Ok(Self { tokens, visible, ends })
    }
}
