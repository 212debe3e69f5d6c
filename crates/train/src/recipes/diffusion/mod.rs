//! Diffusion (Ho, Jain and Abbeel 2020; latent diffusion: Rombach et al. 2022; cascades: Saharia et al. 2022): a network learns what a noisy canvas was.
//!
//! Reading order:
pub mod settings; //       the recipe
pub(super) mod canvas; //  clean pixels or latents
pub(super) mod noising; // noise, targets and weights
mod text; //               the frozen text encoder

use crate::classes::Classes;
use crate::data_record::part_checksum;
use crate::learner::{Learner, Learns};
use crate::pictures::{Pictures, scalar, sheet};
use crate::recipe::{Measures, Pass, Purpose, Recipe, RunFacts, stream};
use crate::text_states::TextStates;
use crate::{TrainError, export};
use burn::tensor::{Device, Int, Tensor, TensorData};
use canvas::{Source, smaller_picture};
use noising::{Noised, learned_variance};
use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use settings::DiffusionRecipe;
use smalti_data::Picture;
use smalti_data::dataset::CaptionRule;
use smalti_generation::random::{fill_normal, unit};
use smalti_models::generator::conditions::{Conditions, LowResolution};
use smalti_models::generator::unet::loss;
use smalti_nn::Initializer;
use smalti_pipeline::manifest::{DiffusionConfig, GeneratorModel};
use smalti_pipeline::parts::{Diffusion, DiffusionNetwork, Generator};
use smalti_pipeline::text_to_image::{Parts, Request, TextToImage, augmentation_level};
use smalti_pipeline::{Bundle, BundleFolder, ClassifierPart, ContrastivePart, GeneratorPart, Part, PipelineError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A diffusion network in training.
pub struct DiffusionTraining {
    recipe: DiffusionRecipe,
    config: DiffusionConfig,
    pictures: Pictures,
    source: Source,
    /// `None` where the network is told no text.
    text: Option<TextStates>,
    /// `None` where the network is told no class.
    classes: Option<Classes>,
    below: Option<Bundle>,
    classifier: Option<ClassifierPart>,
    contrastive: Option<ContrastivePart>,
    judge: Option<ContrastivePart>,
    /// Without gradients; training tensors are made on its twin with gradients.
    device: Device,
    generator: Learner<DiffusionNetwork>,
}

/// One pass: noisy canvases and what their pictures are.
#[derive(Default)]
pub struct DiffusionBatch {
    noised: Noised,
    captions: Vec<String>,
    classes: Vec<i64>,
    /// Smaller pictures, enlarged and with their noise, and the network's input for its level.
    smaller: Vec<f32>,
    smaller_levels: Vec<f32>,
}

impl DiffusionTraining {
    pub fn new(recipe: &DiffusionRecipe, device: &Device) -> Result<Self, TrainError> {
        recipe.warnings().iter().for_each(|warning| crate::say!("warning: {warning}"));
        let captions = if recipe.conditions.text.is_some() { CaptionRule::Required } else { CaptionRule::Optional };
        let pictures = Pictures::open(&recipe.data, captions)?;
        let below = recipe.stage_below.as_deref().map(|path| stage_below(path, recipe, device)).transpose()?;
        let text = text::states(recipe, below.as_ref(), &pictures, device)?;
        let ranking = |path: &Option<PathBuf>, purpose| path.as_ref().map(|path| BundleFolder::open(path)?.contrastive(device, purpose)).transpose();
        let contrastive = ranking(&recipe.contrastive, "rank pictures")?;
        let judge = ranking(&recipe.judge, "judge pictures")?;
        let lender = recipe.classifier.as_deref().map(BundleFolder::open).transpose()?;
        let classifier = lender.map(|lender| lender.classifier(device, "lead pictures to a class")).transpose()?;
        let classes = recipe.conditions.class_field.as_deref().map(|field| Classes::of(&pictures, field, "conditions.class_field")).transpose()?;
        let names = classes.as_ref().map_or(Vec::new(), |classes| classes.names().to_vec());
        let source = Source::new(recipe.image_tokenizer.as_deref(), &pictures, recipe.train.seed, device)?;
        let latent_channels = source.image_tokenizer().map(|part| part.model.config().latent_channels());
        let text_channels = text.as_ref().map(|text| text.encoder().model.channels());
        let config = recipe.config(recipe.canvas_channels(latent_channels), text_channels, names);
        let config = DiffusionConfig { latent_scale: source.image_tokenizer().and_then(|part| part.latent_scale), ..config };
        let impossible = |error: smalti_models::ConfigError| TrainError::Unfit { place: "recipe".to_string(), reason: error.to_string() };
        config.validate().map_err(impossible)?;
        let mut initializer = Initializer::new(recipe.train.seed, &device.clone().autodiff());
        let network = DiffusionNetwork::new(&config.network, &mut initializer).map_err(impossible)?;
        let generator = Learner::new("generator", network, &recipe.optimizer, recipe.train.ema_decay);
        let (recipe, device) = (recipe.clone(), device.clone());
        let training = Self { recipe, config, pictures, source, text, classes, below, classifier, contrastive, judge, device, generator };
        training.check_classifier()?;
        Ok(training)
    }

    /// A classifier that cannot guide what is trained is refused now, not when the bundle is exported.
    fn check_classifier(&self) -> Result<(), TrainError> {
        match &self.classifier {
            Some(_) => Ok(self.text_to_image().map(drop)?),
            None => Ok(()),
        }
    }

    /// The number that a network is told for a class; "no class" has the last.
    fn class_number(&self, class: Option<usize>) -> i64 {
        class.unwrap_or(self.config.classes.len()) as i64
    }

    /// Adds an example: what is drawn at random comes from its own stream, in a fixed order.
    fn add(&self, batch: &mut DiffusionBatch, clean: &[f32], caption: String, class: Option<usize>, rng: &mut ChaCha12Rng) -> Result<(), TrainError> {
        let dropped = rng.random::<f64>() < self.recipe.conditions.drop_rate;
        batch.captions.push(if dropped { String::new() } else { caption });
        batch.classes.push(self.class_number(class.filter(|_| !dropped)));
        if let Some(condition) = &self.config.low_resolution {
            let size = self.config.image_size;
            let level = augmentation_level(&self.config.process, unit(rng));
            let smaller = smaller_picture(clean, size, condition.image_size)?;
            let mut noise = vec![0.0; smaller.len()];
            fill_normal(rng, &mut noise);
            batch.smaller.extend(level.noised(&smaller, &noise));
            batch.smaller_levels.push(level.timestep.max(0.0) as f32);
        }
        batch.noised.push(&self.recipe, clean, rng);
        Ok(())
    }

    /// The loss of `network` on a batch, by tensors on `device`.
    fn loss(&self, network: &DiffusionNetwork, batch: &DiffusionBatch, device: &Device) -> Result<Tensor<1>, TrainError> {
        let Noised { clean, input, target, timesteps, weights, .. } = &batch.noised;
        let rows = timesteps.len();
        let channels = self.config.network.channels();
        let side = ((clean.len() / rows / channels) as f64).sqrt() as usize;
        let canvas = |values: &[f32]| Tensor::<4>::from_data(TensorData::new(values.to_vec(), [rows, side, side, channels]), device);
        let column = |values: &[f32]| Tensor::<1>::from_data(TensorData::new(values.to_vec(), [rows]), device);
        let output = network.forward(canvas(input), column(timesteps), self.conditions(batch, device)?);
        Ok(match learned_variance(&self.recipe) {
            None => loss::weighted_squared_error(output, canvas(target), column(weights)),
            Some(schedule) => {
                let bound = vec![loss::VARIATIONAL_WEIGHT * schedule.train_steps() as f32; rows];
                let terms = batch.noised.step_terms(&self.recipe, schedule, device);
                loss::hybrid(output, canvas(target), canvas(input), canvas(clean), column(weights), column(&bound), &terms)
            }
        })
    }

    fn conditions(&self, batch: &DiffusionBatch, device: &Device) -> Result<Conditions, TrainError> {
        let mut conditions = Conditions::default();
        if let Some(text) = &self.text {
            conditions.text = Some(text.of(&batch.captions, device)?);
        }
        if !self.config.classes.is_empty() {
            conditions.class = Some(Tensor::<1, Int>::from_data(batch.classes.as_slice(), device));
        }
        if self.config.low_resolution.is_some() {
            let (rows, size) = (batch.smaller_levels.len(), self.config.image_size);
            conditions.low_resolution = Some(LowResolution {
                picture: Tensor::from_data(TensorData::new(batch.smaller.clone(), [rows, size, size, 3]), device),
                noise_level: Tensor::from_data(batch.smaller_levels.as_slice(), device),
            });
        }
        Ok(conditions)
    }

    fn part(&self, facts: Option<&RunFacts>) -> GeneratorPart {
        let provenance = facts.map(|facts| facts.provenance(&self.recipe.data.path)).unwrap_or_default();
        let model = Diffusion { network: self.generator.averaged(), config: self.config.clone() };
        GeneratorPart { model: Generator::Diffusion(Box::new(model)), text_tokenizer: None, sampling: None, provenance }
    }

    /// The recipe's prompts; else captions of evaluation pictures, every class, or nothing.
    fn prompts(&self) -> Vec<String> {
        if !self.recipe.samples.prompts.is_empty() {
            return self.recipe.samples.prompts.clone();
        }
        if !self.config.classes.is_empty() {
            return self.config.classes.iter().take(8).cloned().collect();
        }
        if self.config.text.is_none() {
            return vec![String::new()];
        }
        let items = self.pictures.evaluation();
        let count = items.len().min(8);
        (0..count).filter_map(|place| items[place * items.len() / count].captions.first().cloned()).collect()
    }

    /// What the bundle draws with.
    fn text_to_image(&self) -> Result<TextToImage, PipelineError> {
        let Bundle { image_tokenizer, text_encoder, generator, super_resolution, classifier, .. } = self.bundle(None);
        let generator = generator.unwrap_or_else(|| self.part(None));
        TextToImage::new(Parts { image_tokenizer, text_encoder, generator, super_resolution, classifier, contrastive: None })
    }

    /// The bundle of this network and of what it needs.
    fn bundle(&self, facts: Option<&RunFacts>) -> Bundle {
        let mut bundle = match &self.below {
            Some(below) => {
                let mut bundle = Bundle { model_card: None, ..below.clone() };
                bundle.super_resolution.push(self.part(facts));
                bundle
            }
            None => Bundle {
                image_tokenizer: self.source.image_tokenizer().cloned(),
                text_encoder: self.text.as_ref().map(|text| text.encoder().clone()),
                generator: Some(self.part(facts)),
                ..Bundle::default()
            },
        };
        bundle.name = facts.map(|facts| facts.name.clone()).unwrap_or_default();
        bundle.classifier = self.classifier.clone().or(bundle.classifier);
        bundle.contrastive = self.contrastive.clone().or(bundle.contrastive);
        bundle.judge = self.judge.clone().or(bundle.judge);
        bundle
    }
}

impl Recipe for DiffusionTraining {
    type Batch = DiffusionBatch;

    fn learners(&mut self) -> Vec<&mut dyn Learns> {
        vec![&mut self.generator]
    }

    fn pictures(&self) -> Option<&Pictures> {
        Some(&self.pictures)
    }

    fn inputs(&self) -> Result<BTreeMap<String, String>, TrainError> {
        let mut inputs = BTreeMap::new();
        if let Some(path) = &self.recipe.image_tokenizer {
            inputs.insert("image_tokenizer".to_string(), part_checksum(path, Part::ImageTokenizer)?);
        }
        if let (Some(_), Some((key, path))) = (&self.recipe.conditions.text, text::reader(&self.recipe)) {
            inputs.insert(key.to_string(), part_checksum(path, text::lending(&BundleFolder::open(path)?))?);
        }
        Ok(inputs)
    }

    fn batch(&mut self, pass: Pass) -> Result<DiffusionBatch, TrainError> {
        let mut batch = DiffusionBatch::default();
        for mut clean in self.source.batch(&mut self.pictures, pass)? {
            let class = self.classes.as_ref().and_then(|classes| classes.of_picture(clean.index));
            self.add(&mut batch, &clean.values, clean.caption, class, &mut clean.rng)?;
        }
        Ok(batch)
    }

    fn step(&mut self, batch: DiffusionBatch, pass: Pass) -> Result<Measures, TrainError> {
        let loss = self.loss(self.generator.network(), &batch, &self.device.clone().autodiff())?;
        let figure = scalar(&loss);
        self.generator.gather(&mut loss.backward(), pass.share());
        Ok(Measures::from([("loss".to_string(), figure)]))
    }

    /// The loss on evaluation pictures at the same levels and with the same noise each time, told what they are and told nothing: the difference is what the
    /// condition tells.
    fn evaluate(&mut self) -> Result<Measures, TrainError> {
        let network = self.generator.averaged();
        let conditional = self.config.text.is_some() || !self.config.classes.is_empty();
        let (mut told, mut untold, mut count) = (0.0, 0.0, 0);
        for items in self.pictures.evaluation().chunks(self.recipe.train.batch_size) {
            let mut batch = DiffusionBatch::default();
            for (item, clean) in items.iter().zip(self.source.of_items(items)) {
                let mut rng = stream(self.recipe.train.seed, Purpose::Sample, (count + batch.captions.len()) as u64);
                self.add(&mut batch, &clean, String::new(), None, &mut rng)?;
                let row = batch.captions.len() - 1;
                batch.captions[row] = item.captions.first().cloned().unwrap_or_default();
                batch.classes[row] = self.class_number(self.classes.as_ref().and_then(|classes| classes.of_item(item)));
            }
            told += scalar(&self.loss(&network, &batch, &self.device)?) * items.len() as f64;
            if conditional {
                batch.captions.iter_mut().for_each(String::clear);
                batch.classes.fill(self.class_number(None));
                untold += scalar(&self.loss(&network, &batch, &self.device)?) * items.len() as f64;
            }
            count += items.len();
        }
        let mut figures = vec![("loss", told / count as f64)];
        if conditional {
            figures.push(("loss without condition", untold / count as f64));
        }
        Ok(figures.into_iter().map(|(name, value)| (self.pictures.measure(name), value)).collect())
    }

    /// A row for each prompt.
    fn sample(&mut self) -> Result<Option<Picture>, TrainError> {
        let maker = self.text_to_image()?;
        let mut rows = Vec::new();
        for prompt in self.prompts() {
            let request = Request { count: self.recipe.samples.count, seed: self.recipe.train.seed, ..Request::new(prompt) };
            rows.push(maker.generate(&request, &mut |_| {})?.pictures.into_iter().map(|made| made.picture).collect());
        }
        Ok(Some(sheet(&rows)?))
    }

    fn export(&mut self, folder: &Path, facts: &RunFacts) -> Result<(), TrainError> {
        export::save(&self.bundle(Some(facts)), folder)?;
        Ok(())
    }
}

/// The bundle that a stage of super-resolution stands on.
fn stage_below(path: &Path, recipe: &DiffusionRecipe, device: &Device) -> Result<Bundle, TrainError> {
    let bundle = Bundle::load(path, device)?;
    let last = bundle.super_resolution.last().or(bundle.generator.as_ref()).map(|part| part.model.config());
    let found = match &last {
        Some(GeneratorModel::Diffusion(config)) => config.image_size,
        _ => {
            let reason = "expected a bundle with a diffusion network, whose pictures are enlarged".to_string();
            return Err(TrainError::Unfit { place: path.display().to_string(), reason });
        }
    };
    let expected = recipe.conditions.low_resolution.as_ref().map_or(0, |condition| condition.image_size);
    if found != expected {
        let reason = format!("expected pictures of {expected} pixels, as conditions.low_resolution.image_size says, found {found}");
        return Err(TrainError::Unfit { place: path.display().to_string(), reason });
    }
    Ok(bundle)
}
