//! A classifier of noisy canvases (Dhariwal and Nichol 2021, section 4): a network learns which class a canvas is of, drowned to any level of noise.
//!
//! It is trained on the canvases, the process and the levels that a diffusion network is trained on, so that its gradient can lead that network to a class.

pub mod settings; // the recipe

use super::diffusion::canvas::Source;
use super::diffusion::noising::training_level;
use crate::classes::Classes;
use crate::learner::{Learner, Learns};
use crate::pictures::{Pictures, host, scalar, sheet, to_pictures};
use crate::recipe::{Measures, Pass, Purpose, Recipe, RunFacts, stream};
use crate::{TrainError, export};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand_chacha::ChaCha12Rng;
use settings::{Facts, NoisyClassifierRecipe};
use smalti_data::Picture;
use smalti_data::dataset::CaptionRule;
use smalti_data::loader::Item;
use smalti_generation::diffusion::{Level, Process, sigmas};
use smalti_generation::random::fill_normal;
use smalti_models::classifier::noisy::{NoisyClassifier, weighted_cross_entropy};
use smalti_nn::Initializer;
use smalti_pipeline::manifest::ClassifierConfig;
use smalti_pipeline::{Bundle, ClassifierPart};
use std::path::Path;

/// Of the way from picture to noise, where evaluations look.
const SHARES: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];
/// Pictures in a row of a sheet.
const SHEET_COUNT: usize = 8;
/// Width in pixels of the frame around a picture on a sheet, and its colours.
const FRAME: usize = 2;
const RIGHT: [u8; 3] = [30, 150, 70];
const WRONG: [u8; 3] = [205, 45, 45];

/// A noisy classifier in training.
pub struct NoisyClassifierTraining {
    recipe: NoisyClassifierRecipe,
    config: ClassifierConfig,
    pictures: Pictures,
    source: Source,
    classes: Classes,
    /// Without gradients; training tensors are made on its twin with gradients.
    device: Device,
    classifier: Learner<NoisyClassifier>,
}

/// One pass: noisy canvases and their classes.
#[derive(Default)]
pub struct NoisyBatch {
    /// As the network sees them.
    input: Vec<f32>,
    timesteps: Vec<f32>,
    classes: Vec<i64>,
    /// 1, or 0 for a picture without a class.
    weights: Vec<f32>,
}

impl NoisyBatch {
    /// Adds a clean canvas, drowned to a level.
    fn push(&mut self, process: &Process, level: &Level, clean: &[f32], class: Option<usize>, rng: &mut ChaCha12Rng) {
        let mut noise = vec![0.0; clean.len()];
        fill_normal(rng, &mut noise);
        let scale = process.input_scale(level) as f32;
        self.input.extend(level.noised(clean, &noise).iter().map(|value| value * scale));
        self.timesteps.push(level.timestep as f32);
        self.classes.push(class.unwrap_or(0) as i64);
        self.weights.push(if class.is_some() { 1.0 } else { 0.0 });
    }

    /// Pictures with a class, and how many of them have their greatest logit there.
    fn known_and_right(&self, logits: &[f32]) -> (usize, usize) {
        let class_count = logits.len() / self.classes.len();
        let rows = logits.chunks_exact(class_count).zip(&self.classes).zip(&self.weights).filter(|(_, weight)| **weight > 0.0);
        rows.fold((0, 0), |(known, right), ((row, class), _)| (known + 1, right + usize::from(greatest(row) == *class as usize)))
    }
}

fn greatest(row: &[f32]) -> usize {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(place, _)| place)
}

impl NoisyClassifierTraining {
    pub fn new(recipe: &NoisyClassifierRecipe, device: &Device) -> Result<Self, TrainError> {
        let pictures = Pictures::open(&recipe.data, CaptionRule::Optional)?;
        let classes = Classes::of(&pictures, &recipe.class_field, "class_field")?;
        let place = || pictures.training().path().display().to_string();
        if let [only] = classes.names() {
            let reason = format!("expected at least two classes in the field `{}` (class_field), found `{only}` alone", recipe.class_field);
            return Err(TrainError::Unfit { place: place(), reason });
        }
        if classes.unknown_count() > 0 {
            crate::say!("warning: {}: {} of {} pictures have no class and teach nothing", place(), classes.unknown_count(), pictures.training().len());
        }
        let source = Source::new(recipe.image_tokenizer.as_deref(), &pictures, recipe.train.seed, device)?;
        let latents = source.image_tokenizer().and_then(|part| {
            let model = part.model.config();
            Some((model.latent_channels(), model.downsampling_factor(), part.latent_scale?))
        });
        let config = recipe.config(Facts { classes: classes.names().to_vec(), latents });
        let impossible = |error: smalti_models::ConfigError| TrainError::Unfit { place: "recipe".to_string(), reason: error.to_string() };
        config.validate().map_err(impossible)?;
        let factor = latents.map_or(1, |(_, factor, _)| factor);
        config.check_side(config.image_size / factor).map_err(impossible)?;
        let mut initializer = Initializer::new(recipe.train.seed, &device.clone().autodiff());
        let network = NoisyClassifier::new(&config.network, &mut initializer).map_err(impossible)?;
        let classifier = Learner::new("classifier", network, &recipe.optimizer, recipe.train.ema_decay);
        let (recipe, device) = (recipe.clone(), device.clone());
        Ok(Self { recipe, config, pictures, source, classes, device, classifier })
    }

