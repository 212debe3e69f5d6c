//! Operations, layers, initialisation and named weights: everything a network is made of.
//!
//! Reading order:
pub mod initializer; // where first weights come from: a seed, never a global generator
pub mod layers; //      convolution, linear, normalisation, embedding: parameters and a forward
pub mod ops; //         the operations that take the time, one file each, on tensors
pub mod optimizer; //   AdamW in one pass
pub mod precision; //   what products compute in: f32 or bf16
pub mod weights; //     named tensors in and out of modules and files; strict, and says everything at once

pub use initializer::Initializer;
pub use precision::{Precision, PrecisionChoice};
