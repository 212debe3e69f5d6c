//! Pictures and captions: everything between a folder on disk and a batch of numbers, and back to a PNG.
//!
//! In reading order:
//! [`picture`] one picture in memory, [`grid`] several on a sheet, [`numbers`] figures below them, [`transform`] to the training size, [`dataset`] a folder or
//! shards of captioned pictures, [`loader`] batches of them in an order that a resumed run repeats exactly, [`text_tokenizer`]
//! captions to text tokens, [`pictograms`] and [`dolls`] the data sets that this repository builds for itself ([`data_recipe`]).
//!
//! Invariants: nothing is silently dropped (a bad picture or caption is named, counted, and over the stated limit an error); nothing is
//! read into memory whole that grows with the data set, but its index; files are written under a temporary name and renamed.

pub mod atomic_write;
mod by_hash;
pub mod data_recipe;
pub mod dataset;
pub mod dolls;
pub mod error;
pub mod grid;
pub mod loader;
mod new_folder;
pub mod numbers;
pub mod pictograms;
pub mod picture;
pub mod resize;
mod shard_writer;
pub mod text_tokenizer;
pub mod transform;

pub use error::{DataError, PictureError};
pub use picture::Picture;
