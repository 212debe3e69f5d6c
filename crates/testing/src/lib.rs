//! Dev-only: what the tests of several crates share.
//!
//! Reading order:
mod closeness; //      check_close: worst element, shapes, NaN
mod golden; //         tensors that a reference implementation wrote
mod gradient_check; // gradients against finite differences

pub use closeness::{Array, check_close};
pub use golden::{Golden, golden};
pub use gradient_check::{Parameters, gradient_check, module_gradient_check};
