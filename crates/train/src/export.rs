//! The bundle that a training leaves.

use crate::TrainError;
use smalti_nn::weights::WeightsError;
use smalti_nn::weights::safetensors::Storage;
use smalti_pipeline::{Bundle, Part, PipelineError};
use std::path::Path;

/// Saves in half precision. A part with a weight beyond its range is stored in full: no training may end without its bundle.
pub fn save(bundle: &Bundle, folder: &Path) -> Result<(), TrainError> {
    let mut whole: Vec<Part> = Vec::new();
    loop {
        match bundle.save_parts(folder, &|part| if whole.contains(&part) { Storage::F32 } else { Storage::F16 }) {
            Err(PipelineError::Weights { part, source: WeightsError::Range { tensor, value, .. } }) if !whole.contains(&part) => {
                crate::say!("warning: {part}: {value} in {tensor} is beyond half precision, so this part is stored in f32");
                whole.push(part);
            }
            saved => return Ok(saved.map(drop)?),
        }
    }
}
