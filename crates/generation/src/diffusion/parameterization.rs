//! What a network predicts, and how to read a clean picture out of it.
//!
//! With x = alpha clean + sigma noise every published parameterization is a straight mixture of the sample and the output,
//! clean = a x + b output, with a and b of the level alone. So guidance, which mixes outputs of the same x, is the same in all of them.

use super::Level;
use super::level::combine;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parameterization {
    /// The noise, epsilon (DDPM).
    Noise,
    /// The clean picture, x_0 or "sample".
    Clean,
    /// alpha noise - sigma clean (Salimans and Ho, 2202.00512, appendix D).
    Velocity,
    /// EDM's mixture: clean = c_skip x + c_out output (2206.00364, equation 7), with the standard deviation of the data, above 0. Wants alpha = 1.
    Edm { sigma_data: f64 },
    /// noise - clean: the direction of a rectified flow.
    Flow,
}

impl Parameterization {
    /// (a, b) of clean = a x + b output. Not finite at pure noise for `Noise`: nothing can be read from it there.
    pub fn clean_coefficients(self, level: &Level) -> (f64, f64) {
        let Level { alpha, sigma, .. } = *level;
        match self {
            Self::Noise => (1.0 / alpha, -sigma / alpha),
            Self::Clean => (0.0, 1.0),
            Self::Velocity => {
                let power = alpha * alpha + sigma * sigma; // 1 when variance is preserved
                (alpha / power, -sigma / power)
            }
            Self::Edm { sigma_data } => {
                let power = sigma * sigma + sigma_data * sigma_data;
                (sigma_data * sigma_data / power, sigma * sigma_data / power.sqrt())
            }
            Self::Flow => (1.0 / (alpha + sigma), -sigma / (alpha + sigma)),
        }
    }

    /// The clean picture that an output stands for. Slices of the same length.
    pub fn clean(self, level: &Level, sample: &[f32], output: &[f32]) -> Vec<f32> {
        let (of_sample, of_output) = self.clean_coefficients(level);
        combine([(of_sample, sample), (of_output, output)])
    }

    /// The noise that an output stands for. Not finite at the clean picture, where there is none.
    pub fn noise(self, level: &Level, sample: &[f32], output: &[f32]) -> Vec<f32> {
        if self == Self::Noise {
            return output.to_vec();
        }
        let (of_sample, of_output) = self.clean_coefficients(level);
        combine([((1.0 - level.alpha * of_sample) / level.sigma, sample), (-level.alpha * of_output / level.sigma, output)])
    }

    /// The output that stands for a clean picture: [`Self::clean`] undone. Not finite where the output says nothing about it (at no noise, but for `Clean`).
    pub fn output(self, level: &Level, sample: &[f32], clean: &[f32]) -> Vec<f32> {
        let (of_sample, of_output) = self.clean_coefficients(level);
        combine([(-of_sample / of_output, sample), (1.0 / of_output, clean)])
    }

    /// What a network must say of x = alpha clean + sigma noise: the target of training. Finite at every level, but for EDM at no noise.
    pub fn target(self, level: &Level, clean: &[f32], noise: &[f32]) -> Vec<f32> {
        let Level { alpha, sigma, .. } = *level;
        match self {
            Self::Noise => noise.to_vec(),
            Self::Clean => clean.to_vec(),
            Self::Velocity => combine([(alpha, noise), (-sigma, clean)]),
            Self::Flow => combine([(1.0, noise), (-1.0, clean)]),
            Self::Edm { .. } => self.output(level, &level.noised(clean, noise), clean),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn any_parameterization() -> impl Strategy<Value = Parameterization> {
        use Parameterization::*;
        prop_oneof![Just(Noise), Just(Clean), Just(Velocity), Just(Flow), (0.2_f64..2.0).prop_map(|sigma_data| Edm { sigma_data })]
    }

    fn level(angle: f64, parameterization: Parameterization) -> Level {
        let (alpha, sigma) = match parameterization {
            Parameterization::Edm { .. } => (1.0, angle.tan()),
            Parameterization::Flow => (1.0 - angle / 1.6, angle / 1.6),
            _ => (angle.cos(), angle.sin()),
        };
        Level { timestep: 0.0, alpha, sigma }
    }

    fn near(found: &[f32], expected: &[f32]) -> bool {
        found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 2e-4 * (1.0 + expected.abs()))
    }

    proptest! {
        /// A perfect network gives back the clean picture and the noise that made the sample, and any output survives the way to a clean picture and back.
        #[test]
        fn conversions_invert(
            parameterization in any_parameterization(), angle in 0.1_f64..1.4,
            clean in prop::collection::vec(-1.0_f32..1.0, 5), noise in prop::collection::vec(-3.0_f32..3.0, 5),
        ) {
            let level = level(angle, parameterization);
            let sample = level.noised(&clean, &noise);
            let output = parameterization.target(&level, &clean, &noise);
            prop_assert!(near(&parameterization.clean(&level, &sample, &output), &clean));
            prop_assert!(near(&parameterization.noise(&level, &sample, &output), &noise));
            prop_assert!(near(&parameterization.output(&level, &sample, &clean), &output));
        }
    }

    /// Pure noise has no clean picture in it, but a network that predicts velocity can still name one.
    #[test]
    fn at_pure_noise_velocity_is_minus_the_clean_picture() {
        let level = Level { timestep: 999.0, alpha: 0.0, sigma: 1.0 };
        assert_eq!(Parameterization::Velocity.clean(&level, &[0.7, -2.0], &[-0.25, 0.5]), [0.25, -0.5]);
        assert_eq!(Parameterization::Flow.clean(&level, &[0.5, -2.0], &[0.25, 0.5]), [0.25, -2.5]);
        assert!(!Parameterization::Noise.clean_coefficients(&level).0.is_finite());
    }
}
