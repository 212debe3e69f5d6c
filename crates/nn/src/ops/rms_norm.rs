//! Root-mean-square normalisation (Zhang and Sennrich 2019, 1910.07467) over the last axis: layer normalisation without mean and bias.
//!
//! y = scale * x / sqrt(mean(x^2) + epsilon). Composed of burn primitives on every backend.

use burn::tensor::Tensor;

/// x [..., channels], scale [channels] -> the shape of x.
pub fn rms_norm<const D: usize>(x: Tensor<D>, scale: Tensor<1>, epsilon: f32) -> Tensor<D> {
    let channels = x.dims()[D - 1];
    assert!(scale.dims() == [channels], "rms_norm: x {:?} does not fit scale {:?}", x.dims(), scale.dims());
    let mean_square = (x.clone() * x.clone()).mean_dim(D - 1); // [..., 1]
    x / (mean_square + epsilon).sqrt() * scale.unsqueeze()
}
