//! Peak signal-to-noise ratio: the mean squared error on a logarithmic scale.

use crate::MetricsError;

/// PSNR = 10 log10(data_range^2 / MSE) in dB, over all numbers of two pictures; infinite for equal pictures.
///
/// `data_range` is the largest possible minus the smallest possible value: 2 for pictures in [-1, 1]. (Huynh-Thu and Ghanbari 2008; scikit-image
/// `peak_signal_noise_ratio` is the same formula.)
pub fn psnr(picture: &[f32], reference: &[f32], data_range: f64) -> Result<f64, MetricsError> {
    if picture.len() != reference.len() || picture.is_empty() {
        return Err(MetricsError::shape("PSNR", format!("{} numbers, at least one", reference.len()), picture.len().to_string()));
    }
    let square = |(&a, &b): (&f32, &f32)| (f64::from(a) - f64::from(b)).powi(2);
    let mean_squared_error = picture.iter().zip(reference).map(square).sum::<f64>() / picture.len() as f64;
    if !mean_squared_error.is_finite() {
        return Err(MetricsError::NotFinite { metric: "PSNR", things: "picture", index: 0 });
    }
    Ok(10.0 * (data_range.powi(2) / mean_squared_error).log10())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_errors_have_known_decibels() {
        // Every value off by a tenth of the range: 10 log10(1 / 0.01) = 20 dB.
        assert!((psnr(&[-0.8, 0.2, 0.8], &[-1.0, 0.0, 1.0], 2.0).unwrap() - 20.0).abs() < 1e-5);
        // MSE = (0.4^2 + 0) / 2 = 0.08 of range 1: 10 log10(12.5) = 10.969 dB.
        assert!((psnr(&[0.4, 0.0], &[0.0, 0.0], 1.0).unwrap() - 10.969_100).abs() < 1e-5);
        assert_eq!(psnr(&[0.5], &[0.5], 2.0).unwrap(), f64::INFINITY);
    }

    #[test]
    fn unequal_sizes_and_nan_are_errors() {
        assert_eq!(psnr(&[0.0], &[0.0, 1.0], 2.0).unwrap_err().to_string(), "PSNR: expected 2 numbers, at least one, found 1");
        assert!(psnr(&[], &[], 2.0).is_err());
        assert!(psnr(&[f32::NAN], &[0.0], 2.0).is_err());
    }
}
