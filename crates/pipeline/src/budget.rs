//! What drawing a picture costs, before anything is loaded: numbers held, multiplications done, memory taken by each part.
//!
//! All of it is counted from configs (`cost.rs` beside each network's), but for the one measured number that turns multiplications into seconds.

mod published;

pub use published::{Published, PublishedPart};

use crate::manifest::{ContrastiveModel, DiffusionConfig, GeneratorModel, ImageTokenizerModel, Manifest, NetworkConfig, Part, TextEncoderModel};
use burn::tensor::{Device, Tensor};
use serde::Serialize;
use smalti_generation::diffusion::Sampler;
use smalti_models::contrastive::clip;
use smalti_models::cost::Cost;
use smalti_nn::Initializer;
use smalti_nn::layers::{Conv2d, Conv2dConfig};
use std::time::{Duration, Instant};

/// Bytes of a number as the networks compute with it.
const NUMBER_BYTES: u64 = 4;

/// One network's share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartBudget {
    pub part: String,
    pub network: &'static str,
    pub parameters: u64,
    /// Products that one pass for one picture sums up.
    pub multiply_adds: u64,
    /// Passes that one picture takes, drawn as it is usually drawn; 0 where drawing needs none.
    pub passes: u64,
    /// Most bytes of features at once, in 32 bits, a lower bound; for one picture, with and without its prompt side by side where guidance does so.
    pub activation_bytes: u64,
}

impl PartBudget {
    pub fn new(part: impl Into<String>, network: &'static str, cost: Cost, passes: u64) -> Self {
        let Cost { parameters, multiply_adds, activations } = cost;
        Self { part: part.into(), network, parameters, multiply_adds, passes, activation_bytes: NUMBER_BYTES * activations }
    }

    /// With two rows in each pass.
    fn side_by_side(self, guided: bool) -> Self {
        Self { activation_bytes: if guided { 2 } else { 1 } * self.activation_bytes, ..self }
    }

    pub fn weight_bytes(&self) -> u64 {
        NUMBER_BYTES * self.parameters
    }
}

/// All parts that draw.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Budget {
    pub parts: Vec<PartBudget>,
}

impl Budget {
    /// One picture of a bundle, as it is usually drawn, decoded and ranked.
    pub fn of_bundle(manifest: &Manifest) -> Self {
        let mut parts = Vec::new();
        let image_size = manifest.image_tokenizer.as_ref().map_or(0, |entry| entry.image_size);
        if let Some(entry) = &manifest.image_tokenizer {
            parts.extend(image_tokenizer(&entry.model, image_size));
        }
        let condition = match manifest.generator.as_ref().map(|entry| &entry.model) {
            Some(GeneratorModel::Diffusion(config)) => config.text.clone(),
            _ => None,
        };
        if let Some(entry) = &manifest.text_encoder {
            let token_count = condition.map_or_else(|| entry.model.context_length().unwrap_or(0), |condition| condition.token_count);
            // The prompt, and what guidance leads away from.
            parts.push(PartBudget::new(Part::TextEncoder.key(), entry.model.kind(), text_encoder(&entry.model, token_count), 2));
        }
        let factor = manifest.image_tokenizer.as_ref().map_or(1, |entry| entry.model.downsampling_factor());
        let stages =
            manifest.super_resolution.iter().enumerate().map(|(stage, entry)| (format!("{} {}", Part::SuperResolution(stage).key(), stage + 1), entry));
        for (part, entry) in manifest.generator.iter().map(|entry| (Part::Generator.key().to_string(), entry)).chain(stages) {
            parts.push(match &entry.model {
                GeneratorModel::DalleBart(config) => PartBudget::new(part, entry.model.kind(), config.cost(), 2).side_by_side(true),
                GeneratorModel::Diffusion(config) => diffusion(part, config, factor),
            });
        }
        if let Some(entry) = &manifest.contrastive {
            let ContrastiveModel::Clip(config) = &entry.model;
            parts.push(PartBudget::new(Part::Contrastive.key(), "clip", clip(config), 1));
        }
        Self { parts }
    }