    /// Logits [rows, classes] and the mean cross-entropy of `network` on a batch, by tensors on `device`.
    fn judge(&self, network: &NoisyClassifier, batch: &NoisyBatch, device: &Device) -> (Tensor<2>, Tensor<1>) {
        let (rows, channels) = (batch.timesteps.len(), self.config.network.input_channels);
        let side = ((batch.input.len() / rows / channels) as f64).sqrt() as usize;
        let input = Tensor::<4>::from_data(TensorData::new(batch.input.clone(), [rows, side, side, channels]), device);
        let column = |values: &[f32]| Tensor::<1>::from_data(TensorData::new(values.to_vec(), [rows]), device);
        let logits = network.forward(input, column(&batch.timesteps));
        let classes = Tensor::<1, Int>::from_data(batch.classes.as_slice(), device);
        (logits.clone(), weighted_cross_entropy(logits, classes, column(&batch.weights)))
    }

    /// Evaluation pictures at a level, each with the same noise each time.
    fn at_level(&self, level: &Level, items: &[Item], first: usize) -> NoisyBatch {
        let mut batch = NoisyBatch::default();
        for (place, (item, clean)) in items.iter().zip(self.source.of_items(items)).enumerate() {
            let mut rng = stream(self.recipe.train.seed, Purpose::Sample, (first + place) as u64);
            batch.push(&self.recipe.process, level, &clean, self.classes.of_item(item), &mut rng);
        }
        batch
    }

    /// What noisy canvases look like.
    fn shown(&self, batch: &NoisyBatch, level: &Level) -> Result<Vec<Picture>, TrainError> {
        // Brought back to the range of pictures, from the network's scale and from noise levels far above 1.
        let factor = 1.0 / (self.recipe.process.input_scale(level) * level.alpha.hypot(level.sigma));
        let values: Vec<f32> = batch.input.iter().map(|value| (f64::from(*value) * factor) as f32).collect();
        let (rows, channels) = (batch.timesteps.len(), self.config.network.input_channels);
        let side = ((values.len() / rows / channels) as f64).sqrt() as usize;
        let canvas = Tensor::<4>::from_data(TensorData::new(values, [rows, side, side, channels]), &self.device);
        to_pictures(match (self.source.image_tokenizer(), self.config.latent_scale) {
            (Some(image_tokenizer), Some(scale)) => image_tokenizer.model.decode(canvas / scale),
            _ => canvas,
        })
    }
}

impl Recipe for NoisyClassifierTraining {
    type Batch = NoisyBatch;

    fn learners(&mut self) -> Vec<&mut dyn Learns> {
        vec![&mut self.classifier]
    }

    fn pictures(&self) -> Option<&Pictures> {
        Some(&self.pictures)
    }

    fn batch(&mut self, pass: Pass) -> Result<NoisyBatch, TrainError> {
        let mut batch = NoisyBatch::default();
        for mut clean in self.source.batch(&mut self.pictures, pass)? {
            let (level, _) = training_level(&self.recipe.process, self.recipe.level_normal, &mut clean.rng);
            batch.push(&self.recipe.process, &level, &clean.values, self.classes.of_picture(clean.index), &mut clean.rng);
        }
        Ok(batch)
    }

    fn step(&mut self, batch: NoisyBatch, pass: Pass) -> Result<Measures, TrainError> {
        let (logits, loss) = self.judge(self.classifier.network(), &batch, &self.device.clone().autodiff());
        let (known, right) = batch.known_and_right(&host(logits));
        let figures = [("cross-entropy".to_string(), scalar(&loss)), ("accuracy".to_string(), right as f64 / known.max(1) as f64)];
        self.classifier.gather(&mut loss.backward(), pass.share());
        Ok(figures.into())
    }

