//! Layers: parameters with a forward. Field names are weight names.

mod conv2d;
mod embedding;
mod linear;
mod norm;

pub use conv2d::{Conv2d, Conv2dConfig};
pub use embedding::Embedding;
pub use linear::Linear;
pub use norm::{GroupNorm, LayerNorm, RmsNorm};
