//! The program as people use it: flags in, files, text and exit status out.
//!
//! Snapshots in `help/` and `errors.txt` are rewritten by `SMALTI_UPDATE_SNAPSHOTS=1 cargo test --release --test cli`; review the difference.

mod bench; //       how fast this machine is
mod errors; //      exit status and message of everything that can be wrong
mod diffusion; //   bundles with a diffusion network
mod evaluate; //    figures of a bundle
mod generate; //    pictures, metadata, JSON, determinism
mod help; //        --help of every verb
mod import; //      others' checkpoints to bundles and weights
mod import_pipelines; // whole folders of diffusers to bundles that draw
mod inspect; //     bundles, weights, recipes, pictures
mod nearest; //     drawn pictures beside training pictures
mod pictures; //    reconstruct, rerank and sheet
mod program; //     how the program is run here
#[path = "../../../pipeline/tests/tiny_bundle/mod.rs"]
mod tiny_bundle;
#[path = "../../../pipeline/tests/tiny_diffusion/mod.rs"]
mod tiny_diffusion;