    /// Accuracy on evaluation pictures at five levels from almost clean to noise, and its mean; the last level tells what guessing gives.
    fn evaluate(&mut self) -> Result<Measures, TrainError> {
        let network = self.classifier.averaged();
        let mut figures = Measures::new();
        let (mut cross_entropy, mut accuracy) = (0.0, 0.0);
        for (share, level) in evaluation_levels(&self.recipe.process) {
            let (mut loss, mut known, mut right, mut first) = (0.0, 0, 0, 0);
            for items in self.pictures.evaluation().chunks(self.recipe.train.batch_size) {
                let batch = self.at_level(&level, items, first);
                let (logits, mean) = self.judge(&network, &batch, &self.device);
                let (in_batch, right_in_batch) = batch.known_and_right(&host(logits));
                loss += scalar(&mean) * items.len() as f64;
                (known, right, first) = (known + in_batch, right + right_in_batch, first + items.len());
            }
            if known == 0 {
                return Ok(Measures::new());
            }
            let of_level = right as f64 / known as f64;
            figures.insert(self.pictures.measure(&format!("accuracy at {share:.2} of the noise")), of_level);
            accuracy += of_level / SHARES.len() as f64;
            cross_entropy += loss / known as f64 / SHARES.len() as f64;
        }
        figures.insert(self.pictures.measure("accuracy"), accuracy);
        figures.insert(self.pictures.measure("cross-entropy"), cross_entropy);
        Ok(figures)
    }

    /// A row for each level of the evaluation: pictures as the network sees them, in a green frame where it knew the class and in a red one where not.
    fn sample(&mut self) -> Result<Option<Picture>, TrainError> {
        let network = self.classifier.averaged();
        let items = self.pictures.evaluation();
        let items = &items[..items.len().min(SHEET_COUNT)];
        let mut rows = Vec::new();
        for (_, level) in evaluation_levels(&self.recipe.process) {
            let batch = self.at_level(&level, items, 0);
            let logits = host(self.judge(&network, &batch, &self.device).0);
            let right = logits.chunks_exact(self.config.classes.len()).zip(items).map(|(row, item)| self.classes.of_item(item) == Some(greatest(row)));
            rows.push(self.shown(&batch, &level)?.iter().zip(right).map(|(picture, right)| framed(picture, if right { RIGHT } else { WRONG })).collect());
        }
        Ok(Some(sheet(&rows)?))
    }

    fn export(&mut self, folder: &Path, facts: &RunFacts) -> Result<(), TrainError> {
        let provenance = facts.provenance(&self.recipe.data.path);
        let part = ClassifierPart { network: self.classifier.averaged(), config: self.config.clone(), provenance };
        export::save(&Bundle { name: facts.name.clone(), classifier: Some(part), ..Bundle::default() }, folder)?;
        Ok(())
    }
}

/// Levels spread over the way to noise: evenly over the trained steps, over the straight line of a flow, over the logarithm of EDM's noise levels.
fn evaluation_levels(process: &Process) -> [(f64, Level); SHARES.len()] {
    SHARES.map(|share| {
        let level = match process {
            Process::VariancePreserving(schedule) => schedule.level((share * (schedule.train_steps() - 1) as f64).round() as usize),
            Process::Flow(config) => config.level(share),
            Process::VarianceExploding(config) => {
                let (low, high) = (config.sigma_min.ln(), config.sigma_max.ln());
                sigmas::level((low + share * (high - low)).exp())
            }
        };
        (share, level)
    })
}

fn framed(picture: &Picture, colour: [u8; 3]) -> Picture {
    let mut frame = Picture::filled(picture.width + 2 * FRAME, picture.height + 2 * FRAME, colour);
    let width = frame.width;
    for (y, row) in picture.rgb.chunks_exact(picture.width * 3).enumerate() {
        frame.rgb[((y + FRAME) * width + FRAME) * 3..][..row.len()].copy_from_slice(row);
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_generation::diffusion::{Schedule, ScheduleConfig, flow};

    #[test]
    fn levels_go_from_the_picture_to_noise() {
        let processes = [
            Process::VariancePreserving(Schedule::new(ScheduleConfig::cosine()).unwrap()),
            Process::Flow(flow::Config { train_steps: 1000, shift: 1.0 }),
            Process::VarianceExploding(sigmas::Config::edm()),
        ];
        for process in processes {
            let noise: Vec<f64> = evaluation_levels(&process).map(|(_, level)| level.noise_to_signal()).to_vec();
            assert!(noise.is_sorted_by(|a, b| a < b) && noise[0] < 0.05 && noise[4] > 79.0, "{process}: {noise:?}");
            assert!(evaluation_levels(&process).iter().all(|(_, level)| level.timestep.is_finite()));
        }
    }

    #[test]
    fn pictures_without_a_class_are_not_counted() {
        let batch = NoisyBatch { classes: vec![1, 0, 0], weights: vec![1.0, 1.0, 0.0], ..NoisyBatch::default() };
        assert_eq!(batch.known_and_right(&[0.1, 0.9, 0.2, 0.3, 5.0, 0.0]), (2, 1));
    }

    #[test]
    fn frames_go_around() {
        let framed = framed(&Picture::filled(3, 1, [7; 3]), RIGHT);
        assert_eq!((framed.width, framed.height), (7, 5));
        assert_eq!([framed.pixel(1, 2), framed.pixel(2, 2), framed.pixel(4, 2), framed.pixel(5, 2), framed.pixel(3, 1)], [RIGHT, [7; 3], [7; 3], RIGHT, RIGHT]);
    }
}
