//! Where clean canvases come from: pictures decoded ahead, or latents that lie ready.

use crate::TrainError;
use crate::captions;
use crate::encoding_cache::{self, Latents};
use crate::order::EpochOrder;
use crate::pictures::Pictures;
use crate::recipe::Pass;
use burn::tensor::Device;
use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use smalti_data::Picture;
use smalti_data::loader::Item;
use smalti_data::resize::{Filter, resize};
use smalti_generation::random::fill_normal;
use smalti_pipeline::text_to_image::ENLARGING;
use smalti_pipeline::{BundleFolder, ImageTokenizerPart, PipelineError};
use std::path::Path;

/// A canvas and whose it is.
pub struct Clean {
    pub values: Vec<f32>,
    /// Place in the data set.
    pub index: usize,
    pub caption: String,
    /// What is left of its random stream.
    pub rng: ChaCha12Rng,
}

/// What the network draws on.
pub enum Source {
    Pixels,
    Latents(Box<LatentSource>),
}

/// Latents of every training picture that could be read, brought to unit variance.
pub struct LatentSource {
    pub image_tokenizer: ImageTokenizerPart,
    /// Measured on data, stored with the image tokenizer, checked when it was loaded.
    scale: f32,
    latents: Latents,
    variant_count: usize,
    captions: Vec<Vec<String>>,
    order: EpochOrder,
}

impl Source {
    /// Latents of the image tokenizer in the bundle at a path, or pixels.
    pub fn new(image_tokenizer: Option<&Path>, pictures: &Pictures, seed: u64, device: &Device) -> Result<Self, TrainError> {
        let Some(path) = image_tokenizer else { return Ok(Self::Pixels) };
        let data = pictures.settings();
        let unfit = |reason: String| TrainError::Unfit { place: path.display().to_string(), reason };
        let folder = BundleFolder::open(path)?;
        let image_tokenizer = folder.image_tokenizer(device, "encode the training pictures")?;
        let checksum = folder.manifest().image_tokenizer.as_ref().map_or(String::new(), |entry| entry.weights.sha256.clone());
        if image_tokenizer.image_size != data.image_size {
            let (expected, found) = (image_tokenizer.image_size, data.image_size);
            return Err(unfit(format!("expected pictures of {expected} pixels, which the image tokenizer was trained on, found data.image_size = {found}")));
        }
        let scale = image_tokenizer.latent_scale.ok_or_else(|| unfit("expected a latent scale measured on data, found none".to_string()))?;
        let latents = encoding_cache::latents(&data.image_token_cache, pictures, &image_tokenizer, &checksum)?;
        let (captions, readable) = captions::of_readable(pictures.training(), latents.readable())?;
        let order = EpochOrder::new(readable, seed);
        Ok(Self::Latents(Box::new(LatentSource { image_tokenizer, scale, latents, variant_count: data.encoded_variants, captions, order })))
    }

    pub fn image_tokenizer(&self) -> Option<&ImageTokenizerPart> {
        match self {
            Self::Pixels => None,
            Self::Latents(source) => Some(&source.image_tokenizer),
        }
    }

    /// The canvases of a pass.
    pub fn batch(&mut self, pictures: &mut Pictures, pass: Pass) -> Result<Vec<Clean>, TrainError> {
        match self {
            Self::Pixels => {
                let batch = pictures.batch(pass)?;
                let value_count = batch.size * batch.size * 3;
                let rows = batch.pictures.chunks_exact(value_count).zip(batch.indices).zip(batch.captions).enumerate();
                Ok(rows.map(|(row, ((values, index), caption))| Clean { values: values.to_vec(), index, caption, rng: pass.rng(row) }).collect())
            }
            Self::Latents(source) => (0..pass.batch_size).map(|row| source.clean(pass, row)).collect(),
        }
    }

    /// The canvases of decoded pictures, without anything random.
    pub fn of_items(&self, items: &[Item]) -> Vec<Vec<f32>> {
        match self {
            Self::Pixels => items.iter().map(|item| item.picture.to_f32()).collect(),
            Self::Latents(source) => {
                let scaled = |moments: Vec<f32>| {
                    let value_count = source.value_count();
                    moments.into_iter().take(value_count).map(|mean| mean * source.scale).collect()
                };
                encoding_cache::encode_latents(&source.image_tokenizer, items).into_iter().map(scaled).collect()
            }
        }
    }
}

impl LatentSource {
    fn value_count(&self) -> usize {
        self.image_tokenizer.grid().iter().product::<usize>() * self.image_tokenizer.model.config().latent_channels()
    }

    /// A KL autoencoder's latents are drawn anew each time they are seen.
    fn clean(&mut self, pass: Pass, row: usize) -> Result<Clean, TrainError> {
        let index = self.order.place(pass.first_example() + row as u64);
        let mut rng = pass.rng(row);
        let choice = rng.random::<f64>();
        let captions = &self.captions[index];
        let caption = captions.get((choice * captions.len() as f64) as usize).cloned().unwrap_or_default();
        let variant = if self.variant_count > 1 { rng.random_range(0..self.variant_count as u64) as usize } else { 0 };
        let (mut values, log_variance) = self.latents.of(index, variant).unwrap_or_default();
        let mut noise = vec![0.0; log_variance.len()];
        fill_normal(&mut rng, &mut noise);
        values.iter_mut().zip(log_variance.iter().zip(noise)).for_each(|(value, (log_variance, noise))| *value += (0.5 * log_variance).exp() * noise);
        values.iter_mut().for_each(|value| *value *= self.scale);
        Ok(Clean { values, index, caption, rng })
    }
}

/// A picture as the stage below would have made it, enlarged to its own size again: [size, size, 3].
pub fn smaller_picture(picture: &[f32], size: usize, small: usize) -> Result<Vec<f32>, TrainError> {
    let picture = Picture::from_f32(size, size, picture).map_err(PipelineError::from)?;
    let picture = resize(&picture, small, small, Filter::Lanczos);
    Ok(resize(&picture, size, size, ENLARGING).to_f32())
}
