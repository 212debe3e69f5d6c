//! VQGAN (Esser, Rombach and Ommer 2021): reconstruction, perceptual, codebook and adversarial losses; two optimisers once the discriminator is on.
//!
//! The losses are in `smalti_models::image_tokenizer::vqgan::loss`, weighed in `objective`; this file keeps the codebook alive and measures.

use crate::learner::{Learner, Learns};
use crate::learning_rate::Schedule;
use crate::objective::{AdversarialSettings, Objective, ObjectiveSettings, PerceptualSettings};
use crate::pictures::{self, PictureSettings, Pictures, reconstruction_measures, reconstruction_sheet, scalar, stack};
use crate::recipe::{Measures, Pass, Purpose, Recipe, RunFacts, stream};
use crate::recipe_file::{RecipeError, RecipeFile};
use crate::settings::{self, OptimizerSettings, TrainSettings, expect_range};
use crate::train_loop::LoopSettings;
use crate::{TrainError, export};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};
use smalti_data::Picture;
use smalti_data::dataset::CaptionRule;
use smalti_data::loader::{Batch, Item};
use smalti_models::image_tokenizer::latent_scale::LatentScale;
use smalti_models::image_tokenizer::quantizer::usage::CodebookUsage;
use smalti_models::image_tokenizer::quantizer::vector::Choice;
use smalti_models::image_tokenizer::vqgan::{self, Vqgan};
use smalti_nn::Initializer;
use smalti_nn::weights::{HostTensor, NamedTensors};
use smalti_pipeline::parts::ImageTokenizer;
use smalti_pipeline::{Bundle, ImageTokenizerPart};
use std::path::Path;

/// A recipe with `system = "vqgan"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqganRecipe {
    pub system: String,
    /// The run is `runs/<name>` unless the command line says otherwise.
    pub name: String,
    pub data: PictureSettings,
    pub model: vqgan::Config,
    pub loss: LossSettings,
    pub codebook_start: CodebookStart,
    pub optimizer: OptimizerSettings,
    pub schedule: Schedule,
    pub train: TrainSettings,
}

/// `[loss]`: the weight of each term.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossSettings {
    pub l1: f64,
    #[serde(default)]
    pub l2: f64,
    /// Of the codebook loss; without effect on a codebook of moving averages.
    pub codebook: f64,
    /// 0.25 in van den Oord et al. 2017, where 0.1 to 2 is said to work alike.
    pub commitment: f64,
    pub perceptual: Option<PerceptualSettings>,
    pub adversarial: Option<AdversarialSettings>,
}

/// `[codebook_start]`: k-means on the latents of the first pictures, before the first step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodebookStart {
    /// 0: the codebook keeps its random start.
    pub picture_count: usize,
    pub round_count: usize,
}

impl LossSettings {
    fn of_picture(&self) -> ObjectiveSettings {
        let Self { l1, l2, perceptual, adversarial, .. } = self.clone();
        ObjectiveSettings { l1, l2, perceptual, adversarial }
    }
}

impl VqganRecipe {
    pub fn validate(&self, file: &RecipeFile) -> Result<(), RecipeError> {
        settings::validate(file, &self.optimizer, &self.schedule, &self.train)?;
        self.data.validate(file)?;
        self.model.validate().map_err(|error| file.reject(&format!("model.{}", error.key), format!("expected {}, found {}", error.expected, error.found)))?;
        let (size, factor) = (self.data.image_size, self.model.network.downsampling_factor());
        if !size.is_multiple_of(factor) {
            return Err(file.reject("data.image_size", format!("expected a multiple of {factor}, which the network divides sides by, found {size}")));
        }
        if self.model.quantizer.choice != Choice::Nearest {
            return Err(file.reject("model.quantizer.choice", "expected `nearest`, found `highest_score`, which is imported and not trained here"));
        }
        if self.model.network.picture_channels != 3 {
            return Err(file.reject("model.network.picture_channels", format!("expected 3, found {}", self.model.network.picture_channels)));
        }
        for (key, weight) in [("codebook", self.loss.codebook), ("commitment", self.loss.commitment)] {
            expect_range(file, &format!("loss.{key}"), weight, 0.0, 1e6)?;
        }
        self.loss.of_picture().validate(file, size)
    }

