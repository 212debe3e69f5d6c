//! Resizing with filters that widen when shrinking, so that every source pixel counts (no aliasing), as in Pillow.
//!
//! Separable: first along rows, then along columns; each output value is a weighted mean of the source values under the filter,
//! weights normalised to sum 1. Sums run in a fixed order in f32, so the result is the same on every run. Differs from Pillow only in
//! that nothing is rounded between the two passes.

use serde::{Deserialize, Serialize};

use crate::Picture;

/// Which weights. Lanczos is the sharpest; area gives exact means when shrinking by whole numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// sinc(x) sinc(x/3), support 3 (Duchon 1979).
    #[default]
    Lanczos,
    /// Keys 1981 with a = -0.5, support 2.
    Bicubic,
    /// Triangle, support 1.
    Bilinear,
    /// Box, support 1/2: the mean of the pixels covered.
    Area,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bicubic => 2.0,
            Self::Bilinear => 1.0,
            Self::Area => 0.5,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let distance = x.abs();
        match self {
            Self::Lanczos if distance < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Self::Bicubic if distance < 2.0 => ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0,
            Self::Bilinear if distance < 1.0 => 1.0 - distance,
            // Half open, so that a pixel on the border of two boxes counts in one.
            Self::Area if x > -0.5 && x <= 0.5 => 1.0,
            _ => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (std::f64::consts::PI * x).sin() / (std::f64::consts::PI * x) }
}

/// The whole picture to `width` x `height` (each at least 1).
pub fn resize(picture: &Picture, width: usize, height: usize, filter: Filter) -> Picture {
    if (picture.width, picture.height) == (width, height) {
        return picture.clone();
    }
    let columns = taps(picture.width, width, filter);
    let rows = taps(picture.height, height, filter);

    let mut narrowed = vec![0f32; picture.height * width * 3];
    for (source, target) in picture.rgb.chunks_exact(picture.width * 3).zip(narrowed.chunks_exact_mut(width * 3)) {
        for (tap, pixel) in columns.iter().zip(target.chunks_exact_mut(3)) {
            for (weight, colour) in tap.weights.iter().zip(source[tap.first * 3..].chunks_exact(3)) {
                for channel in 0..3 {
                    pixel[channel] += weight * colour[channel] as f32;
                }
            }
        }
    }

    // Lanczos and bicubic overshoot at edges. Pillow, through which most published models saw their pictures, cuts that off here too.
    narrowed.iter_mut().for_each(|value| *value = value.clamp(0.0, 255.0));

    let mut rgb = Vec::with_capacity(height * width * 3);
    let mut line = vec![0f32; width * 3];
    for tap in &rows {
        line.fill(0.0);
        for (weight, source) in tap.weights.iter().zip(narrowed[tap.first * width * 3..].chunks_exact(width * 3)) {
            for (sum, value) in line.iter_mut().zip(source) {
                *sum += weight * value;
            }
        }
        rgb.extend(line.iter().map(|value| value.round() as u8));
    }
    Picture { width, height, rgb }
}

/// The source pixels under the filter of one output pixel, and their weights.
struct Tap {
    first: usize,
    weights: Vec<f32>,
}

fn taps(source_size: usize, target_size: usize, filter: Filter) -> Vec<Tap> {
    let scale = source_size as f64 / target_size as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    (0..target_size)
        .map(|target| {
            let centre = (target as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(source_size);
            let weights: Vec<f64> = (first..end).map(|source| filter.weight((source as f64 - centre + 0.5) / stretch)).collect();
            let sum: f64 = weights.iter().sum();
            Tap { first, weights: weights.iter().map(|weight| (weight / sum) as f32).collect() }
        })
        .collect()
}

#[cfg(test)]
mod tests;
