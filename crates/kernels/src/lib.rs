//! CPU kernels on slices: thread pool, instruction sets chosen at run time, all the unsafe code but one line.
//!
//! Layouts: feature maps [batch, height, width, channels], convolution weights [kernel, kernel, input, output], matrices row-major.
//! A slice of the wrong length is a wrong program and panics with what was expected and found.
//!
//! Determinism: every output element is a sum in an order that depends on the reduced length alone (products), or on the shape alone
//! (sums over a batch, cut into parts fixed by the shape). Thread count, batch size and place in the batch change no bit.
//!
//! Reading order:
pub mod instruction_set; // which body runs: portable, NEON, AVX2, AVX-512, AMX
pub mod memory; //          scratch kept between calls, outputs that are not zeroed first
pub mod threads; //         how many threads, and fixed cuts of the work
#[cfg(target_arch = "aarch64")]
mod neon; //                Arm's vectors
mod vector; //              one vector type per instruction set; exp and friends
mod widening; //            vectors from numbers of 16 and 8 bits

pub mod attention; //       softmax(query key^T) value, a block of rows at a time
pub mod bf16; //            products and convolutions of numbers rounded to bf16
pub mod concatenate; //     channels of two feature maps side by side
pub mod convolution; //     forward, gradients of input, weight, bias and shifts
pub mod cross_entropy; //   over large vocabularies
pub mod elementwise; //     activation functions, AdamW, moving averages
pub mod group_norm; //      group normalisation with SiLU
pub mod layer_norm; //      normalisation of rows
pub mod nearest; //         nearest row of a table
pub mod peak; //            what this machine can do at most, for benchmarks
pub mod product; //         matrix products on packed panels
pub mod small_weights; //   products with weights of 16 or 8 bits, for few rows
pub mod upsample; //        nearest-neighbour, by two
mod row_sums; //            gradients of biases
mod winograd; //            3x3 convolution by a quarter of the multiplications

pub use instruction_set::InstructionSet;

#[cfg(test)]
extern crate self as smalti_kernels; // what `tests/support` calls it
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;