    pub fn loop_settings(&self, recipe: String) -> LoopSettings {
        LoopSettings { train: self.train.clone(), optimizer: self.optimizer.clone(), schedule: self.schedule.clone(), recipe }
    }
}

/// Training pictures on which the size of the latents is measured.
const SCALE_PICTURE_COUNT: usize = 512;

/// A VQGAN in training.
pub struct VqganTraining {
    recipe: VqganRecipe,
    pictures: Pictures,
    /// Without gradients; training tensors are made on its twin with gradients.
    device: Device,
    vqgan: Learner<Vqgan>,
    objective: Objective,
    /// Latents and image tokens of the step's passes, for the codebook.
    pending: Vec<(Tensor<4>, Tensor<2, Int>)>,
    /// Since the last epoch began.
    usage: CodebookUsage,
}

impl VqganTraining {
    pub fn new(recipe: &VqganRecipe, device: &Device) -> Result<Self, TrainError> {
        let pictures = Pictures::open(&recipe.data, CaptionRule::Optional)?;
        let mut initializer = Initializer::new(recipe.train.seed, &device.clone().autodiff());
        let impossible = |error: smalti_models::ConfigError| TrainError::Unfit { place: "recipe".to_string(), reason: error.to_string() };
        let vqgan = Learner::new("vqgan", Vqgan::new(&recipe.model, &mut initializer).map_err(impossible)?, &recipe.optimizer, recipe.train.ema_decay);
        let objective = Objective::new(&recipe.loss.of_picture(), &recipe.optimizer, &mut initializer, device)?;
        let usage = CodebookUsage::new(recipe.model.quantizer.code_count);
        Ok(Self { recipe: recipe.clone(), pictures, device: device.clone(), vqgan, objective, pending: Vec::new(), usage })
    }

    /// The averaged network's reconstructions and image tokens of some pictures.
    fn reconstruct(&self, network: &Vqgan, items: &[Item]) -> (Tensor<4>, Vec<u32>) {
        let x = stack(items, self.recipe.data.image_size, &self.device);
        let quantized = network.quantize(network.encode(x));
        let tokens = quantized.tokens.into_data().iter::<i64>().map(|token| token as u32).collect();
        (network.decode(quantized.latents), tokens)
    }
}

impl Recipe for VqganTraining {
    type Batch = Batch;

    fn learners(&mut self) -> Vec<&mut dyn Learns> {
        let mut learners: Vec<&mut dyn Learns> = vec![&mut self.vqgan];
        learners.extend(self.objective.discriminator());
        learners
    }

    fn prepare(&mut self) -> Result<(), TrainError> {
        let CodebookStart { picture_count, round_count } = self.recipe.codebook_start;
        if picture_count == 0 {
            return Ok(());
        }
        let items = self.pictures.spread(picture_count)?;
        let network = self.vqgan.network().valid();
        let size = self.recipe.data.image_size;
        let latents = items.chunks(self.recipe.train.batch_size).map(|items| network.encode(stack(items, size, &self.device))).collect();
        let latents = Tensor::cat(latents, 0);
        let seed = self.recipe.train.seed;
        self.vqgan.rewrite(|network| network.start_codebook(latents.clone(), round_count, &mut stream(seed, Purpose::Prepare, 0)));
        Ok(())
    }

    fn pictures(&self) -> Option<&Pictures> {
        Some(&self.pictures)
    }

    fn batch(&mut self, pass: Pass) -> Result<Batch, TrainError> {
        self.pictures.batch(pass)
    }

