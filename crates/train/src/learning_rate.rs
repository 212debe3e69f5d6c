//! The learning rate of a step: linear warm-up, then constant, linear or cosine decay (Loshchilov and Hutter 2017, equation 5, without restarts).

use serde::{Deserialize, Serialize};

/// How the rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    Constant,
    Linear,
    Cosine,
}

/// `[schedule]` of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    pub decay: Decay,
    /// Steps over which the rate rises linearly to its peak; 0 starts at the peak.
    pub warm_up_steps: usize,
    /// The rate at the end, as a fraction of the peak, in [0, 1]. Ignored by `constant`.
    #[serde(default)]
    pub final_fraction: f64,
}

impl Schedule {
    /// The fraction of the peak rate at `step` (counted from 0) of `step_count`, in [0, 1].
    pub fn fraction(&self, step: usize, step_count: usize) -> f64 {
        if step < self.warm_up_steps {
            return (step + 1) as f64 / self.warm_up_steps as f64;
        }
        let decay_steps = step_count.saturating_sub(self.warm_up_steps).max(1);
        let progress = ((step - self.warm_up_steps) as f64 / decay_steps as f64).min(1.0);
        let height = match self.decay {
            Decay::Constant => return 1.0,
            Decay::Linear => 1.0 - progress,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.final_fraction + (1.0 - self.final_fraction) * height
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { decay, warm_up_steps: 10, final_fraction: 0.1 }
    }

    #[test]
    fn warm_up_rises_linearly_to_the_peak() {
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
            for step in 0..10 {
                assert_eq!(schedule(decay).fraction(step, 110), (step + 1) as f64 / 10.0);
            }
            assert_eq!(schedule(decay).fraction(10, 110), 1.0);
        }
    }

    #[test]
    fn ends_and_middle_have_their_closed_form() {
        for (decay, middle, end) in [(Decay::Constant, 1.0, 1.0), (Decay::Linear, 0.55, 0.1), (Decay::Cosine, 0.55, 0.1)] {
            assert!((schedule(decay).fraction(60, 110) - middle).abs() < 1e-12, "{decay:?}");
            assert!((schedule(decay).fraction(110, 110) - end).abs() < 1e-12, "{decay:?}");
            assert!((schedule(decay).fraction(500, 110) - end).abs() < 1e-12, "{decay:?}");
        }
        // Cosine at a quarter: 0.1 + 0.9 * (1 + cos(pi / 4)) / 2
        assert!((schedule(Decay::Cosine).fraction(35, 110) - 0.868198).abs() < 1e-6);
    }

    #[test]
    fn falls_monotonically_and_never_reaches_zero_before_the_end() {
        for decay in [Decay::Linear, Decay::Cosine] {
            let schedule = Schedule { decay, warm_up_steps: 0, final_fraction: 0.0 };
            let fractions: Vec<f64> = (0..100).map(|step| schedule.fraction(step, 100)).collect();
            assert!(fractions.windows(2).all(|pair| pair[1] < pair[0]), "{decay:?}");
            assert!(fractions[99] > 0.0 && fractions[0] == 1.0, "{decay:?}");
        }
    }
}
