//! VQGAN (Esser, Rombach and Ommer 2021): reconstruction, perceptual, codebook and adversarial losses; two optimisers once the discriminator is on.
//!
//! The losses are in `smalti_models::image_tokenizer::vqgan::loss`; this file weighs them, keeps the codebook alive and measures.

use crate::TrainError;
use crate::learner::{Learner, Learns};
use crate::learning_rate::Schedule;
use crate::pictures::{self, PictureSettings, Pictures, scalar, sheet, stack, to_pictures};
use crate::recipe::{Measures, Pass, Purpose, Recipe, RunFacts, stream};
use crate::recipe_file::{RecipeError, RecipeFile};
use crate::settings::{self, OptimizerSettings, TrainSettings, expect_range};
use crate::train_loop::LoopSettings;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};
use smalti_data::Picture;
use smalti_data::dataset::CaptionRule;
use smalti_data::loader::{Batch, Item};
use smalti_models::discriminator::patch::{self, PatchDiscriminator};
use smalti_models::image_tokenizer::latent_scale::LatentScale;
use smalti_models::image_tokenizer::quantizer::usage::CodebookUsage;
use smalti_models::image_tokenizer::quantizer::vector::Choice;
use smalti_models::image_tokenizer::vqgan::{self, Vqgan, loss};
use smalti_models::perceptual::lpips::Lpips;
use smalti_models::perceptual::vgg;
use smalti_nn::Initializer;
use smalti_nn::weights::safetensors::Storage;
use smalti_nn::weights::{self, HostTensor, NamedTensors, safetensors};
use smalti_pipeline::{Bundle, ImageTokenizerPart};
use std::path::{Path, PathBuf};

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

/// LPIPS as a loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerceptualSettings {
    pub weight: f64,
    /// Safetensors of VGG16 and the learned heads, from `smalti import ... --as lpips`.
    pub weights: PathBuf,
}

/// A patch discriminator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdversarialSettings {
    pub kind: AdversarialKind,
    pub weight: f64,
    /// From this step on the discriminator learns.
    pub start_step: usize,
    /// For so many steps more it learns alone, before its judgement reaches the decoder.
    pub warm_up_steps: usize,
    /// The adaptive weight (equation 7) is cut at this.
    pub adaptive_weight_cap: f32,
    /// Peak of the discriminator's rate, under the same schedule.
    pub learning_rate: f64,
    pub discriminator: patch::Config,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdversarialKind {
    Hinge,
    NonSaturating,
}

/// `[codebook_start]`: k-means on the latents of the first pictures, before the first step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodebookStart {
    /// 0: the codebook keeps its random start.
    pub picture_count: usize,
    pub round_count: usize,
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
        let LossSettings { l1, l2, codebook, commitment, perceptual, adversarial } = &self.loss;
        for (key, weight) in [("l1", l1), ("l2", l2), ("codebook", codebook), ("commitment", commitment)] {
            expect_range(file, &format!("loss.{key}"), *weight, 0.0, 1e6)?;
        }
        if l1 + l2 == 0.0 && perceptual.is_none() {
            return Err(file.reject("loss.l1", "expected a loss of reconstruction: `l1`, `l2` or [loss.perceptual], found none"));
        }
        if let Some(perceptual) = perceptual {
            expect_range(file, "loss.perceptual.weight", perceptual.weight, 0.0, 1e6)?;
            if size < 16 {
                return Err(file.reject("loss.perceptual", format!("expected pictures of at least 16 pixels, found image_size = {size}")));
            }
        }
        adversarial.as_ref().map_or(Ok(()), |adversarial| adversarial.validate(file, size))
    }

    pub fn loop_settings(&self, recipe: String) -> LoopSettings {
        LoopSettings { train: self.train.clone(), optimizer: self.optimizer.clone(), schedule: self.schedule.clone(), recipe }
    }
}

