//! How well an image tokenizer gives pictures back.

use crate::{Mean, MetricsError, PictureShape, psnr, ssim};
use serde::{Deserialize, Serialize};

/// Largest minus smallest value of a picture in [-1, 1].
const DATA_RANGE: f64 = 2.0;

/// Means over pictures of the figures of each picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reconstruction {
    /// Decibels; pictures that came back without any error (infinite PSNR) are not in the mean. None when all did.
    pub psnr: Option<Mean>,
    pub ssim: Mean,
    /// None where no LPIPS weights were given, or not for every picture.
    pub lpips: Option<Mean>,
}

/// Takes reconstructions one by one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReconstructionMeter {
    psnr: Vec<f64>,
    ssim: Vec<f64>,
    lpips: Vec<f64>,
}

impl ReconstructionMeter {
    /// `reconstructed` and `original` in [-1, 1], [height, width, channels]; both sides at least 11 pixels.
    pub fn add(&mut self, reconstructed: &[f32], original: &[f32], shape: PictureShape) -> Result<(), MetricsError> {
        let (psnr, ssim) = (psnr(reconstructed, original, DATA_RANGE)?, ssim(reconstructed, original, shape, DATA_RANGE)?);
        self.psnr.push(psnr);
        self.ssim.push(ssim);
        Ok(())
    }

    /// LPIPS of further pictures, from [`crate::lpips::lpips`].
    pub fn add_lpips(&mut self, distances: &[f32]) {
        self.lpips.extend(distances.iter().map(|&distance| f64::from(distance)));
    }

    /// An error before any picture was added.
    pub fn finish(&self) -> Result<Reconstruction, MetricsError> {
        let ssim = Mean::of(&self.ssim).ok_or(MetricsError::TooFew { metric: "reconstruction", things: "pictures", expected: 1, found: 0 })?;
        let finite: Vec<f64> = self.psnr.iter().copied().filter(|value| value.is_finite()).collect();
        let lpips = if self.lpips.len() == self.ssim.len() { Mean::of(&self.lpips) } else { None };
        Ok(Reconstruction { psnr: Mean::of(&finite), ssim, lpips })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_run_over_pictures() {
        let shape = PictureShape { height: 11, width: 11, channels: 1 };
        let mut meter = ReconstructionMeter::default();
        assert!(meter.finish().is_err());
        for error in [0.2f32, 0.02, 0.0] {
            meter.add(&[error; 121], &[0.0; 121], shape).unwrap();
        }
        meter.add_lpips(&[0.1, 0.2, 0.0]);
        let result = meter.finish().unwrap();
        let psnr = result.psnr.unwrap();
        assert!((psnr.value - 30.0).abs() < 1e-5 && psnr.count == 2, "20 dB and 40 dB; the perfect one is left out");
        assert_eq!(result.ssim.count, 3);
        assert!((result.lpips.unwrap().value - 0.1).abs() < 1e-6);
        meter.add(&[0.0; 121], &[0.0; 121], shape).unwrap();
        assert_eq!(meter.finish().unwrap().lpips, None, "a mean over other pictures than the rest would mislead");
    }
}
