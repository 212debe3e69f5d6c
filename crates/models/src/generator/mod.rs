//! Text tokens to image tokens, and noise to pictures or latents.

pub mod conditions; //  what a diffusion network is told beside the noisy picture: text, class, a smaller picture
pub mod dalle_bart; //  an encoder-decoder transformer over image tokens: DALL-E mini's, and stock BART
pub mod efficient_unet; // the denoising networks of Imagen's cascade
pub mod unet; //        the denoising network of DDPM and of latent diffusion
