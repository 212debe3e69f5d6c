//! Quantizers: continuous latents to entries of a codebook.
//!
//! Reading order:
pub mod usage; //  how much of a codebook is used, over an epoch
pub mod vector; // nearest code; learned or moving-average codebook; k-means start; restart of dead codes
