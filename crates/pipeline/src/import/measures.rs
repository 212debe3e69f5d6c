//! The networks that only measure.

use super::files::{checkpoint_files, fitted, not_this, one_checkpoint, read};
use crate::PipelineError;
use burn::module::Module;
use burn::tensor::Device;
use smalti_models::inception::{self, Inception};
use smalti_models::perceptual::lpips::Lpips;
use smalti_models::perceptual::{self, vgg};
use smalti_nn::Initializer;
use smalti_nn::weights::NamedTensors;
use std::path::Path;

/// The weights of LPIPS with VGG16, checked against the network: from one file, or from a folder with VGG16 and the learned heads in two.
pub fn lpips(path: &Path, device: &Device) -> Result<NamedTensors, PipelineError> {
    let mut tensors = NamedTensors::new();
    for file in checkpoint_files(path)? {
        tensors.extend(read(&file)?);
    }
    let network = Lpips::new(&vgg::Config::vgg16(), &mut Initializer::unread(device)).map_err(|error| not_this(path, error))?;
    checked(path, network, perceptual::import::lpips(tensors), device)
}

/// The weights of `pytorch-fid`'s Inception v3, checked against the network.
pub fn inception(path: &Path, device: &Device) -> Result<NamedTensors, PipelineError> {
    let tensors = read(&one_checkpoint(path)?)?;
    checked(path, Inception::new(&mut Initializer::unread(device)), inception::import::pytorch_fid(tensors), device)
}

/// The tensors, once they are known to fit.
fn checked<M: Module>(path: &Path, network: M, tensors: NamedTensors, device: &Device) -> Result<NamedTensors, PipelineError> {
    fitted(path, network, tensors.clone(), device)?;
    Ok(tensors)
}
