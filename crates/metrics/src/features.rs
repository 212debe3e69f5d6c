//! Vectors that stand for pictures or captions, one per row.

use crate::MetricsError;

/// A matrix [count, channels] of finite numbers on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    channels: usize,
    values: Vec<f32>,
}

impl Features {
    /// `values` in row-major order. Refuses a ragged end, no channels at all and numbers that are not finite.
    pub fn new(channels: usize, values: Vec<f32>) -> Result<Self, MetricsError> {
        if channels == 0 || !values.len().is_multiple_of(channels) {
            return Err(MetricsError::shape("features", format!("whole rows of {channels} channels"), format!("{} numbers", values.len())));
        }
        if let Some(place) = values.iter().position(|value| !value.is_finite()) {
            return Err(MetricsError::NotFinite { metric: "features", things: "row", index: place / channels });
        }
        Ok(Self { channels, values })
    }

    pub fn count(&self) -> usize {
        self.values.len() / self.channels
    }

    pub fn channels(&self) -> usize {
        self.channels
    }

    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.channels..(index + 1) * self.channels]
    }

    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.channels)
    }

    /// The named rows, in the order given; a row may be named more than once. Every index is below `count`.
    pub fn select(&self, indices: &[usize]) -> Self {
        Self { channels: self.channels, values: indices.iter().flat_map(|&index| self.row(index)).copied().collect() }
    }
}

/// Cosine of the angle between two vectors, in f64; 0 when either has no length.
pub(crate) fn cosine(left: &[f32], right: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let lengths = (dot(left, left) * dot(right, right)).sqrt();
    if lengths > 0.0 { dot(left, right) / lengths } else { 0.0 }
}

/// Row i of both belongs together.
pub(crate) fn check_paired(metric: &'static str, left: &Features, right: &Features) -> Result<(), MetricsError> {
    if left.count() != right.count() || left.channels() != right.channels() {
        let shape = |features: &Features| format!("[{}, {}]", features.count(), features.channels());
        return Err(MetricsError::shape(metric, format!("two matrices of shape {}", shape(left)), format!("{} beside it", shape(right))));
    }
    if left.count() == 0 {
        return Err(MetricsError::TooFew { metric, things: "rows", expected: 1, found: 0 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_whole_and_finite() {
        let features = Features::new(2, vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((features.count(), features.row(1)), (2, [3.0, 4.0].as_slice()));
        assert_eq!(features.select(&[1, 1, 0]), Features::new(2, vec![3.0, 4.0, 3.0, 4.0, 1.0, 2.0]).unwrap());
        assert_eq!(Features::new(2, vec![1.0; 3]).unwrap_err().to_string(), "features: expected whole rows of 2 channels, found 3 numbers");
        assert_eq!(Features::new(1, vec![1.0, f32::NAN]).unwrap_err().to_string(), "features: row 1 holds a number that is not finite");
    }

    #[test]
    fn cosine_ignores_length() {
        assert!((cosine(&[3.0, 4.0], &[6.0, 8.0]) - 1.0).abs() < 1e-12);
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]) - 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 1.0]), 0.0);
    }
}
