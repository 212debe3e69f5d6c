//! Every network with its config, its own loss, foreign names, tests and goldens.
//!
//! A model is one folder: `mod.rs` (the network), `config.rs`, `loss.rs`, `import.rs` (others' checkpoints), `tests.rs`, `goldens/`. The roles, as a picture
//! is made and learned: an image tokenizer turns pixels into image tokens and back, a generator makes image tokens from text, a contrastive model says how
//! well picture and caption fit; perceptual distance and discriminator teach the image tokenizer what matters to the eye.

pub mod classifier; //      which class a picture is of, for guidance: noisy classifier
pub mod contrastive; //     how well a picture fits a caption: CLIP
pub mod discriminator; //   is this patch of a picture real: PatchGAN
pub mod generator; //       text tokens -> image tokens: DALL-E BART; noise -> pictures or latents: U-Net
pub mod image_tokenizer; // pixels <-> latents <-> image tokens: VQGAN, KL autoencoder, tiny autoencoder
pub mod inception; //       what is in a picture, as numbers for the Frechet distance: Inception v3
pub mod perceptual; //      how far two pictures are apart to the eye: LPIPS over VGG16
pub mod text_encoder; //    text tokens -> states to draw from, frozen: T5, CLIP text, BERT

pub mod cost; //     numbers and multiplications of a network, by its sizes
mod config_error; // what is wrong with a config, by key
pub use config_error::ConfigError;

#[cfg(test)]
mod golden_gradients; // for tests: a reference's gradients
