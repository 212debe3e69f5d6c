//! Products and convolutions of numbers rounded to bf16 (8 bits of significand), summed in f32.
//!
//! A product of two such numbers is exact in f32. So where a processor has no units for bf16, both sides are rounded to nearest, ties to even, and the kernels
//! of f32 do the rest, at their speed and in their order.
//!
//! Where there are units, both sides are rounded while they are packed: activations into rows, weights into panels of 32 columns in which two successive
//! depths lie side by side, [panel][tap][depth / 2][32][2]: what AMX tiles and AVX512_BF16 take. Each element of a result is one chain over taps and depth (with AVX512_BF16
//! and one tap: slices of 128 depths, added one by one), starting from the bias, in an order that the instruction set alone fixes (both sum in pairs): blocking, other rows and threads change no bit, as with f32.

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_variables))] // no other processor has units that are used

mod block; //       a block of rows by panels of columns
pub mod convolution;
#[cfg(target_arch = "x86_64")]
mod dot; //         the same with AVX512_BF16
mod few_channels; // weight gradients of first and last layers
mod packing; //     rounding, rows, panels, transposition
pub(crate) mod peak; // what the units can do at most
pub mod product;
mod rows; //        y = A B
mod sums; //        y = A^T B
#[cfg(test)]
mod tests;
#[cfg(any(test, target_arch = "x86_64"))]
mod tiles; //       the same with AMX

pub use packing::{Element, rounded};
