//! What each system means by a batch, a step, a judgement and a bundle.

pub mod autoencoder_kl;
pub mod clip;
pub mod dalle_bart;
pub mod diffusion;
pub mod noisy_classifier;
pub mod vqgan;
