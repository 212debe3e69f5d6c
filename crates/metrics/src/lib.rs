//! Numbers that say how good pictures are. All of them work on host slices and [`Features`]; only [`feature_network`] and [`lpips`](mod@lpips) run a network.
//!
//! Reading order:
pub mod features; //        vectors that stand for pictures or captions
pub mod mean; //            a mean with how far it can be trusted
pub mod psnr; //            reconstruction: squared error on a logarithmic scale
pub mod ssim; //            reconstruction: local means, contrast and structure
pub mod lpips; //           reconstruction: distance of a network's features
pub mod reconstruction; //  the three of them over many pictures
pub mod codebook_usage; //  image tokenizer: how much of the codebook is in use
pub mod clip_score; //      generation: do pictures fit their captions
pub mod r_precision; //     generation: can a judge tell which caption a picture was made for
pub mod composition; //     generation: do dolls wear what was asked for, attribute by attribute
pub mod frechet; //         generation: how far is a set of pictures from real ones
pub mod neighbours; //      generation: fidelity, variety, and what a picture is nearest to
pub mod class_accuracy; //  generation: does a judge see the class that was asked for
pub mod eigenvalues; //     what the Frechet distance needs of linear algebra
pub mod feature_network; // pictures and captions to features
pub mod report; //          everything `evaluate` finds, as a table and as data
pub mod sweep; //           the figures of many ways of drawing, as rows and as curves
pub mod line_plot; //       curves with their intervals as SVG
mod error; //               what cannot be measured

pub use class_accuracy::{ClassAccuracy, class_accuracy};
pub use clip_score::{ClipScore, clip_score};
pub use codebook_usage::{CodeCounts, CodebookUsage};
pub use composition::{Composition, CompositionMeter};
pub use error::MetricsError;
pub use feature_network::FeatureNetwork;
pub use features::Features;
pub use frechet::{Bootstrap, Conventions, FrechetDistance, frechet_distance_with_interval};
pub use mean::Mean;
pub use neighbours::{Nearest, Neighbour, PrecisionRecall, diversity, precision_recall};
pub use psnr::psnr;
pub use r_precision::{RPrecision, r_precision};
pub use reconstruction::{Reconstruction, ReconstructionMeter};
pub use report::{Asked, Evidence, Generation, PictureKind, Report, SplitReport};
pub use ssim::{PictureShape, ssim};
pub use sweep::{Axis, Figure, Row, Sweep};
