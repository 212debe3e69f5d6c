//! The size of latents on data, measured, never copied from another model (Rombach et al. 2022, section D.1: the published 0.18215 is the
//! measurement of one model and wrong for every other).

use burn::tensor::Tensor;

/// Collects latents batch by batch, then gives the factor 1 / standard deviation over all elements.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LatentScale {
    count: u64,
    mean: f64,
    /// sum of squared distances from the mean
    spread: f64,
}

impl LatentScale {
    /// latents [batch, height, width, channels] of real pictures. The order of batches changes the result by rounding only.
    pub fn add(&mut self, latents: Tensor<4>) {
        // Chan, Golub and LeVeque (1983): means and spreads of two samples merge without loss of digits.
        let values: Vec<f32> = latents.into_data().iter::<f32>().collect();
        if values.is_empty() {
            return;
        }
        let count = values.len() as u64;
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count as f64;
        let spread = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>();
        let total = (self.count + count) as f64;
        let difference = mean - self.mean;
        self.spread += spread + difference * difference * (self.count as f64 * count as f64) / total;
        self.mean += difference * count as f64 / total;
        self.count += count;
    }

    /// 1 / standard deviation, or nothing when no latents were added or all are equal.
    pub fn factor(&self) -> Option<f32> {
        let factor = (self.count as f64 / self.spread).sqrt();
        (self.count > 0 && factor.is_finite()).then_some(factor as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    fn latents(values: Vec<f32>) -> Tensor<4> {
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count, 1, 1, 1]), &Device::flex())
    }

    #[test]
    fn batches_together_equal_one_batch() {
        let values: Vec<f32> = (0..600).map(|i| 30.0 + (i as f32 * 0.37).sin() * 2.5).collect();
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 600.0;
        let deviation = (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / 600.0).sqrt();
        let mut scale = LatentScale::default();
        for part in values.chunks(70) {
            scale.add(latents(part.to_vec()));
        }
        let factor = f64::from(scale.factor().unwrap());
        assert!((factor * deviation - 1.0).abs() < 1e-6, "expected 1 / {deviation}, found {factor}");
    }

    #[test]
    fn no_factor_without_spread() {
        let mut scale = LatentScale::default();
        assert_eq!(scale.factor(), None);
        scale.add(latents(vec![2.0; 8]));
        assert_eq!(scale.factor(), None);
    }
}
