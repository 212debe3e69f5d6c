//! A mean with how far it can be trusted.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Over independent values, one for each picture or pair.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mean {
    pub value: f64,
    /// Sample standard deviation / sqrt(count); 0 for a single value, which says nothing about its spread.
    pub standard_error: f64,
    pub count: usize,
}

impl Mean {
    /// Nothing for no values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let value = values.iter().sum::<f64>() / count as f64;
        if count == 1 {
            return Some(Self { value, standard_error: 0.0, count });
        }
        let variance = values.iter().map(|one| (one - value).powi(2)).sum::<f64>() / (count - 1) as f64;
        Some(Self { value, standard_error: (variance / count as f64).sqrt(), count })
    }
}

impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:.4} ± {:.4}", self.value, self.standard_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_the_sample_deviation_over_the_root_of_the_count() {
        // Sample variance of 1, 0.6, -1 is (0.64 + 0.16 + 1.44) / 2 = 1.12.
        let mean = Mean::of(&[1.0, 0.6, -1.0]).unwrap();
        assert!((mean.value - 0.2).abs() < 1e-12 && (mean.standard_error - (1.12f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(Mean::of(&[2.0]), Some(Mean { value: 2.0, standard_error: 0.0, count: 1 }));
        assert_eq!(Mean::of(&[]), None);
        assert_eq!(mean.to_string(), "0.2000 ± 0.6110");
    }
}
