//! Networks that tell real pictures from made ones.
//!
//! Reading order:
mod batch_norm; // batch normalisation with explicit running statistics
pub mod import; // taming's names
pub mod patch; // one judgement for each patch of a picture: PatchGAN

pub use batch_norm::BatchStatistics;
