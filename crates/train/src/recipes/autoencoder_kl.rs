//! KL autoencoder (Rombach et al. 2022, 2112.10752): reconstruction, perceptual and adversarial losses as VQGAN, and a light pull of the latents towards a
//! normal distribution in place of the codebook.

use crate::learner::{Learner, Learns};
use crate::learning_rate::Schedule;
use crate::objective::{AdversarialSettings, Objective, ObjectiveSettings, PerceptualSettings};
use crate::pictures::{self, PictureSettings, Pictures, reconstruction_measures, reconstruction_sheet, scalar, stack};
use crate::recipe::{Measures, Pass, Recipe, RunFacts};
use crate::recipe_file::{RecipeError, RecipeFile};
use crate::settings::{self, OptimizerSettings, TrainSettings, expect_range};
use crate::train_loop::LoopSettings;
use crate::{TrainError, export};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use smalti_data::Picture;
use smalti_data::dataset::CaptionRule;
use smalti_data::loader::{Batch, Item};
use smalti_generation::random::normal_pictures;
use smalti_models::image_tokenizer::autoencoder_kl::{self, AutoencoderKl, loss};
use smalti_models::image_tokenizer::latent_scale::LatentScale;
use smalti_nn::Initializer;
use smalti_pipeline::parts::ImageTokenizer;
use smalti_pipeline::{Bundle, ImageTokenizerPart};
use std::path::Path;

/// A recipe with `system = "autoencoder_kl"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoencoderKlRecipe {
    pub system: String,
    /// The run is `runs/<name>` unless the command line says otherwise.
    pub name: String,
    pub data: PictureSettings,
    pub model: autoencoder_kl::Config,
    pub loss: LossSettings,
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
    /// Of the divergence summed over the latents of a picture, where the error of the picture is summed over its pixels: 1e-6 in latent-diffusion's configs.
    pub kl: f64,
    pub perceptual: Option<PerceptualSettings>,
    pub adversarial: Option<AdversarialSettings>,
}

impl LossSettings {
    fn of_picture(&self) -> ObjectiveSettings {
        let Self { l1, l2, perceptual, adversarial, .. } = self.clone();
        ObjectiveSettings { l1, l2, perceptual, adversarial }
    }
}

impl AutoencoderKlRecipe {
    pub fn validate(&self, file: &RecipeFile) -> Result<(), RecipeError> {
        settings::validate(file, &self.optimizer, &self.schedule, &self.train)?;
        self.data.validate(file)?;
        self.model.validate().map_err(|error| file.reject(&format!("model.{}", error.key), format!("expected {}, found {}", error.expected, error.found)))?;
        let (size, factor) = (self.data.image_size, self.model.network.downsampling_factor());
        if !size.is_multiple_of(factor) {
            return Err(file.reject("data.image_size", format!("expected a multiple of {factor}, which the network divides sides by, found {size}")));
        }
        if self.model.network.picture_channels != 3 {
            return Err(file.reject("model.network.picture_channels", format!("expected 3, found {}", self.model.network.picture_channels)));
        }
        expect_range(file, "loss.kl", self.loss.kl, 0.0, 1e6)?;
        self.loss.of_picture().validate(file, size)
    }

    pub fn loop_settings(&self, recipe: String) -> LoopSettings {
        LoopSettings { train: self.train.clone(), optimizer: self.optimizer.clone(), schedule: self.schedule.clone(), recipe }
    }
}

/// Training pictures on which the size of the latents is measured.
const SCALE_PICTURE_COUNT: usize = 512;

/// A KL autoencoder in training.
pub struct AutoencoderKlTraining {
    recipe: AutoencoderKlRecipe,
    pictures: Pictures,
    /// Without gradients; training tensors are made on its twin with gradients.
    device: Device,
    autoencoder: Learner<AutoencoderKl>,
    objective: Objective,
}

