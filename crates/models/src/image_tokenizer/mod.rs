//! Image tokenizers: pixels to latents and image tokens, and back.
//!
//! Reading order:
pub mod convolutional; // the encoder and decoder that turn pixels into latents and latents into pixels
pub mod latent_scale; //  how large latents are on real data: the factor that brings them to unit variance
pub mod quantizer; //     latents to codes of a codebook
pub mod vqgan; //         the whole: encoder, codebook, decoder, losses, others' checkpoints
