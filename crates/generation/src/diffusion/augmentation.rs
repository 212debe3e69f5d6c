//! Noise-conditioning augmentation of cascades: a super-resolution network is shown a low-resolution picture drowned in noise, and told how deep, so that it
//! forgives the faults of the stage below (cascaded diffusion, 2106.15282, section 4; Imagen, 2205.11487, section 2.4).

use super::{Level, Schedule, SettingError};
use crate::random::unit;
use rand_chacha::ChaCha12Rng;

/// An augmentation is in [0, 1]: 0 leaves the picture alone, 1 is the last level of the schedule. (The network is told the timestep of that [`level`].)
pub fn validate(augmentation: f64) -> Result<(), SettingError> {
    SettingError::unless((0.0..=1.0).contains(&augmentation), "noise_augmentation", "a number from 0 to 1", augmentation)
}

/// The level of noise that an augmentation in [0, 1] stands for: that share of the schedule's steps.
pub fn level(schedule: &Schedule, augmentation: f64) -> Level {
    schedule.level_at(augmentation * schedule.train_steps() as f64 - 1.0)
}

/// The low-resolution picture as the network sees it. `noise` is unit normal, as long as `picture`. At 0 the result is `picture`, bit for bit.
pub fn augmented(schedule: &Schedule, picture: &[f32], noise: &[f32], augmentation: f64) -> Vec<f32> {
    level(schedule, augmentation).noised(picture, noise)
}

/// An augmentation to train with: uniform in [0, 1), one for each picture of a batch (Imagen, section 2.4).
pub fn training_augmentation(rng: &mut ChaCha12Rng) -> f64 {
    unit(rng)
}

#[cfg(test)]
mod tests {
    use super::super::ScheduleConfig;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn more_is_noisier(augmentation in 0.0_f64..0.99, zero_terminal_snr in any::<bool>()) {
            let schedule = Schedule::new(ScheduleConfig { zero_terminal_snr, ..ScheduleConfig::cosine() }).unwrap();
            let [less, more] = [augmentation, augmentation + 0.01].map(|augmentation| level(&schedule, augmentation));
            prop_assert!(less.sigma < more.sigma && less.alpha > more.alpha);
        }
    }

    #[test]
    fn the_ends_are_the_picture_and_the_last_level() {
        let schedule = Schedule::new(ScheduleConfig::cosine()).unwrap();
        assert_eq!(augmented(&schedule, &[0.3, -0.7], &[5.0, f32::INFINITY], 0.0), [0.3, -0.7]);
        assert_eq!(level(&schedule, 1.0), schedule.level(999));
        assert_eq!(level(&schedule, 0.3), schedule.level(299));
        assert_eq!(validate(1.5).unwrap_err().to_string(), "noise_augmentation: expected a number from 0 to 1, found 1.5");
    }
}
