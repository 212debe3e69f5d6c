//! Thresholding of the predicted clean picture, which strong guidance drives out of [-1, 1] (Imagen, 2205.11487, section 2.3).

use super::SettingError;
use serde::{Deserialize, Serialize};

/// What happens at each step to a predicted clean picture. Its range must be [-1, 1]: latents are not thresholded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Threshold {
    None,
    /// Clip to [-1, 1].
    Static,
    /// With s the percentile of the absolute values of one picture, over all its pixels and channels: where s > 1, clip to [-s, s] and divide by s.
    Dynamic {
        /// In (0, 1]. The paper names none; `diffusers` has 0.995, imagen-pytorch 0.95.
        percentile: f64,
        /// s is at most this; at least 1. `None` is the paper. (`diffusers` caps it at 1 by default, which makes dynamic thresholding static.)
        cap: Option<f64>,
    },
}

impl Threshold {
    /// Live, and not capped.
    pub fn dynamic(percentile: f64) -> Self {
        Self::Dynamic { percentile, cap: None }
    }

    pub fn validate(self) -> Result<(), SettingError> {
        let Self::Dynamic { percentile, cap } = self else { return Ok(()) };
        SettingError::unless(percentile > 0.0 && percentile <= 1.0, "threshold.percentile", "a number above 0 and at most 1", percentile)?;
        let cap = cap.unwrap_or(1.0);
        SettingError::unless(cap >= 1.0, "threshold.cap", "a number of at least 1", cap)
    }

    /// Thresholds one picture.
    pub fn apply(self, picture: &mut [f32]) {
        let bound = match self {
            Self::None => return,
            Self::Static => 1.0,
            Self::Dynamic { percentile, cap } => absolute_percentile(picture, percentile).max(1.0).min(cap.unwrap_or(f64::INFINITY)),
        } as f32;
        for value in picture {
            *value = value.clamp(-bound, bound) / bound;
        }
    }
}

/// The value below which a share of the absolute values lies, interpolated between the two nearest. 0 for no values.
fn absolute_percentile(values: &[f32], percentile: f64) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let mut sizes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    let place = percentile * (sizes.len() - 1) as f64;
    let (_, low, above) = sizes.select_nth_unstable_by(place as usize, f32::total_cmp);
    let low = f64::from(*low);
    let high = above.iter().copied().min_by(f32::total_cmp).map_or(low, f64::from);
    low + place.fract() * (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn applied(threshold: Threshold, mut picture: Vec<f32>) -> Vec<f32> {
        threshold.apply(&mut picture);
        picture
    }

    /// A picture whose percentile is 2 comes out halved; clipping at 1 is what a cap of 1 does (the default of `diffusers`).
    #[test]
    fn dynamic_thresholding_is_live() {
        let picture: Vec<f32> = (0..201).map(|index| (index as f32 / 100.0 - 1.0) * 2.0).collect(); // from -2 to 2; percentile 1 is 2
        let halved: Vec<f32> = picture.iter().map(|value| value / 2.0).collect();
        assert_eq!(applied(Threshold::dynamic(1.0), picture.clone()), halved);
        let capped = Threshold::Dynamic { percentile: 1.0, cap: Some(1.0) };
        assert_eq!(applied(capped, picture.clone()), applied(Threshold::Static, picture.clone()));
        assert_ne!(applied(Threshold::Static, picture.clone()), halved);
    }

    /// Of absolute values, negative ones too, and interpolated as `torch.quantile` does.
    #[test]
    fn the_percentile_is_of_absolute_values() {
        assert_eq!(absolute_percentile(&[-4.0, 1.0, 2.0, -3.0, 0.0], 0.5), 2.0);
        assert!((absolute_percentile(&[-4.0, 1.0, 2.0, -3.0, 0.0], 0.9) - 3.6).abs() < 1e-12);
        assert_eq!(absolute_percentile(&[-4.0, 1.0], 1.0), 4.0);
        assert_eq!(applied(Threshold::dynamic(0.75), vec![-4.0, -3.0, 2.0, 1.0, 0.0]), [-1.0, -1.0, 2.0 / 3.0, 1.0 / 3.0, 0.0]);
    }

    proptest! {
        #[test]
        fn pictures_within_the_range_stay(picture in prop::collection::vec(-1.0_f32..=1.0, 0..50), percentile in 0.01_f64..=1.0) {
            for threshold in [Threshold::None, Threshold::Static, Threshold::dynamic(percentile)] {
                prop_assert_eq!(&applied(threshold, picture.clone()), &picture);
            }
        }

        #[test]
        fn the_result_is_within_the_range(picture in prop::collection::vec(-9.0_f32..9.0, 1..50), percentile in 0.01_f64..=1.0) {
            for threshold in [Threshold::Static, Threshold::dynamic(percentile), Threshold::Dynamic { percentile, cap: Some(1.5) }] {
                prop_assert!(applied(threshold, picture.clone()).iter().all(|value| value.abs() <= 1.0));
            }
        }
    }

    /// Nobody agrees on the percentile, so it is never a silent default, and a wrong one is named.
    #[test]
    fn wrong_settings_are_named() {
        let check = |threshold: Threshold, expected: &str| assert_eq!(threshold.validate().unwrap_err().to_string(), expected);
        check(Threshold::dynamic(0.0), "threshold.percentile: expected a number above 0 and at most 1, found 0");
        check(Threshold::dynamic(99.5), "threshold.percentile: expected a number above 0 and at most 1, found 99.5");
        check(Threshold::Dynamic { percentile: 0.9, cap: Some(0.5) }, "threshold.cap: expected a number of at least 1, found 0.5");
        assert_eq!(Threshold::dynamic(1.0).validate(), Ok(()));
    }
}
