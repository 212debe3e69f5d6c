//! Autoregressive generation: p(t_1 .. t_n | prompt) = product over i of p(t_i | t_<i, prompt), one token drawn at a time.

mod logits;
mod sample;

pub use logits::{Candidate, Options, OptionsError, candidates, likeliest, super_condition};
pub use sample::{SampleError, sample};