impl AutoencoderKlTraining {
    pub fn new(recipe: &AutoencoderKlRecipe, device: &Device) -> Result<Self, TrainError> {
        let pictures = Pictures::open(&recipe.data, CaptionRule::Optional)?;
        let mut initializer = Initializer::new(recipe.train.seed, &device.clone().autodiff());
        let impossible = |error: smalti_models::ConfigError| TrainError::Unfit { place: "recipe".to_string(), reason: error.to_string() };
        let network = AutoencoderKl::new(&recipe.model, &mut initializer).map_err(impossible)?;
        let autoencoder = Learner::new("autoencoder_kl", network, &recipe.optimizer, recipe.train.ema_decay);
        let objective = Objective::new(&recipe.loss.of_picture(), &recipe.optimizer, &mut initializer, device)?;
        Ok(Self { recipe: recipe.clone(), pictures, device: device.clone(), autoencoder, objective })
    }

    /// The averaged network's reconstructions of some pictures, by the means of their latents.
    fn reconstruct(&self, network: &AutoencoderKl, items: &[Item]) -> Tensor<4> {
        network.decode(network.encode(stack(items, self.recipe.data.image_size, &self.device)).mean)
    }
}

impl Recipe for AutoencoderKlTraining {
    type Batch = Batch;

    fn learners(&mut self) -> Vec<&mut dyn Learns> {
        let mut learners: Vec<&mut dyn Learns> = vec![&mut self.autoencoder];
        learners.extend(self.objective.discriminator());
        learners
    }

    fn pictures(&self) -> Option<&Pictures> {
        Some(&self.pictures)
    }

    fn batch(&mut self, pass: Pass) -> Result<Batch, TrainError> {
        self.pictures.batch(pass)
    }

    fn step(&mut self, batch: Batch, pass: Pass) -> Result<Measures, TrainError> {
        let mut losses = Measures::new();
        let autodiff = self.device.clone().autodiff();
        let x = pictures::to_tensor(batch.pictures, batch.size, &autodiff);
        let network = self.autoencoder.network();
        let moments = network.encode(x.clone());
        let shape = moments.mean.dims();
        let mut rngs: Vec<_> = (0..shape[0]).map(|row| pass.rng(row)).collect();
        let noise = normal_pictures(&mut rngs, shape[1..].iter().product());
        let latents = moments.sample(Tensor::from_data(TensorData::new(noise, shape), &autodiff));
        let features = network.features(latents);
        let picture = network.picture(features.clone());
        let divergence = loss::kl(&moments);
        losses.insert("kl".to_string(), scalar(&divergence));
        let of_latents = divergence * loss::kl_weight(self.recipe.loss.kl, [batch.size, batch.size, 3]);
        let of_picture = self.objective.loss(&picture, features, &x, pass, &mut losses, |features, gradient| network.last_weight_gradient(features, gradient));
        self.autoencoder.gather(&mut (of_picture + of_latents).backward(), pass.share());
        self.objective.train_discriminator(x, picture, pass, &mut losses);
        Ok(losses)
    }

    fn evaluate(&mut self) -> Result<Measures, TrainError> {
        let network = self.autoencoder.averaged();
        let figures = reconstruction_measures(self.pictures.evaluation(), self.recipe.train.batch_size, |items| self.reconstruct(&network, items))?;
        Ok(figures.map(|(name, value)| (self.pictures.measure(name), value)).into())
    }

    fn sample(&mut self) -> Result<Option<Picture>, TrainError> {
        let network = self.autoencoder.averaged();
        reconstruction_sheet(self.pictures.evaluation(), |items| self.reconstruct(&network, items)).map(Some)
    }

    fn export(&mut self, folder: &Path, facts: &RunFacts) -> Result<(), TrainError> {
        let model = self.autoencoder.averaged();
        let (size, batch_size) = (self.recipe.data.image_size, self.recipe.train.batch_size);
        let mut scale = LatentScale::default();
        for items in self.pictures.spread(SCALE_PICTURE_COUNT)?.chunks(batch_size) {
            scale.add(model.encode(stack(items, size, &self.device)).mean);
        }
        let provenance = facts.provenance(&self.recipe.data.path);
        let part = ImageTokenizerPart { model: ImageTokenizer::AutoencoderKl(model), image_size: size, latent_scale: scale.factor(), provenance };
        export::save(&Bundle { name: facts.name.clone(), image_tokenizer: Some(part), ..Bundle::default() }, folder)?;
        Ok(())
    }
}
