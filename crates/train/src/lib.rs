//! Training: one loop, many recipes.
//!
//! Reading order:
pub mod checkpoint; //    atomic, checksummed; the newest valid one is found after any crash
pub mod data_record; //   what a run keeps of its data set, to tell whether it is still the same
pub mod ema; //           exponential moving average of the weights
pub mod pictures; //      the pictures of a run: training batches, held-out pictures, sheets of samples
pub mod classes; //       what a field of their descriptions says pictures are
pub mod captions; //      the text tokenizer of a run, captions as tensors
pub mod encoding_cache; //  image tokens or latents of a data set, made once
pub mod text_states; //     states of captions, made once by a frozen text encoder
pub mod order; //          epochs of examples that lie ready in memory
pub mod recipes; //       one for each system: vqgan, clip, dalle_bart, diffusion
pub mod job; //           a recipe file checked and ready to run
pub mod budget; //        what the networks of a recipe cost
mod error;
mod export; //            the bundle that a training leaves
pub mod objective; //     what the reconstructions of an image tokenizer are judged by
pub mod gradients; //     accumulate, clip, all-reduce: what happens between backward and the optimiser
pub mod learner; //       a network with its optimiser and its average, behind one trait for the loop
pub mod learning_rate; // warm-up, then constant, linear or cosine
pub mod log; //           log.jsonl, progress on stderr
pub mod recipe; //        what a recipe must say to be trained
pub mod recipe_file; //   a recipe as typed TOML: overrides, `[smoke]`, errors that name the line and the nearest key
pub mod report; //        report.html: curves and sample grids in one file; losses.svg
pub mod run_folder; //    where a run keeps its files, and whether it may be resumed
pub mod settings; //      the tables that every recipe has: [optimizer], [schedule], [train]
pub mod train_loop; //    the only loop: it owns time, the recipe owns meaning

pub use error::TrainError;
pub use job::Job;
pub use recipe_file::{RecipeError, RecipeFile};