impl AdversarialSettings {
    fn validate(&self, file: &RecipeFile, image_size: usize) -> Result<(), RecipeError> {
        expect_range(file, "loss.adversarial.weight", self.weight, 0.0, 1e6)?;
        expect_range(file, "loss.adversarial.learning_rate", self.learning_rate, f64::MIN_POSITIVE, 1.0)?;
        expect_range(file, "loss.adversarial.adaptive_weight_cap", self.adaptive_weight_cap as f64, 0.0, 1e6)?;
        let key = |key: &str| format!("loss.adversarial.discriminator.{key}");
        self.discriminator.validate().map_err(|error| file.reject(&key(&error.key), format!("expected {}, found {}", error.expected, error.found)))?;
        if image_size < self.discriminator.smallest_side() {
            let expected = format!("expected pictures of at least {} pixels, found image_size = {image_size}", self.discriminator.smallest_side());
            return Err(file.reject(&key("layer_count"), expected));
        }
        Ok(())
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
    discriminator: Option<Learner<PatchDiscriminator>>,
    lpips: Option<Lpips>,
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
        let discriminator = match &recipe.loss.adversarial {
            None => None,
            Some(adversarial) => {
                let network = PatchDiscriminator::new(&adversarial.discriminator, &mut initializer).map_err(impossible)?;
                let optimizer = OptimizerSettings { learning_rate: adversarial.learning_rate, ..recipe.optimizer.clone() };
                Some(Learner::new("discriminator", network, &optimizer, None))
            }
        };
        let lpips = recipe.loss.perceptual.as_ref().map(|perceptual| load_lpips(&perceptual.weights, device)).transpose()?;
        let usage = CodebookUsage::new(recipe.model.quantizer.code_count);
        Ok(Self { recipe: recipe.clone(), pictures, device: device.clone(), vqgan, discriminator, lpips, pending: Vec::new(), usage })
    }

    /// Every term that does not need the discriminator. Returns the sum of reconstruction terms and the figures.
    fn reconstruction_loss(&self, picture: Tensor<4>, target: Tensor<4>, losses: &mut Measures) -> Tensor<1> {
        let LossSettings { l1, l2, perceptual, .. } = &self.recipe.loss;
        let l1_loss = loss::l1(picture.clone(), target.clone());
        losses.insert("l1".to_string(), scalar(&l1_loss));
        let mut total = l1_loss * *l1;
        if *l2 > 0.0 {
            let l2_loss = loss::l2(picture.clone(), target.clone());
            losses.insert("l2".to_string(), scalar(&l2_loss));
            total = total + l2_loss * *l2;
        }
        if let (Some(lpips), Some(settings)) = (&self.lpips, perceptual) {
            let distance = loss::perceptual(lpips, picture, target);
            losses.insert("perceptual".to_string(), scalar(&distance));
            total = total + distance * settings.weight;
        }
        total
    }

    /// The gradient that reconstruction and adversarial losses have for the picture, by two small backward passes that stop at it; the discriminator
    /// learns on the way. `features` made `picture`; see `loss` ("One backward pass").
    fn adversarial_gradient(&mut self, picture: &Tensor<4>, features: Tensor<4>, x: &Tensor<4>, pass: Pass, losses: &mut Measures) -> Tensor<4> {
        let leaf = picture.clone().detach().require_grad();
        let reconstruction = self.reconstruction_loss(leaf.clone(), x.clone(), losses);
        let reconstruction_gradient = gradient_of(&leaf, reconstruction);
        let (Some(settings), Some(discriminator)) = (&self.recipe.loss.adversarial, &self.discriminator) else { return reconstruction_gradient };
        let (step, start) = (pass.step as u64, settings.start_step as u64);
        if loss::adversarial_factor(step, start, settings.warm_up_steps as u64) == 0.0 {
            return reconstruction_gradient;
        }
        let leaf = picture.clone().detach().require_grad();
        // Its own weights learn from the discriminator's loss only.
        let judge = discriminator.network().clone().no_grad();
        let logits = judge.forward_training(leaf.clone()).logits;
        let adversarial = match settings.kind {
            AdversarialKind::Hinge => loss::hinge_generator(logits),
            AdversarialKind::NonSaturating => loss::non_saturating_generator(logits),
        };
        losses.insert("adversarial".to_string(), scalar(&adversarial));
        let adversarial_gradient = gradient_of(&leaf, adversarial);
        let network = self.vqgan.network();
        let device_gradient = |gradient: &Tensor<4>| Tensor::from_inner(gradient.clone());
        let weight = loss::adaptive_weight(
            network.last_weight_gradient(features.clone(), device_gradient(&reconstruction_gradient)),
            network.last_weight_gradient(features, device_gradient(&adversarial_gradient)),
            settings.adaptive_weight_cap,
        );
        // Not finite: the term is left out of this step, and the log shows it as 0.
        losses.insert("adaptive weight".to_string(), weight.map_or(0.0, f64::from));
        match weight {
            Some(weight) => reconstruction_gradient + adversarial_gradient * (f64::from(weight) * settings.weight),
            None => reconstruction_gradient,
        }
    }

