//! The operations that take the time, as functions on tensors. Feature maps are [batch, height, width, channels].
//!
//! Each file has, in this order: the function; the bodies that a backend can override, with defaults of burn primitives; the dispatched operation;
//! what Autodiff records; the bodies on CPU kernels; the composed bodies.
//!
//! Shapes are checked here, in the functions: a wrong shape is a wrong program and panics with the operation and both shapes.

mod attention;
mod concatenate;
mod conv2d;
mod cross_entropy;
mod elementwise;
mod flex;
mod gradients;
mod group_norm;
mod layer_norm;
mod linear;
mod nearest_code;
mod optimizer_step;
mod products;
mod rms_norm;
#[cfg(test)]
mod tests;
mod upsample;

pub use attention::{Mask, attention};
pub use concatenate::concatenate;
pub use conv2d::{Padding, conv2d, conv2d_onto, conv2d_shifted};
pub use cross_entropy::cross_entropy;
pub use elementwise::{gelu, gelu_tanh, leaky_relu, quick_gelu, relu, silu};
pub use group_norm::{Activation, group_norm};
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use nearest_code::nearest_code;
pub(crate) use optimizer_step::adamw;
pub use optimizer_step::move_average;
pub use rms_norm::rms_norm;
pub use upsample::upsample_nearest;
