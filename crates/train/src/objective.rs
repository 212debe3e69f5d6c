//! What the reconstructions of an image tokenizer are judged by: L1, L2, LPIPS, and a discriminator that learns beside it.
//!
//! The formulas are in `smalti_models::image_tokenizer::vqgan::loss`; here they are weighed, for every image tokenizer alike.

use crate::TrainError;
use crate::learner::{Learner, Learns};
use crate::pictures::scalar;
use crate::recipe::{Measures, Pass};
use crate::recipe_file::{RecipeError, RecipeFile};
use crate::settings::{OptimizerSettings, expect_range};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use smalti_models::discriminator::patch::{self, PatchDiscriminator};
use smalti_models::image_tokenizer::vqgan::loss;
use smalti_models::perceptual::lpips::Lpips;
use smalti_models::perceptual::vgg;
use smalti_nn::Initializer;
use smalti_nn::weights::{self, safetensors};
use std::path::{Path, PathBuf};

/// The part of a recipe's `[loss]` that speaks of the picture: the weight of each term.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectiveSettings {
    pub l1: f64,
    pub l2: f64,
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

impl ObjectiveSettings {
    pub fn validate(&self, file: &RecipeFile, image_size: usize) -> Result<(), RecipeError> {
        let Self { l1, l2, perceptual, adversarial } = self;
        for (key, weight) in [("l1", l1), ("l2", l2)] {
            expect_range(file, &format!("loss.{key}"), *weight, 0.0, 1e6)?;
        }
        if l1 + l2 == 0.0 && perceptual.is_none() {
            return Err(file.reject("loss.l1", "expected a loss of reconstruction: `l1`, `l2` or [loss.perceptual], found none"));
        }
        if let Some(perceptual) = perceptual {
            expect_range(file, "loss.perceptual.weight", perceptual.weight, 0.0, 1e6)?;
            if image_size < 16 {
                return Err(file.reject("loss.perceptual", format!("expected pictures of at least 16 pixels, found image_size = {image_size}")));
            }
        }
        adversarial.as_ref().map_or(Ok(()), |adversarial| adversarial.validate(file, image_size))
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

/// The judges of one training.
pub struct Objective {
    settings: ObjectiveSettings,
    lpips: Option<Lpips>,
    discriminator: Option<Learner<PatchDiscriminator>>,
}

impl Objective {
    /// Loads LPIPS and starts a discriminator, where the settings ask for them.
    pub fn new(settings: &ObjectiveSettings, optimizer: &OptimizerSettings, initializer: &mut Initializer, device: &Device) -> Result<Self, TrainError> {
        let discriminator = match &settings.adversarial {
            None => None,
            Some(adversarial) => {
                let impossible = |error: smalti_models::ConfigError| TrainError::Unfit { place: "recipe".to_string(), reason: error.to_string() };
                let network = PatchDiscriminator::new(&adversarial.discriminator, initializer).map_err(impossible)?;
                let optimizer = OptimizerSettings { learning_rate: adversarial.learning_rate, ..optimizer.clone() };
                Some(Learner::new("discriminator", network, &optimizer, None))
            }
        };
        let lpips = settings.perceptual.as_ref().map(|perceptual| load_lpips(&perceptual.weights, device)).transpose()?;
        Ok(Self { settings: settings.clone(), lpips, discriminator })
    }

    /// The discriminator, for the loop.
    pub fn discriminator(&mut self) -> Option<&mut dyn Learns> {
        self.discriminator.as_mut().map(|learner| learner as &mut dyn Learns)
    }

    /// A loss for the network that made `picture` of `features`, by its last convolution. `last_weight_gradient(features, gradient for the picture)` is the
    /// gradient for that convolution's weight. The figures of each term go to `losses`.
    pub fn loss(
        &self,
        picture: &Tensor<4>,
        features: Tensor<4>,
        target: &Tensor<4>,
        pass: Pass,
        losses: &mut Measures,
        last_weight_gradient: impl Fn(Tensor<4>, Tensor<4>) -> Tensor<4>,
    ) -> Tensor<1> {
        if self.discriminator.is_none() {
            return self.reconstruction(picture.clone(), target.clone(), losses);
        }
        let gradient = self.adversarial_gradient(picture, features, target, pass, losses, last_weight_gradient);
        loss::gradient_passed_on(picture.clone(), Tensor::from_inner(gradient))
    }

    /// Every term that does not need the discriminator.
    fn reconstruction(&self, picture: Tensor<4>, target: Tensor<4>, losses: &mut Measures) -> Tensor<1> {
        let ObjectiveSettings { l1, l2, perceptual, .. } = &self.settings;
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

    /// The gradient that reconstruction and adversarial losses have for the picture, by two small backward passes that stop at it; see `loss` ("One backward
    /// pass").
    fn adversarial_gradient(
        &self,
        picture: &Tensor<4>,
        features: Tensor<4>,
        target: &Tensor<4>,
        pass: Pass,
        losses: &mut Measures,
        last_weight_gradient: impl Fn(Tensor<4>, Tensor<4>) -> Tensor<4>,
    ) -> Tensor<4> {
        let leaf = picture.clone().detach().require_grad();
        let reconstruction = self.reconstruction(leaf.clone(), target.clone(), losses);
        let reconstruction_gradient = gradient_of(&leaf, reconstruction);
        let (Some(settings), Some(discriminator)) = (&self.settings.adversarial, &self.discriminator) else { return reconstruction_gradient };
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
        let on_autodiff = |gradient: &Tensor<4>| Tensor::from_inner(gradient.clone());
        let weight = loss::adaptive_weight(
            last_weight_gradient(features.clone(), on_autodiff(&reconstruction_gradient)),
            last_weight_gradient(features, on_autodiff(&adversarial_gradient)),
            settings.adaptive_weight_cap,
        );
        // Not finite: the term is left out of this step, and the log shows it as 0.
        losses.insert("adaptive weight".to_string(), weight.map_or(0.0, f64::from));
        match weight {
            Some(weight) => reconstruction_gradient + adversarial_gradient * (f64::from(weight) * settings.weight),
            None => reconstruction_gradient,
        }
    }

    /// The discriminator's own step, on real pictures and on made ones.
    pub fn train_discriminator(&mut self, real: Tensor<4>, made: Tensor<4>, pass: Pass, losses: &mut Measures) {
        let (Some(settings), Some(discriminator)) = (&self.settings.adversarial, &mut self.discriminator) else { return };
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