    fn step(&mut self, batch: Batch, pass: Pass) -> Result<Measures, TrainError> {
        let mut losses = Measures::new();
        let x = pictures::to_tensor(batch.pictures, batch.size, &self.device.clone().autodiff());
        let network = self.vqgan.network();
        let latents = network.encode(x.clone());
        let quantized = network.quantize(latents.clone());
        let features = network.features(quantized.latents);
        let picture = network.picture(features.clone());
        let LossSettings { codebook, commitment, .. } = self.recipe.loss;
        losses.insert("commitment".to_string(), scalar(&quantized.commitment_loss));
        let of_codes = quantized.codebook_loss * codebook + quantized.commitment_loss * commitment;
        let of_picture = self.objective.loss(&picture, features, &x, pass, &mut losses, |features, gradient| network.last_weight_gradient(features, gradient));
        self.vqgan.gather(&mut (of_picture + of_codes).backward(), pass.share());
        self.objective.train_discriminator(x, picture, pass, &mut losses);
        if pass.index == 0 {
            // What a step that was given up has left.
            self.pending.clear();
        }
        self.pending.push((latents.inner(), quantized.tokens.inner()));
        Ok(losses)
    }

    fn updated(&mut self, pass: Pass) -> Result<Measures, TrainError> {
        let (latents, tokens): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending).into_iter().unzip();
        let (latents, tokens) = (Tensor::cat(latents, 0), Tensor::cat(tokens, 0));
        let counted: Vec<u32> = tokens.clone().into_data().iter::<i64>().map(|token| token as u32).collect();
        self.usage.add(&counted);
        self.vqgan.rewrite_network(|network| network.update_codebook(latents, tokens, &mut pass.step_rng()));
        let epoch = self.pictures.training().len() as u64;
        let step_size = (pass.batch_size * pass.accumulation) as u64;
        let done = (pass.step as u64 + 1) * step_size;
        if done / epoch == (done - step_size) / epoch {
            return Ok(Measures::new());
        }
        let figures = [("codes used in the epoch", self.usage.used_share()), ("perplexity of the epoch", self.usage.perplexity())];
        self.usage = CodebookUsage::new(self.recipe.model.quantizer.code_count);
        Ok(figures.map(|(name, value)| (name.to_string(), value)).into())
    }

    fn evaluate(&mut self) -> Result<Measures, TrainError> {
        let network = self.vqgan.averaged();
        let mut usage = CodebookUsage::new(self.recipe.model.quantizer.code_count);
        let figures = reconstruction_measures(self.pictures.evaluation(), self.recipe.train.batch_size, |items| {
            let (made, tokens) = self.reconstruct(&network, items);
            usage.add(&tokens);
            made
        })?;
        let of_codes = [("codes used", usage.used_share()), ("perplexity", usage.perplexity())];
        Ok(figures.into_iter().chain(of_codes).map(|(name, value)| (self.pictures.measure(name), value)).collect())
    }

    fn sample(&mut self) -> Result<Option<Picture>, TrainError> {
        let network = self.vqgan.averaged();
        reconstruction_sheet(self.pictures.evaluation(), |items| self.reconstruct(&network, items).0).map(Some)
    }

    fn export(&mut self, folder: &Path, facts: &RunFacts) -> Result<(), TrainError> {
        let model = self.vqgan.averaged();
        let (size, batch_size) = (self.recipe.data.image_size, self.recipe.train.batch_size);
        let mut scale = LatentScale::default();
        for items in self.pictures.spread(SCALE_PICTURE_COUNT)?.chunks(batch_size) {
            scale.add(model.encode(stack(items, size, &self.device)));
        }
        let provenance = facts.provenance(&self.recipe.data.path);
        let part = ImageTokenizerPart { model: ImageTokenizer::Vqgan(model), image_size: size, latent_scale: scale.factor(), provenance };
        export::save(&Bundle { name: facts.name.clone(), image_tokenizer: Some(part), ..Bundle::default() }, folder)?;
        Ok(())
    }

    fn state(&self) -> NamedTensors {
        let counts: Vec<f32> = self.usage.counts().iter().map(|&count| count as f32).collect();
        NamedTensors::from([("usage".to_string(), HostTensor::new([counts.len()], counts))])
    }

    fn restore(&mut self, state: NamedTensors) -> Result<(), TrainError> {
        self.usage = CodebookUsage::new(self.recipe.model.quantizer.code_count);
        for (code, &count) in state.get("usage").map_or(&[][..], |tensor| &tensor.values).iter().enumerate() {
            self.usage.add(&vec![code as u32; count as usize]);
        }
        self.pending.clear();
        Ok(())
    }
}
