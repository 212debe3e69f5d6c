//! The posterior of the forward process, q(x_s | x_t, clean) with s before t: where a reverse step lands when the clean picture is known.
//!
//! For neighbouring steps of a variance-preserving schedule these are equations 6 and 7 of DDPM; in the general form, for any two levels of any process, they
//! are those of Kingma et al. (2107.00630, appendix A.2).

use super::Level;
use serde::{Deserialize, Serialize};

/// The variance of a reverse step (DDPM, section 3.2; Improved DDPM, 2102.09672, equation 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// That of the posterior, beta-tilde: right when the data is a single picture.
    FixedSmall,
    /// That of the forward step, beta: right when the data is unit normal.
    FixedLarge,
    /// The network says, per value, where between the two it lies; its output is twice as long.
    Learned,
}

/// A normal distribution with the mean `clean * clean picture + sample * x_t`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Posterior {
    /// Coefficient of the clean picture.
    pub clean: f64,
    /// Coefficient of the sample x_t.
    pub sample: f64,
    /// beta-tilde: 0 where s is the clean picture.
    pub variance: f64,
    /// beta: variance of the forward step x_s -> x_t.
    pub forward_variance: f64,
}

impl Posterior {
    /// `from` is x_t, `to` is x_s, less noisy. `from.sigma` must be above 0.
    pub fn between(from: &Level, to: &Level) -> Self {
        let ratio = from.alpha / to.alpha;
        let forward_variance = (from.sigma.powi(2) - (ratio * to.sigma).powi(2)).max(0.0);
        let noisy = from.sigma.powi(2);
        Self {
            clean: to.alpha * forward_variance / noisy,
            sample: ratio * to.sigma.powi(2) / noisy,
            variance: forward_variance * to.sigma.powi(2) / noisy,
            forward_variance,
        }
    }
}

/// Equation 15 of 2102.09672: `output` in [-1, 1] runs from ln `smallest` (beta-tilde) to ln `largest` (beta). Returns the logarithm of the variance.
pub fn learned_log_variance(output: f64, smallest: f64, largest: f64) -> f64 {
    let fraction = (output + 1.0) / 2.0;
    fraction * largest.ln() + (1.0 - fraction) * smallest.ln()
}

#[cfg(test)]
mod tests {
    use super::super::{Schedule, ScheduleConfig, flow};
    use super::*;

    /// DDPM, equations 6 and 7, from the betas.
    #[test]
    fn neighbours_are_the_equations_of_ddpm() {
        let schedule = Schedule::new(ScheduleConfig::ddpm()).unwrap();
        for step in [1, 2, 300, 999] {
            let (beta, alpha_bar, before) = (schedule.betas()[step], schedule.alpha_bars()[step], schedule.alpha_bars()[step - 1]);
            let found = Posterior::between(&schedule.level(step), &schedule.level(step - 1));
            let expected = Posterior {
                clean: before.sqrt() * beta / (1.0 - alpha_bar),
                sample: (1.0 - beta).sqrt() * (1.0 - before) / (1.0 - alpha_bar),
                variance: (1.0 - before) / (1.0 - alpha_bar) * beta,
                forward_variance: beta,
            };
            let parts = |posterior: Posterior| [posterior.clean, posterior.sample, posterior.variance, posterior.forward_variance];
            for (found, expected) in parts(found).into_iter().zip(parts(expected)) {
                assert!((found / expected - 1.0).abs() < 1e-9, "step {step}: {found}, {expected}");
            }
        }
    }

    /// Noising to x_t and drawing x_s from the posterior is noising to x_s: the means and variances add up, at any two levels of any process.
    #[test]
    fn the_posterior_undoes_the_forward_process() {
        let schedule = Schedule::new(ScheduleConfig { zero_terminal_snr: true, ..ScheduleConfig::cosine() }).unwrap();
        let straight = flow::Config { train_steps: 1000, shift: 1.0 };
        let pairs = [
            (schedule.level(999), schedule.level(500)),
            (schedule.level(700), schedule.level(20)),
            (schedule.level(3), schedule.clean()),
            (straight.level(1.0), straight.level(0.4)),
        ];
        for (from, to) in pairs {
            let posterior = Posterior::between(&from, &to);
            assert!((posterior.clean + posterior.sample * from.alpha - to.alpha).abs() < 1e-12);
            assert!((posterior.variance + (posterior.sample * from.sigma).powi(2) - to.sigma.powi(2)).abs() < 1e-12);
        }
    }

    #[test]
    fn the_last_step_lands_on_the_clean_picture() {
        let schedule = Schedule::new(ScheduleConfig::ddpm()).unwrap();
        let posterior = Posterior::between(&schedule.level(0), &schedule.clean());
        assert!((posterior.clean - 1.0).abs() < 1e-12 && posterior.sample == 0.0 && posterior.variance == 0.0);
    }

    #[test]
    fn a_learned_variance_lies_between_the_fixed_ones() {
        assert!((learned_log_variance(-1.0, 0.1, 0.4).exp() - 0.1).abs() < 1e-12);
        assert!((learned_log_variance(1.0, 0.1, 0.4).exp() - 0.4).abs() < 1e-12);
        assert!((learned_log_variance(0.0, 0.1, 0.4).exp() - 0.2).abs() < 1e-12); // the geometric mean
    }
}
