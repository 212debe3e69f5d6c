//! The loss that is the KL autoencoder's own; the others are VQGAN's, named here too.
//!
//! latent-diffusion (`modules/losses/contperceptual.py`) sums its reconstruction error over all values of a picture and its divergence over all latents,
//! divides both by the batch, and weighs the divergence with 1e-6. Our reconstruction losses are means over values, which is its sum divided by the number
//! of values in a picture; the same balance therefore needs the weight divided by that number: [`kl_weight`]. (A copied 1e-6 beside a mean would be
//! 200,000 times too strong at 256x256.) What a training step adds up:
//! `l1 + perceptual + kl_weight * kl + factor * weight * hinge_generator`, `weight = 0.5 * adaptive_weight`, in one backward pass as [`vqgan::loss`] says.
//! latent-diffusion's learned output variance (`logvar`) starts at 0 and is handed to no optimiser in its code: it is the factor 1 there and here.

pub use crate::image_tokenizer::vqgan::loss::{
    ADAPTIVE_WEIGHT_CAP, adaptive_weight, adversarial_factor, discriminator_factor, gradient_passed_on, hinge_discriminator, hinge_generator, l1, l2,
    perceptual,
};

use super::Moments;
#[cfg(doc)]
use crate::image_tokenizer::vqgan;
use burn::tensor::Tensor;

/// The weight of the divergence in latent-diffusion's configs, beside a reconstruction error that is summed over the values of a picture.
pub const LATENT_DIFFUSION_KL_WEIGHT: f64 = 1e-6;

/// Divergence of the latents' Gaussians from the standard normal, in nats: summed over the latents of a picture, mean over the batch, [1]
/// (Kingma and Welling 2013, appendix B: 1/2 sum(mean^2 + variance - 1 - log variance)).
pub fn kl(moments: &Moments) -> Tensor<1> {
    let Moments { mean, log_variance } = moments.clone();
    let batch = mean.dims()[0] as f32;
    (mean.powi_scalar(2) + log_variance.clone().exp() - 1.0 - log_variance).sum() * (0.5 / batch)
}

/// What to multiply [`kl`] with beside losses that are means over the values of a picture [height, width, channels]: `summed_weight` (1e-6 in
/// latent-diffusion) divided by the number of values.
pub fn kl_weight(summed_weight: f64, picture: [usize; 3]) -> f64 {
    summed_weight / picture.iter().product::<usize>() as f64
}
