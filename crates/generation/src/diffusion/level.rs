//! One level of noise: x = alpha * clean + sigma * noise, with unit normal noise.
//!
//! This is the closed form of the forward process q(x_t | x_0): alpha = sqrt(alpha-bar_t), sigma = sqrt(1 - alpha-bar_t) in DDPM (equation 4); alpha = 1 in
//! EDM; alpha = 1 - sigma in rectified flow.

/// A level of noise. `alpha` and `sigma` are at least 0 and not both 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// What the network is told: an index into the trained steps, fractional between two of them; ln(sigma) / 4 in EDM; 1000 sigma in flow.
    pub timestep: f64,
    /// Scale of the clean picture.
    pub alpha: f64,
    /// Scale of the noise.
    pub sigma: f64,
}

impl Level {
    /// sigma / alpha: the noise level of EDM. Infinite for pure noise.
    pub fn noise_to_signal(&self) -> f64 {
        self.sigma / self.alpha
    }

    /// (alpha / sigma)^2. Infinite for the clean picture, 0 for pure noise.
    pub fn signal_to_noise(&self) -> f64 {
        (self.alpha / self.sigma).powi(2)
    }

    /// ln(alpha / sigma), half the logarithm of the signal-to-noise ratio: the clock of the DPM-Solvers.
    pub fn lambda(&self) -> f64 {
        (self.alpha / self.sigma).ln()
    }

    /// The forward process in one jump: alpha * clean + sigma * noise. Both slices have the same length.
    pub fn noised(&self, clean: &[f32], noise: &[f32]) -> Vec<f32> {
        combine([(self.alpha, clean), (self.sigma, noise)])
    }
}

/// The sum of slices of one length, each times its coefficient; in double precision, rounded once. A term whose coefficient is 0 is left out, so that
/// 1 * a + 0 * b is a, bit for bit, whatever b holds.
pub(crate) fn combine<const N: usize>(terms: [(f64, &[f32]); N]) -> Vec<f32> {
    let length = terms[0].1.len();
    assert!(terms.iter().all(|(_, values)| values.len() == length), "combine: lengths {:?}", terms.map(|(_, values)| values.len()));
    let sum_at = |index: usize| {
        let terms = terms.iter().filter(|(coefficient, _)| *coefficient != 0.0);
        terms.map(|(coefficient, values)| coefficient * f64::from(values[index])).sum::<f64>() as f32
    };
    (0..length).map(sum_at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_exact() {
        let (clean, noise) = ([0.3_f32, -1.1e-30, 7.0], [2.5_f32, f32::INFINITY, -0.1]);
        assert_eq!(Level { timestep: 0.0, alpha: 1.0, sigma: 0.0 }.noised(&clean, &noise), clean);
        assert_eq!(Level { timestep: 0.0, alpha: 0.0, sigma: 1.0 }.noised(&clean, &noise), noise);
        assert_eq!(Level { timestep: 0.0, alpha: 0.5, sigma: 2.0 }.noised(&[1.0, 2.0], &[3.0, -1.0]), [6.5, -1.0]);
    }
}
