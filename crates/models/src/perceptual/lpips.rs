//! LPIPS: a perceptual distance of two pictures (Zhang et al. 2018, 1801.03924, equation 1).
//!
//! Both pictures go through VGG16; at each of five stages the features are brought to unit length over channels, subtracted, squared, weighted per channel
//! by learned heads, averaged over the picture, and summed over the stages. Verified against `lpips` 0.1.4 (version 0.1, net "vgg") with the same weights.

use super::vgg::{self, Vgg16};
use crate::ConfigError;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use smalti_nn::Initializer;

/// From pictures in [-1, 1] to the normalisation of VGG16's training data: (x - SHIFT) / SCALE (lpips `ScalingLayer`: ImageNet's mean and deviation,
/// 2 * mean - 1 and 2 * deviation).
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];

/// Added to lengths before dividing (lpips `normalize_tensor`).
const EPSILON: f32 = 1e-10;

#[derive(Module, Debug)]
pub struct Lpips {
    vgg: Vgg16,
    /// for each stage [channels]: how much each channel counts
    heads: Vec<Param<Tensor<1>>>,
}

impl Lpips {
    /// Random features and heads that count every channel alike; load published weights over it. An impossible config is an error.
    pub fn new(config: &vgg::Config, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        config.validate()?;
        let heads = config.widths.iter().map(|&width| initializer.constant([width], 1.0 / width as f32)).collect();
        Ok(Self { vgg: Vgg16::new(config, initializer), heads })
    }

    /// x and y [batch, height, width, 3] in [-1, 1], sides at least 16 -> [batch], 0 for equal pictures. Call `no_grad()` on the module once when it
    /// serves as a loss, so that no gradient is computed for its weights.
    pub fn distance(&self, x: Tensor<4>, y: Tensor<4>) -> Tensor<1> {
        assert!(x.dims() == y.dims(), "lpips: x {:?} does not fit y {:?}", x.dims(), y.dims());
        let [batch, height, width, _] = x.dims();
        assert!(height >= 16 && width >= 16, "lpips: x {:?} is smaller than 16 pixels", x.dims());
        let (x, y) = (self.vgg.forward(normalised(x)), self.vgg.forward(normalised(y)));
        let stages = x.into_iter().zip(y).zip(&self.heads).map(|((x, y), head)| {
            let difference = unit_length(x) - unit_length(y); // [batch, height, width, channels]
            let weighted = difference.powi_scalar(2) * head.val().reshape([1, 1, 1, -1]);
            weighted.sum_dim(3).mean_dims(&[1, 2]).reshape([batch])
        });
        stages.reduce(|sum, stage| sum + stage).expect("there are five stages")
    }
}

fn normalised(x: Tensor<4>) -> Tensor<4> {
    let channels = |values: [f32; 3], device: &Device| Tensor::<4>::from_data(TensorData::new(values.to_vec(), [1, 1, 1, 3]), device);
    let device = x.device();
    (x - channels(SHIFT, &device)) / channels(SCALE, &device)
}

fn unit_length(features: Tensor<4>) -> Tensor<4> {
    // EPSILON^2 under the root is lost in every length that matters, and keeps the gradient finite where all channels are zero.
    let length = (features.clone().powi_scalar(2).sum_dim(3) + EPSILON * EPSILON).sqrt();
    features / (length + EPSILON)
}
