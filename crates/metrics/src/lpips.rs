//! LPIPS of reconstructions (Zhang et al. 2018, 1801.03924), by the network of `models::perceptual`.

use burn::tensor::{Device, Tensor, TensorData};
use smalti_models::perceptual::lpips::Lpips;

use crate::{MetricsError, PictureShape};

/// Smallest side the network can take: four halvings.
const SIDE_LIMIT: usize = 16;

/// The distance of each reconstruction from its original. Both hold the same number of pictures in [-1, 1], [count, height, width, 3]; sides at least 16.
pub fn lpips(network: &Lpips, reconstructed: &[f32], originals: &[f32], shape: PictureShape, device: &Device) -> Result<Vec<f32>, MetricsError> {
    let PictureShape { height, width, channels } = shape;
    let size = height * width * channels;
    if channels != 3 || size == 0 || reconstructed.len() != originals.len() || !reconstructed.len().is_multiple_of(size) {
        let found = format!("{} and {} numbers", reconstructed.len(), originals.len());
        return Err(MetricsError::shape("LPIPS", format!("two sets of pictures of shape {shape:?}, with 3 channels"), found));
    }
    if height.min(width) < SIDE_LIMIT {
        return Err(MetricsError::TooFew { metric: "LPIPS", things: "rows and columns", expected: SIDE_LIMIT, found: height.min(width) });
    }
    let picture = |values: &[f32]| Tensor::<4>::from_data(TensorData::new(values.to_vec(), [1, height, width, 3]), device);
    // One at a time: VGG16's features of a picture are hundreds of times its size.
    let pairs = reconstructed.chunks_exact(size).zip(originals.chunks_exact(size)).enumerate();
    pairs
        .map(|(index, (reconstructed, original))| {
            let distance: f32 = network.distance(picture(reconstructed), picture(original)).into_scalar();
            if distance.is_finite() { Ok(distance) } else { Err(MetricsError::NotFinite { metric: "LPIPS", things: "picture", index }) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_models::perceptual::vgg;
    use smalti_nn::Initializer;

    #[test]
    fn equal_pictures_are_at_distance_zero_and_others_are_not() {
        let device = Device::flex();
        let network = Lpips::new(&vgg::Config { widths: [2, 2, 2, 2, 2] }, &mut Initializer::new(1, &device)).unwrap();
        let shape = PictureShape { height: 16, width: 16, channels: 3 };
        let originals: Vec<f32> = (0..2 * 768).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut changed = originals.clone();
        changed[768..].iter_mut().for_each(|value| *value *= -0.5);
        let distances = lpips(&network, &changed, &originals, shape, &device).unwrap();
        assert!(distances.len() == 2 && distances[0] == 0.0 && distances[1] > 0.0, "{distances:?}");
        assert!(lpips(&network, &originals[1..], &originals, shape, &device).is_err());
        assert!(lpips(&network, &[], &[], PictureShape { height: 8, width: 16, channels: 3 }, &device).is_err());
    }
}
