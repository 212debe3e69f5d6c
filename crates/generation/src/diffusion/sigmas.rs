//! Variance-exploding noise as in EDM (Karras et al., 2206.00364): x = clean + sigma * noise; noise levels, training levels and loss weight of table 1.

use super::{Level, SettingError};
use crate::random::fill_normal;
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The last noise level before the clean picture, above 0.
    pub sigma_min: f64,
    /// The first noise level; above `sigma_min`.
    pub sigma_max: f64,
    /// Above 0: how strongly the steps crowd at low noise. 1 spaces them evenly.
    pub rho: f64,
    /// The standard deviation of the data, above 0.
    pub sigma_data: f64,
}

impl Config {
    /// EDM, table 1.
    pub fn edm() -> Self {
        Self { sigma_min: 0.002, sigma_max: 80.0, rho: 7.0, sigma_data: 0.5 }
    }

    pub fn validate(&self) -> Result<(), SettingError> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        SettingError::unless(positive(self.sigma_min), "sigma_min", "a number above 0", self.sigma_min)?;
        SettingError::unless(self.sigma_max > self.sigma_min && self.sigma_max.is_finite(), "sigma_max", "a number above sigma_min", self.sigma_max)?;
        SettingError::unless(positive(self.rho), "rho", "a number above 0", self.rho)?;
        SettingError::unless(positive(self.sigma_data), "sigma_data", "a number above 0", self.sigma_data)
    }

    /// The levels of `steps` steps and the clean picture after them.
    pub fn levels(&self, steps: usize) -> Vec<Level> {
        karras(self.sigma_min, self.sigma_max, self.rho, steps).into_iter().chain([0.0]).map(level).collect()
    }

    /// What the network's input is multiplied with, c_in of table 1.
    pub fn input_scale(&self, sigma: f64) -> f64 {
        1.0 / (sigma.powi(2) + self.sigma_data.powi(2)).sqrt()
    }

    /// The weight of the squared error of the clean picture, lambda of table 1: with it the network's own output has weight 1 at every level.
    pub fn clean_weight(&self, sigma: f64) -> f64 {
        (sigma.powi(2) + self.sigma_data.powi(2)) / (sigma * self.sigma_data).powi(2)
    }
}

/// A noise level as the network is told it: c_noise = ln(sigma) / 4.
pub fn level(sigma: f64) -> Level {
    Level { timestep: sigma.ln() / 4.0, alpha: 1.0, sigma }
}

/// `count` noise levels from `sigma_max` down to `sigma_min` (EDM, equation 5).
pub fn karras(sigma_min: f64, sigma_max: f64, rho: f64, count: usize) -> Vec<f64> {
    let (low, high) = (sigma_min.powf(1.0 / rho), sigma_max.powf(1.0 / rho));
    let last = count.saturating_sub(1).max(1) as f64;
    (0..count).map(|index| (high + index as f64 / last * (low - high)).powf(rho)).collect()
}

/// A noise level to train at: ln(sigma) is normal. EDM, table 1: mean -1.2, standard deviation 1.2.
pub fn training_sigma(rng: &mut ChaCha12Rng, mean: f64, standard_deviation: f64) -> f64 {
    let mut normal = [0.0];
    fill_normal(rng, &mut normal);
    (mean + standard_deviation * f64::from(normal[0])).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::picture_rng;

    #[test]
    fn karras_goes_from_end_to_end() {
        let levels = Config::edm().levels(18);
        let sigmas: Vec<f64> = levels.iter().map(|level| level.sigma).collect();
        assert!((sigmas[0] - 80.0).abs() < 1e-9 && (sigmas[17] - 0.002).abs() < 1e-9 && sigmas[18] == 0.0);
        assert!(sigmas.is_sorted_by(|a, b| a > b));
        assert_eq!(karras(1.0, 3.0, 1.0, 3), [3.0, 2.0, 1.0]); // rho 1 is even
        assert_eq!(karras(1.0, 3.0, 1.0, 1), [3.0]);
    }

    /// EDM, appendix B.6: c_in makes the input, and lambda c_out^2 the loss, of unit variance.
    #[test]
    fn preconditioning_keeps_unit_variance() {
        let config = Config::edm();
        for sigma in [0.002, 0.5, 80.0] {
            let input_variance = config.input_scale(sigma).powi(2) * (config.sigma_data.powi(2) + sigma * sigma);
            assert!((input_variance - 1.0).abs() < 1e-12);
            let (_, output) = super::super::Parameterization::Edm { sigma_data: 0.5 }.clean_coefficients(&level(sigma));
            assert!((config.clean_weight(sigma) * output * output - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn training_levels_are_log_normal() {
        let mut rng = picture_rng(1, 0);
        let logarithms: Vec<f64> = (0..10_000).map(|_| training_sigma(&mut rng, -1.2, 1.2).ln()).collect();
        let mean = logarithms.iter().sum::<f64>() / 10_000.0;
        assert!((mean + 1.2).abs() < 4.0 * 1.2 / 100.0, "{mean}");
    }

    #[test]
    fn wrong_settings_are_named() {
        let config = Config { sigma_max: 0.001, ..Config::edm() };
        assert_eq!(config.validate().unwrap_err().to_string(), "sigma_max: expected a number above sigma_min, found 0.001");
        assert_eq!(Config { rho: 0.0, ..Config::edm() }.validate().unwrap_err().key, "rho");
    }
}
