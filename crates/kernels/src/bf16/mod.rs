//! Products and convolutions of numbers rounded to bf16 (8 bits of significand), summed in f32.
//!
//! Both sides are rounded to nearest, ties to even, while they are packed: activations into rows, weights into panels of 32 columns in which two
//! successive depths lie side by side, [panel][tap][depth / 2][32][2]: what AMX tiles and AVX512_BF16 take, and what AVX2 takes apart with a shift and a
//! mask. A product of two such numbers is exact in f32, so every instruction set differs from exact arithmetic by the order of its sums alone.
//!
//! Each element of a result is one chain over taps and depth, starting from the bias, in an order that the instruction set alone fixes (AMX and AVX512_BF16
//! sum in pairs): blocking, other rows and threads change no bit, as with f32.

mod block; //       a block of rows by panels of columns: vectors
pub mod convolution;
#[cfg(target_arch = "x86_64")]
mod dot; //         the same with AVX512_BF16
mod packing; //     rounding, rows, panels, transposition
pub mod product;
mod rows; //        y = A B
mod sums; //        y = A^T B
#[cfg(test)]
mod tests;
#[cfg(any(test, target_arch = "x86_64"))]
mod tiles; //       the same with AMX

pub use packing::{Element, rounded};