    pub fn parameters(&self) -> u64 {
        self.parts.iter().map(|part| part.parameters).sum()
    }

    /// Of one picture.
    pub fn multiply_adds(&self) -> u64 {
        self.parts.iter().map(|part| part.passes * part.multiply_adds).sum()
    }

    /// All weights, and the features of the part that has most: parts work one after the other.
    pub fn memory_bytes(&self) -> u64 {
        self.parts.iter().map(PartBudget::weight_bytes).sum::<u64>() + self.parts.iter().map(|part| part.activation_bytes).max().unwrap_or(0)
    }
}

/// The decoder, which every picture passes, and the encoder, which none passes unless it starts from another.
pub fn image_tokenizer(model: &ImageTokenizerModel, image_size: usize) -> [PartBudget; 2] {
    let places = image_size * image_size;
    let (encoder, decoder) = match model {
        ImageTokenizerModel::Vqgan(config) => (config.encoder_cost(places), config.decoder_cost(places)),
        ImageTokenizerModel::AutoencoderKl(config) => (config.encoder_cost(places), config.decoder_cost(places)),
        ImageTokenizerModel::AutoencoderTiny(config) => (config.encoder_cost(places), config.decoder_cost(places)),
    };
    [PartBudget::new("image encoder", model.kind(), encoder, 0), PartBudget::new("image decoder", model.kind(), decoder, 1)]
}

/// One caption.
pub fn text_encoder(model: &TextEncoderModel, token_count: usize) -> Cost {
    match model {
        TextEncoderModel::ClipText(config) => config.cost(token_count),
        TextEncoderModel::T5(config) => config.cost(token_count),
        TextEncoderModel::Bert(config) => config.cost(token_count),
    }
}

/// One picture and one caption.
pub fn clip(config: &clip::Config) -> Cost {
    config.image_cost().then(config.text_cost(config.text.context_length))
}

/// The usual walk of a diffusion network; `factor` is how many times the side of its latents a picture has.
pub fn diffusion(part: impl Into<String>, config: &DiffusionConfig, factor: usize) -> PartBudget {
    let [height, width, _] = config.canvas_shape(factor);
    let token_count = config.text.as_ref().map_or(0, |text| text.token_count);
    let cost = match &config.network {
        NetworkConfig::Unet(network) => network.cost(height * width, token_count),
        NetworkConfig::EfficientUnet(network) => network.cost(height * width, token_count),
    };
    let steps = config.sampling.steps as u64;
    let calls = match config.sampling.sampler {
        // Two at every step but the last.
        Sampler::Heun => (2 * steps).saturating_sub(1),
        _ => steps,
    };
    let conditional = config.text.is_some() || !config.classes.is_empty();
    let guided = conditional && config.sampling.guidance_scale != 1.0;
    PartBudget::new(part, config.network.kind(), cost, calls * if guided { 2 } else { 1 }).side_by_side(guided)
}

/// Products a second of this machine in a convolution as the networks have many, measured for about `time`.
///
/// Other layers reach less, and so do very small pictures: what is computed with it is an estimate.
pub fn measured_multiply_adds_per_second(device: &Device, time: Duration) -> f64 {
    const CHANNELS: usize = 128;
    const SIDE: usize = 32;
    let convolution = Conv2d::new(Conv2dConfig::same(CHANNELS, CHANNELS, 3), &mut Initializer::new(0, device));
    let x = Tensor::<4>::ones([1, SIDE, SIDE, CHANNELS], device);
    // Waits for the result, and warms up first.
    let run = || drop(convolution.forward(x.clone()).sum().into_data());
    run();
    let (started, mut count) = (Instant::now(), 0);
    while count == 0 || started.elapsed() < time {
        run();
        count += 1;
    }
    (9 * CHANNELS * CHANNELS * SIDE * SIDE * count) as f64 / started.elapsed().as_secs_f64()
}
