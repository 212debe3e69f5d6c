//! Pictures through the image tokenizer and back: what its codes keep and what they lose.

use crate::progress::{Progress, Stage};
use crate::rerank::finite;
use crate::{ImageTokenizerPart, PipelineError};
use burn::tensor::{Int, Tensor, TensorData};
use smalti_data::Picture;
use smalti_data::transform::Transform;
use smalti_generation::random::picture_rng;

/// A picture, what became of it, and the image tokens between.
#[derive(Clone, Debug, PartialEq)]
pub struct Reconstruction {
    pub picture: Picture,
    /// Row after row; none where latents are continuous.
    pub image_tokens: Vec<u32>,
}

/// The middle square of a picture of any size, resized to `image_size` pixels a side.
pub fn fitted(picture: &Picture, image_size: usize) -> Result<Picture, PipelineError> {
    let transform = Transform::new(image_size);
    transform.validate()?;
    // Nothing is drawn from the stream: the middle is the middle.
    Ok(transform.apply(picture, &mut picture_rng(0, 0)))
}

/// Encodes and decodes pictures whose sides are multiples of the tokenizer's factor, one after the other (they may differ in size).
pub fn reconstruct(
    image_tokenizer: &ImageTokenizerPart,
    pictures: &[Picture],
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Reconstruction>, PipelineError> {
    let factor = image_tokenizer.model.downsampling_factor();
    let mut reconstructions = Vec::with_capacity(pictures.len());
    for picture in pictures {
        let Picture { width, height, .. } = *picture;
        if !width.is_multiple_of(factor) || !height.is_multiple_of(factor) {
            let (expected, found) = (format!("sides that are multiples of {factor}"), format!("{width}x{height}"));
            return Err(PipelineError::Request { key: "picture", expected, found, hint: None });
        }
        let device = image_tokenizer.device();
        let pixels = Tensor::<4>::from_data(TensorData::new(picture.to_f32(), [1, height, width, 3]), &device);
        let (picture, image_tokens) = match image_tokenizer.model.discrete() {
            Some(model) => {
                let image_tokens = model.tokens(pixels).into_data().iter::<i64>().map(|token| token as u32).collect::<Vec<_>>();
                (decode(image_tokenizer, &[&image_tokens], [height / factor, width / factor])?.remove(0), image_tokens)
            }
            None => {
                let values: Vec<f32> = image_tokenizer.model.decode(image_tokenizer.model.encode(pixels)).into_data().iter::<f32>().collect();
                (checked_picture(width, height, &values)?, Vec::new())
            }
        };
        reconstructions.push(Reconstruction { picture, image_tokens });
        progress(Progress { stage: Stage::Pictures, done: reconstructions.len(), total: pictures.len() });
    }
    Ok(reconstructions)
}

/// Image tokens of several pictures, each [rows * columns], to pictures of one size.
pub fn decode(image_tokenizer: &ImageTokenizerPart, image_tokens: &[&[u32]], grid: [usize; 2]) -> Result<Vec<Picture>, PipelineError> {
    let Some(model) = image_tokenizer.model.discrete() else {
        let (expected, found) = ("an image tokenizer with a codebook".to_string(), image_tokenizer.model.config().kind().to_string());
        return Err(PipelineError::Request { key: "image token", expected, found, hint: None });
    };
    let factor = model.downsampling_factor();
    let [height, width] = grid.map(|size| size * factor);
    if let Some(token) = image_tokens.iter().flat_map(|tokens| *tokens).find(|token| **token as usize >= model.code_count()) {
        let (expected, found) = (format!("below the {} codes of the image tokenizer", model.code_count()), token.to_string());
        return Err(PipelineError::Request { key: "image token", expected, found, hint: None });
    }
    let tokens: Vec<i64> = image_tokens.iter().flat_map(|tokens| tokens.iter().map(|&token| i64::from(token))).collect();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens, [image_tokens.len(), grid[0] * grid[1]]), &image_tokenizer.device());
    let values: Vec<f32> = model.decode_tokens(tokens, grid).into_data().iter::<f32>().collect();
    values.chunks_exact(height * width * 3).map(|values| checked_picture(width, height, values)).collect()
}

fn checked_picture(width: usize, height: usize, values: &[f32]) -> Result<Picture, PipelineError> {
    values.iter().try_for_each(|&value| finite("picture", value).map(drop))?;
    Ok(Picture::from_f32(width, height, values)?)
}
