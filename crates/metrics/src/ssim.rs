//! Structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity").

use crate::MetricsError;

/// Side of the window (section III.B).
const WINDOW_SIZE: usize = 11;
/// Standard deviation of the window in pixels (section III.B).
const WINDOW_DEVIATION: f64 = 1.5;
/// Constants that keep the quotient stable where a picture is flat (section III.B).
const K1: f64 = 0.01;
const K2: f64 = 0.03;

/// Height, width and channels of a picture whose numbers are in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureShape {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
}

/// Mean structural similarity of two pictures, 1 for equal ones: equation 13 with the weights of a Gaussian window, averaged over every place where the whole
/// 11 x 11 window lies within the picture, and over the channels.
///
/// `data_range` is the largest possible minus the smallest possible value: 2 for pictures in [-1, 1]. Both sides at least 11 pixels.
pub fn ssim(picture: &[f32], reference: &[f32], shape: PictureShape, data_range: f64) -> Result<f64, MetricsError> {
    let PictureShape { height, width, channels } = shape;
    let size = height * width * channels;
    if picture.len() != size || reference.len() != size || channels == 0 {
        return Err(MetricsError::shape("SSIM", format!("two pictures of shape {shape:?}"), format!("{} and {} numbers", picture.len(), reference.len())));
    }
    if height < WINDOW_SIZE || width < WINDOW_SIZE {
        return Err(MetricsError::TooFew { metric: "SSIM", things: "rows and columns", expected: WINDOW_SIZE, found: height.min(width) });
    }
    if let Some(index) = [picture, reference].iter().position(|values| values.iter().any(|value| !value.is_finite())) {
        return Err(MetricsError::NotFinite { metric: "SSIM", things: "picture", index });
    }
    let (c1, c2) = ((K1 * data_range).powi(2), (K2 * data_range).powi(2));
    let channel = |values: &[f32], channel: usize| values.iter().skip(channel).step_by(channels).map(|&value| f64::from(value)).collect::<Vec<f64>>();
    let of_channel = |index: usize| {
        let (x, y) = (channel(picture, index), channel(reference, index));
        let blur = |map: &dyn Fn(f64, f64) -> f64| blur(x.iter().zip(&y).map(|(&x, &y)| map(x, y)).collect(), height, width);
        let (mean_x, mean_y) = (blur(&|x, _| x), blur(&|_, y| y));
        let (square_x, square_y, product) = (blur(&|x, _| x * x), blur(&|_, y| y * y), blur(&|x, y| x * y));
        let similarity = |i: usize| {
            let (mu_x, mu_y) = (mean_x[i], mean_y[i]);
            let (variance_x, variance_y, covariance) = (square_x[i] - mu_x * mu_x, square_y[i] - mu_y * mu_y, product[i] - mu_x * mu_y);
            // Equation 13.
            ((2.0 * mu_x * mu_y + c1) * (2.0 * covariance + c2)) / ((mu_x * mu_x + mu_y * mu_y + c1) * (variance_x + variance_y + c2))
        };
        (0..mean_x.len()).map(similarity).sum::<f64>() / mean_x.len() as f64
    };
    Ok((0..channels).map(of_channel).sum::<f64>() / channels as f64)
}

/// Gaussian mean of every whole window: [height, width] -> [height - 10, width - 10]. The window is a product of two one-dimensional ones.
fn blur(values: Vec<f64>, height: usize, width: usize) -> Vec<f64> {
    let weights = window();
    let (rows, columns) = (height - WINDOW_SIZE + 1, width - WINDOW_SIZE + 1);
    let weighted = |place: &dyn Fn(usize) -> f64| weights.iter().enumerate().map(|(i, weight)| weight * place(i)).sum::<f64>();
    let along: Vec<f64> = (0..height * columns).map(|at| weighted(&|i| values[at / columns * width + at % columns + i])).collect(); // [height, columns]
    (0..rows * columns).map(|at| weighted(&|i| along[(at / columns + i) * columns + at % columns])).collect()
}

/// One-dimensional Gaussian weights that sum to 1.
fn window() -> [f64; WINDOW_SIZE] {
    let centre = (WINDOW_SIZE / 2) as f64;
    let weights: [f64; WINDOW_SIZE] = std::array::from_fn(|i| (-0.5 * ((i as f64 - centre) / WINDOW_DEVIATION).powi(2)).exp());
    let sum: f64 = weights.iter().sum();
    weights.map(|weight| weight / sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_testing::golden;

    #[test]
    fn agrees_with_scikit_image() {
        let golden = golden("src/goldens/pictures.safetensors");
        let [height, width, channels] = golden.shape("reference")[..] else { panic!("three axes") };
        let shape = PictureShape { height, width, channels };
        let reference = golden.values("reference");
        for name in ["noisy", "blurred", "darker", "inverted"] {
            let found = ssim(&golden.values(name), &reference, shape, 2.0).unwrap();
            let expected = f64::from(golden.values(&format!("{name}_ssim"))[0]);
            assert!((found - expected).abs() < 1e-5, "{name}: expected {expected}, found {found}");
            let found = crate::psnr(&golden.values(name), &reference, 2.0).unwrap();
            let expected = f64::from(golden.values(&format!("{name}_psnr"))[0]);
            assert!((found - expected).abs() < 1e-4, "{name}: expected {expected} dB, found {found} dB");
        }
        assert!((ssim(&reference, &reference, shape, 2.0).unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn flat_pictures_have_the_closed_form() {
        // No variance: SSIM = (2 a b + c1) / (a^2 + b^2 + c1).
        let shape = PictureShape { height: 12, width: 11, channels: 1 };
        let (a, b, c1) = (0.25, 0.75, 1e-4);
        let expected = (2.0 * a * b + c1) / (a * a + b * b + c1);
        let found = ssim(&[a as f32; 132], &[b as f32; 132], shape, 1.0).unwrap();
        assert!((found - expected).abs() < 1e-9, "expected {expected}, found {found}");
    }

    #[test]
    fn small_and_unequal_pictures_are_errors() {
        let shape = PictureShape { height: 10, width: 12, channels: 3 };
        assert_eq!(ssim(&[0.0; 360], &[0.0; 360], shape, 2.0).unwrap_err().to_string(), "SSIM: expected at least 11 rows and columns, found 10");
        assert!(ssim(&[0.0; 359], &[0.0; 360], shape, 2.0).is_err());
        let shape = PictureShape { height: 11, width: 11, channels: 1 };
        assert!(ssim(&[f32::NAN; 121], &[0.0; 121], shape, 2.0).is_err());
    }
}
