//! Image tokenizers: pixels to latents (continuous) or image tokens (discrete), and back.
//!
//! Reading order:
pub mod autoencoder_kl; //   the whole without a codebook: a Gaussian for each latent, for latent diffusion
pub mod autoencoder_tiny; // a small one that speaks a large one's latents, for previews: TAESD
pub mod convolutional; //    the encoder and decoder that turn pixels into latents and latents into pixels
pub mod latent_scale; //     how large latents are on real data: the factor that brings them to unit variance
pub mod quantizer; //        latents to codes of a codebook
pub mod vqgan; //            the whole with a codebook: encoder, codebook, decoder, losses, others' checkpoints
