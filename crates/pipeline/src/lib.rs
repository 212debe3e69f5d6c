//! From a prompt to pictures: bundles of trained networks, text-to-image, re-ranking, reconstruction. Nothing here can train.
//!
//! Reading order:
pub mod manifest; //       bundle.toml: what a bundle says about itself, typed
pub mod parts; //          networks of several kinds behind the few things a pipeline asks of them
pub mod reading; //        texts as text tokens, and what did not fit
mod agreement; //          the parts of a bundle must speak of the same pictures
pub mod bundle; //         a folder with a manifest and weights, saved and loaded
pub mod budget; //         what a picture costs, counted from the sizes of the parts
pub mod text_to_image; //  prompt -> image tokens -> pictures, best first
pub mod rerank; //         how well pictures fit a prompt
pub mod reconstruct; //    pictures -> image tokens -> pictures
pub mod import; //         others' checkpoints -> parts of a bundle
pub mod progress; //       how far the work is
mod model_card; //         MODEL_CARD.md for bundles that bring none
mod error; //              what can go wrong, by name

pub use bundle::{Bundle, BundleFolder};
pub use error::PipelineError;
pub use manifest::{Manifest, Part, Provenance};
pub use parts::{ClassifierPart, ContrastivePart, GeneratorPart, ImageTokenizerPart, TextEncoderPart};
pub use progress::Progress;
pub use reading::Truncation;
