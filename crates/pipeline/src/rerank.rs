//! How well pictures fit a prompt, by a contrastive network: cosine of the two embeddings, in [-1, 1].

use crate::progress::{Progress, Stage};
use crate::reading::{self, Text, Truncation};
use crate::{ContrastivePart, Part, PipelineError};
use burn::tensor::{Int, Tensor, TensorData};
use smalti_data::Picture;
use smalti_data::resize::{Filter, resize};
use smalti_data::text_tokenizer::Encoded;

/// Pictures that go through the network at once. The scores do not depend on it.
const BATCH_SIZE: usize = 16;

/// One score for each picture, of any size. A prompt that is too long for the network is judged by its start (see [`truncation`]).
pub fn scores(contrastive: &ContrastivePart, prompt: &str, pictures: &[Picture], progress: &mut dyn FnMut(Progress)) -> Result<Vec<f32>, PipelineError> {
    scores_of(contrastive, prompt, pictures.len(), |index| Ok(pictures[index].clone()), progress)
}

/// The same for pictures that `read` gives one by one, so that not all of them need be in memory at full size.
pub fn scores_of(
    contrastive: &ContrastivePart,
    prompt: &str,
    count: usize,
    read: impl Fn(usize) -> Result<Picture, PipelineError>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<f32>, PipelineError> {
    let text = text_embedding(contrastive, prompt)?;
    let (network, size) = (&contrastive.model, contrastive.model.config().image.image_size);
    let device = network.logit_scale().device();
    let mut scores = Vec::with_capacity(count);
    for first in (0..count).step_by(BATCH_SIZE) {
        let batch = first..(first + BATCH_SIZE).min(count);
        // Squashed to the square with the filter of the authors' own preprocessing (bicubic); pictures made here are square anyway.
        let squares = batch.clone().map(|index| Ok(resize(&read(index)?, size, size, Filter::Bicubic).to_f32())).collect::<Result<Vec<_>, PipelineError>>()?;
        let pixels = squares.concat();
        let pixels = Tensor::<4>::from_data(TensorData::new(pixels, [batch.len(), size, size, 3]), &device);
        let embeddings: Vec<f32> = network.encode_image(pixels).into_data().iter::<f32>().collect();
        for embedding in embeddings.chunks_exact(text.len()) {
            scores.push(finite("score", embedding.iter().zip(&text).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32)?);
        }
        progress(Progress { stage: Stage::Scores, done: scores.len(), total: count });
    }
    Ok(scores)
}

/// What of a prompt the network would not read.
pub fn truncation(contrastive: &ContrastivePart, prompt: &str) -> Result<Option<Truncation>, PipelineError> {
    Ok(read(contrastive, prompt)?.1)
}

/// Indices of the scores from the best to the worst; of equals the first stays first.
pub fn order(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&left, &right| scores[right].total_cmp(&scores[left]));
    order
}

pub(crate) fn finite(what: &'static str, value: f32) -> Result<f32, PipelineError> {
    if value.is_finite() { Ok(value) } else { Err(PipelineError::NotFinite { what, value }) }
}

fn text_embedding(contrastive: &ContrastivePart, prompt: &str) -> Result<Vec<f32>, PipelineError> {
    if prompt.trim().is_empty() {
        return Err(PipelineError::EmptyPrompt);
    }
    let context_length = contrastive.model.config().text.context_length;
    let (encoded, _) = read(contrastive, prompt)?;
    let device = contrastive.model.logit_scale().device();
    let tokens: Vec<i64> = encoded.tokens.iter().map(|&token| i64::from(token)).collect();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens, [1, context_length]), &device);
    Ok(contrastive.model.encode_text(tokens, &[encoded.end]).into_data().iter::<f32>().collect())
}

fn read(contrastive: &ContrastivePart, prompt: &str) -> Result<(Encoded, Option<Truncation>), PipelineError> {
    let text_tokenizer = contrastive.text_tokenizer.as_ref().ok_or_else(|| no_text_tokenizer(Part::Contrastive))?;
    reading::read(text_tokenizer, Part::Contrastive, Text::Prompt, prompt, contrastive.model.config().text.context_length)
}

pub(crate) fn no_text_tokenizer(part: Part) -> PipelineError {
    PipelineError::Disagreement {
        part,
        key: "text_tokenizer",
        expected: "the text tokenizer the network was trained with".into(),
        found: "none; hint: import again with --text-tokenizer FILE".into(),
    }
}
