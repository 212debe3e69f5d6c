//! Rectified flow (2209.03003; flow matching, 2210.02747): straight lines x = (1 - sigma) clean + sigma noise, and a network that predicts noise - clean.

use super::{Level, SettingError};
use crate::random::fill_normal;
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The network is told sigma times this; at least 1. 1000 in Stable Diffusion 3 and Flux.
    pub train_steps: usize,
    /// Bends the levels towards noise (above 1) or away from it; above 0, and 1 leaves them even. See [`shift_for_side`].
    pub shift: f64,
}

impl Config {
    pub fn validate(&self) -> Result<(), SettingError> {
        SettingError::unless(self.train_steps >= 1, "train_steps", "at least 1", self.train_steps)?;
        SettingError::unless(self.shift > 0.0 && self.shift.is_finite(), "shift", "a number above 0", self.shift)
    }

    pub fn level(&self, sigma: f64) -> Level {
        Level { timestep: sigma * self.train_steps as f64, alpha: 1.0 - sigma, sigma }
    }

    /// From pure noise in `steps` even steps, shifted, to the clean picture.
    pub fn levels(&self, steps: usize) -> Vec<Level> {
        (0..=steps).rev().map(|index| self.level(shifted(index as f64 / steps as f64, self.shift))).collect()
    }
}

/// Stable Diffusion 3 (2403.03206), equation 23: sigma / (1 - sigma) is multiplied with `shift`. 0 and 1 stay.
pub fn shifted(sigma: f64, shift: f64) -> f64 {
    shift * sigma / (shift * sigma + (1.0 - sigma)) // so written that 1 stays 1 when rounded
}

/// The shift for pictures of `side` pixels when `base_side` needs none: sqrt(pixels / base pixels), equation 23 of 2403.03206.
pub fn shift_for_side(side: usize, base_side: usize) -> f64 {
    side as f64 / base_side as f64
}

/// A sigma to train at, in (0, 1): the logistic function of a normal number. 2403.03206, equation 19; the paper's choice is mean 0, standard deviation 1.
pub fn logit_normal(rng: &mut ChaCha12Rng, mean: f64, standard_deviation: f64) -> f64 {
    let mut normal = [0.0];
    fill_normal(rng, &mut normal);
    1.0 / (1.0 + (-(mean + standard_deviation * f64::from(normal[0]))).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::picture_rng;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_shift_keeps_the_ends_and_the_order_and_undoes(sigma in 0.0_f64..0.999, shift in 0.1_f64..10.0) {
            prop_assert_eq!((shifted(0.0, shift), shifted(1.0, shift)), (0.0, 1.0));
            prop_assert!(shifted(sigma, shift) < shifted(sigma + 0.001, shift));
            prop_assert!((shifted(shifted(sigma, shift), 1.0 / shift) - sigma).abs() < 1e-12);
        }

        #[test]
        fn levels_go_from_noise_to_picture(steps in 1_usize..100, shift in 0.1_f64..10.0) {
            let levels = Config { train_steps: 1000, shift }.levels(steps);
            prop_assert_eq!(levels.len(), steps + 1);
            prop_assert_eq!((levels[0].alpha, levels[0].timestep, levels[steps].sigma), (0.0, 1000.0, 0.0));
            prop_assert!(levels.is_sorted_by(|a, b| a.sigma > b.sigma));
        }
    }

    #[test]
    fn four_times_the_pixels_are_twice_the_shift() {
        assert_eq!(shift_for_side(512, 256), 2.0);
        assert_eq!(shifted(0.5, 3.0), 0.75);
    }

    #[test]
    fn logit_normal_is_centred() {
        let mut rng = picture_rng(1, 0);
        let draws: Vec<f64> = (0..10_000).map(|_| logit_normal(&mut rng, 0.0, 1.0)).collect();
        assert!(draws.iter().all(|sigma| *sigma > 0.0 && *sigma < 1.0));
        assert!((draws.iter().sum::<f64>() / 10_000.0 - 0.5).abs() < 4.0 * 0.21 / 100.0);
    }
}
