//! The losses of VQGAN, one function each (Esser, Rombach and Ommer 2021, equations 4 to 7; reference: taming `modules/losses/vqperceptual.py`).
//!
//! What a training step adds up, with taming's coefficients: `l1 + 1.0 * perceptual + codebook_loss + 0.25 * commitment_loss + factor * weight *
//! hinge_generator` with `weight = 0.8 * adaptive_weight`, for the autoencoder; `hinge_discriminator` for the discriminator.
//!
//! # One backward pass
//! The adaptive weight needs the gradients of two losses at the decoder's last weight before the sum can be formed. taming runs three backward passes
//! through one retained graph; burn retains none, and none is needed, because both losses depend on the network through the picture alone:
//! 1. `features = vqgan.features(latents)`, `picture = vqgan.picture(features)`;
//! 2. `leaf = picture.detach().require_grad()`; backward of `l1(leaf, x) + perceptual(leaf, x)` and of `hinge_generator(discriminator(leaf))` each give a
//!    gradient for the picture (the discriminator's own gradients of this pass are dropped);
//! 3. `vqgan.last_weight_gradient(features, gradient)` for each, then [`adaptive_weight`];
//! 4. one backward of `gradient_passed_on(picture, reconstruction_gradient + weight * adversarial_gradient) + codebook_loss + 0.25 * commitment_loss`
//!    through decoder and encoder: by the chain rule exactly the gradient of the whole sum.
//!
//! Accumulated over k parts of a batch, the adaptive weight is that of each part; all other losses are means and accumulate exactly.

pub use crate::image_tokenizer::quantizer::vector::{codebook_loss, commitment_loss};

use crate::perceptual::lpips::Lpips;
use burn::tensor::{Tensor, activation};

/// Mean absolute difference, [1]. Both pictures [batch, height, width, channels].
pub fn l1(picture: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
    (picture - target).abs().mean()
}

/// Mean squared difference, [1].
pub fn l2(picture: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
    (picture - target).powi_scalar(2).mean()
}

/// Mean perceptual distance of the batch, [1]. Pictures [batch, height, width, 3] in [-1, 1].
pub fn perceptual(lpips: &Lpips, picture: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
    lpips.distance(picture, target).mean()
}

/// Hinge loss of the discriminator (Lim and Ye 2017): 1/2 mean(relu(1 - real)) + 1/2 mean(relu(1 + made)). Logits [batch, rows, columns, 1] -> [1].
pub fn hinge_discriminator(real: Tensor<4>, made: Tensor<4>) -> Tensor<1> {
    (activation::relu(1.0 - real).mean() + activation::relu(made + 1.0).mean()) * 0.5
}

/// Hinge loss of the generator: -mean(made).
pub fn hinge_generator(made: Tensor<4>) -> Tensor<1> {
    -made.mean()
}

/// Logistic loss of the discriminator (Goodfellow et al. 2014, equation 1, negated and halved as in taming's "vanilla"):
/// 1/2 mean(softplus(-real)) + 1/2 mean(softplus(made)).
pub fn non_saturating_discriminator(real: Tensor<4>, made: Tensor<4>) -> Tensor<1> {
    (softplus(-real).mean() + softplus(made).mean()) * 0.5
}

/// Non-saturating loss of the generator (Goodfellow et al. 2014, section 3: maximise log D): mean(softplus(-made)).
pub fn non_saturating_generator(made: Tensor<4>) -> Tensor<1> {
    softplus(-made).mean()
}

/// log(1 + e^x) without overflow.
fn softplus(x: Tensor<4>) -> Tensor<4> {
    activation::relu(x.clone()) + ((-x.abs()).exp() + 1.0).log()
}

/// Added to the denominator of the adaptive weight: 1e-4 in taming's code (the paper has 1e-6).
const ADAPTIVE_WEIGHT_DELTA: f64 = 1e-4;

/// The greatest adaptive weight of taming's code. Far lower ones (1 to 100) keep a young discriminator from taking over.
pub const ADAPTIVE_WEIGHT_CAP: f32 = 1e4;

/// Equation 7: |reconstruction_gradient| / (|adversarial_gradient| + 1e-4), at most `cap`, from the gradients at the decoder's last weight
/// ([`super::Vqgan::last_weight_gradient`]). Nothing when either gradient is not finite: leave the adversarial term out of that step. Log it.
pub fn adaptive_weight(reconstruction_gradient: Tensor<4>, adversarial_gradient: Tensor<4>, cap: f32) -> Option<f32> {
    let weight = norm(reconstruction_gradient) / (norm(adversarial_gradient) + ADAPTIVE_WEIGHT_DELTA);
    weight.is_finite().then(|| weight.min(f64::from(cap)) as f32)
}

/// Euclidean norm over all elements, summed on the host so that f32 neither overflows nor loses small terms; NaN where an element is not finite.
fn norm(gradient: Tensor<4>) -> f64 {
    let data = gradient.into_data();
    let sum: f64 = data.iter::<f32>().map(|value| f64::from(value).powi(2)).sum();
    if sum.is_finite() { sum.sqrt() } else { f64::NAN }
}

/// A loss [1] whose gradient for `x` is `gradient`: the sum of their products, as in step 4 above. Same shapes.
pub fn gradient_passed_on(x: Tensor<4>, gradient: Tensor<4>) -> Tensor<1> {
    assert!(x.dims() == gradient.dims(), "gradient_passed_on: x {:?} does not fit gradient {:?}", x.dims(), gradient.dims());
    (x * gradient.detach()).sum()
}

/// 1 from step `start` on, before that 0: whether the discriminator learns.
pub fn discriminator_factor(step: u64, start: u64) -> f32 {
    if step >= start { 1.0 } else { 0.0 }
}

/// The factor of the adversarial loss in the autoencoder's: 0 while the discriminator learns alone, for `warm_up` steps from `start`, then 1. taming has no
/// warm-up, so that an untrained discriminator pulls at the decoder from its first step.
pub fn adversarial_factor(step: u64, start: u64, warm_up: u64) -> f32 {
    if step >= start.saturating_add(warm_up) { 1.0 } else { 0.0 }
}