    fn train_discriminator(&mut self, real: Tensor<4>, made: Tensor<4>, pass: Pass, losses: &mut Measures) {
        let (Some(settings), Some(discriminator)) = (&self.recipe.loss.adversarial, &mut self.discriminator) else { return };
        if loss::discriminator_factor(pass.step as u64, settings.start_step as u64) == 0.0 {
            return;
        }
        let (real, made) = (discriminator.network().forward_training(real), discriminator.network().forward_training(made.detach()));
        let judged = match settings.kind {
            AdversarialKind::Hinge => loss::hinge_discriminator(real.logits, made.logits),
            AdversarialKind::NonSaturating => loss::non_saturating_discriminator(real.logits, made.logits),
        };
        losses.insert("discriminator".to_string(), scalar(&judged));
        discriminator.gather(&mut judged.backward(), pass.share());
        discriminator.rewrite(|network| network.update_statistics(&real.statistics).update_statistics(&made.statistics));
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
        learners.extend(self.discriminator.as_mut().map(|learner| learner as &mut dyn Learns));
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
        let total = if self.discriminator.is_some() {
            let gradient = self.adversarial_gradient(&picture, features, &x, pass, &mut losses);
            loss::gradient_passed_on(picture.clone(), Tensor::from_inner(gradient)) + of_codes
        } else {
            self.reconstruction_loss(picture.clone(), x.clone(), &mut losses) + of_codes
        };
        self.vqgan.gather(&mut total.backward(), pass.share());
        self.train_discriminator(x, picture, pass, &mut losses);
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
        let (mut psnr, mut l1, mut count) = (0.0, 0.0, 0);
        for items in self.pictures.evaluation().chunks(self.recipe.train.batch_size) {
            let (made, tokens) = self.reconstruct(&network, items);
            usage.add(&tokens);
            // As 8-bit pictures, which is how everybody else will see them.
            for (made, item) in to_pictures(made)?.iter().zip(items) {
                let (made, original) = (made.to_f32(), item.picture.to_f32());
                l1 += made.iter().zip(&original).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / original.len() as f64;
                // A perfect picture has no finite PSNR; 99 dB is beyond what 8 bits can tell.
                psnr += smalti_metrics::psnr::psnr(&made, &original, 2.0)?.min(99.0);
                count += 1;
            }
        }
        let figures = [("psnr", psnr / count as f64), ("l1", l1 / count as f64), ("codes used", usage.used_share()), ("perplexity", usage.perplexity())];
        Ok(figures.map(|(name, value)| (self.pictures.measure(name), value)).into())
    }

    /// Eight originals over their reconstructions, twice.
    fn sample(&mut self) -> Result<Option<Picture>, TrainError> {
        let network = self.vqgan.averaged();
        let mut rows = Vec::new();
        let items = self.pictures.evaluation();
        for items in items[..items.len().min(16)].chunks(8.min(items.len())) {
            rows.push(items.iter().map(|item| item.picture.clone()).collect());
            rows.push(to_pictures(self.reconstruct(&network, items).0)?);
        }
        Ok(Some(sheet(&rows)?))
    }

    fn export(&mut self, folder: &Path, facts: &RunFacts) -> Result<(), TrainError> {
        let model = self.vqgan.averaged();
        let (size, batch_size) = (self.recipe.data.image_size, self.recipe.train.batch_size);
        let mut scale = LatentScale::default();
        for items in self.pictures.spread(SCALE_PICTURE_COUNT)?.chunks(batch_size) {
            scale.add(model.encode(stack(items, size, &self.device)));
        }
        let provenance = facts.provenance(&self.recipe.data.path);
        let part = ImageTokenizerPart { model, image_size: size, latent_scale: scale.factor(), provenance };
        Bundle { name: facts.name.clone(), image_tokenizer: Some(part), ..Bundle::default() }.save(folder, Storage::F16)?;
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

/// The gradient of `loss` for `leaf`, without gradients itself.
fn gradient_of(leaf: &Tensor<4>, loss: Tensor<1>) -> Tensor<4> {
    let gradients = loss.backward();
    leaf.grad(&gradients).unwrap_or_else(|| leaf.clone().inner().zeros_like())
}

fn load_lpips(path: &Path, device: &Device) -> Result<Lpips, TrainError> {
    let autodiff = device.clone().autodiff();
    let unfit = |error: smalti_models::ConfigError| TrainError::Unfit { place: path.display().to_string(), reason: error.to_string() };
    let lpips = Lpips::new(&vgg::Config::vgg16(), &mut Initializer::unread(&autodiff)).map_err(unfit)?;
    Ok(weights::apply(lpips, safetensors::read(path)?, &autodiff)?.no_grad())
}
