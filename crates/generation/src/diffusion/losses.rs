//! What training minimises: weights of the squared error of a network's output, and the variational bound.
//!
//! All weights here are numbers of one level, to be multiplied with the mean squared error of the output against [`Parameterization::target`]. As
//! clean = a x + b output, the squared error of the clean picture is b^2 times that of the output, which turns one paper's weights into another's.
//! Weight 1 is L_simple of the parameterization (DDPM, 2006.11239, equation 14, for noise).

use super::discretized_normal::log_probability;
use super::posterior::learned_log_variance;
use super::samplers::Prediction;
use super::{Level, Parameterization, Posterior, Schedule, Variance};
use crate::random::{fill_normal, unit};
use rand_chacha::ChaCha12Rng;
use std::f64::consts::LN_2;

/// Weight of the variational bound, in bits, beside L_simple when variances are learned (Improved DDPM, 2102.09672, equation 16). The mean is not to learn from
/// that term: its gradient is stopped.
pub const HYBRID_WEIGHT: f64 = 0.001;

/// gamma of the min-SNR weight (2303.09556, section 3.4).
pub const MIN_SNR_GAMMA: f64 = 5.0;

/// A trained step to train at, uniform.
pub fn training_step(rng: &mut ChaCha12Rng, schedule: &Schedule) -> usize {
    (unit(rng) * schedule.train_steps() as f64) as usize
}

/// Min-SNR (2303.09556, equation 6): the clean picture's error weighs min(SNR, gamma). For noise that is min(SNR, gamma) / SNR, for velocity
/// min(SNR, gamma) / (SNR + 1). `gamma` is above 0.
pub fn min_snr_weight(parameterization: Parameterization, level: &Level, gamma: f64) -> f64 {
    let ratio = level.signal_to_noise();
    match parameterization {
        Parameterization::Noise => (gamma / ratio).min(1.0), // so written that pure noise has a weight
        _ => ratio.min(gamma) * parameterization.clean_coefficients(level).1.powi(2),
    }
}

/// The MSE on means, 1 / (2 variance) |mean - predicted mean|^2 (DDPM, equation 8), per value and in nats; for noise it is equation 12. `variance` is that of
/// the reverse step. Not finite for noise at pure noise.
pub fn mean_weight(parameterization: Parameterization, from: &Level, to: &Level, variance: f64) -> f64 {
    let of_clean = Posterior::between(from, to).clean;
    (of_clean * parameterization.clean_coefficients(from).1).powi(2) / (2.0 * variance)
}

/// ln of the smallest and the largest variance of the reverse step from a trained step to the one before (Improved DDPM, equation 15).
///
/// At step 0, where the smallest would be 0, it is that of step 1, as in the code of DDPM.
pub fn log_variance_bounds(schedule: &Schedule, step: usize) -> (f64, f64) {
    let posterior = |step: usize| Posterior::between(&schedule.level(step), &schedule.level_at(step as f64 - 1.0));
    (posterior(step.max(1)).variance.ln(), posterior(step).forward_variance.ln())
}

/// The variational bound on -log2 of the probability of a picture, divided by its count of numbers, with each of its terms (DDPM, equation 5). Bits per
/// dimension.
#[derive(Clone, Debug, PartialEq)]
pub struct VariationalBound {
    /// L_T: what the last level still tells of the picture.
    pub prior: f64,
    /// L_{t-1} of the trained steps 1, 2, ...
    pub steps: Vec<f64>,
    /// L_0: the decoder, at the trained step 0.
    pub decoder: f64,
}

impl VariationalBound {
    pub fn total(&self) -> f64 {
        self.prior + self.steps.iter().sum::<f64>() + self.decoder
    }
}

/// Estimates the bound of one picture, not empty, whose numbers are bytes scaled to [-1, 1], with one draw of noise for each trained step. `judge` is the
/// network: sample and level to clean picture, which may be thresholded, and with [`Variance::Learned`] the variance.
pub fn variational_bound<E>(
    schedule: &Schedule,
    variance: Variance,
    picture: &[f32],
    rng: &mut ChaCha12Rng,
    mut judge: impl FnMut(&[f32], &Level) -> Result<Prediction, E>,
) -> Result<VariationalBound, E> {
    let mut noise = vec![0.0; picture.len()];
    let mut terms = Vec::with_capacity(schedule.train_steps());
    for step in 0..schedule.train_steps() {
        fill_normal(rng, &mut noise);
        let level = schedule.level(step);
        let sample = level.noised(picture, &noise);
        let prediction = judge(&sample, &level)?;
        terms.push(step_bits(schedule, step, variance, picture, &sample, &prediction));
    }
    let decoder = terms.remove(0);
    Ok(VariationalBound { prior: prior_bits(&schedule.level(schedule.train_steps() - 1), picture), steps: terms, decoder })
}

/// L_T of one picture: KL(q(x_T | clean) || unit normal), in bits per dimension.
pub fn prior_bits(last: &Level, picture: &[f32]) -> f64 {
    bits_per_dimension(picture.iter().map(|clean| normal_divergence(last.alpha * f64::from(*clean), 2.0 * last.sigma.ln(), 0.0, 0.0)))
}

/// L_{t-1} of one picture at a trained step: KL(q(x_{t-1} | x_t, clean) || p(x_{t-1} | x_t)), and at step 0 L_0 = -log2 p(clean | x_0). In bits per
/// dimension.
pub fn step_bits(schedule: &Schedule, step: usize, variance: Variance, picture: &[f32], sample: &[f32], prediction: &Prediction) -> f64 {
    let posterior = Posterior::between(&schedule.level(step), &schedule.level_at(step as f64 - 1.0));
    let (smallest, largest) = log_variance_bounds(schedule, step);
    let log_variance = |index: usize| match variance {
        Variance::FixedSmall => smallest,
        Variance::FixedLarge if step == 0 => smallest, // as in the code of DDPM
        Variance::FixedLarge => largest,
        Variance::Learned => learned_log_variance(f64::from(prediction.variance[index]), smallest.exp(), largest.exp()),
    };
    let mean = |clean: f32, index: usize| posterior.clean * f64::from(clean) + posterior.sample * f64::from(sample[index]);
    bits_per_dimension(picture.iter().zip(&prediction.clean).enumerate().map(|(index, (clean, predicted))| {
        let predicted = mean(*predicted, index);
        match step {
            0 => -log_probability(f64::from(*clean), predicted, log_variance(index)),
            _ => normal_divergence(mean(*clean, index), posterior.variance.ln(), predicted, log_variance(index)),
        }
    }))
}

/// KL(N(mean, variance) || N(other mean, other variance)) in nats, from the logarithms of the variances.
pub fn normal_divergence(mean: f64, log_variance: f64, other_mean: f64, other_log_variance: f64) -> f64 {
    0.5 * (other_log_variance - log_variance - 1.0 + (log_variance - other_log_variance).exp() + (mean - other_mean).powi(2) * (-other_log_variance).exp())
}

fn bits_per_dimension(nats: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = nats.len() as f64;
    nats.sum::<f64>() / count / LN_2
}

#[cfg(test)]
mod tests {
    use super::super::ScheduleConfig;
    use super::*;
    use crate::random::picture_rng;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn ddpm() -> Schedule {
        Schedule::new(ScheduleConfig::ddpm()).unwrap()
    }

    fn near(found: f64, expected: f64) -> bool {
        (found - expected).abs() <= 1e-9 * (1.0 + expected.abs())
    }

    proptest! {
        /// 2303.09556, section 3.4, each parameterization in the paper's own words.
        #[test]
        fn min_snr_is_the_papers(step in 0_usize..1000, gamma in 0.5_f64..20.0) {
            let level = ddpm().level(step);
            let (ratio, weight) = (level.signal_to_noise(), |parameterization| min_snr_weight(parameterization, &level, gamma));
            prop_assert!(near(weight(Parameterization::Noise), ratio.min(gamma) / ratio));
            prop_assert!(near(weight(Parameterization::Clean), ratio.min(gamma)));
            prop_assert!(near(weight(Parameterization::Velocity), ratio.min(gamma) / (ratio + 1.0)));
        }

        /// DDPM, equation 12.
        #[test]
        fn the_weight_of_the_mean_is_equation_12(step in 1_usize..1000) {
            let schedule = ddpm();
            let (beta, alpha_bar) = (schedule.betas()[step], schedule.alpha_bars()[step]);
            let expected = beta * beta / (2.0 * beta * (1.0 - beta) * (1.0 - alpha_bar)); // variance beta
            let found = mean_weight(Parameterization::Noise, &schedule.level(step), &schedule.level(step - 1), beta);
            prop_assert!((found / expected - 1.0).abs() < 1e-8, "{found}, {expected}");
        }

        /// With the small variance a term of the bound is the weighted squared error of the output, whatever it predicts.
        #[test]
        fn a_term_is_the_weighted_error(step in 1_usize..1000, clean in -1.0_f32..1.0, noise in -2.0_f32..2.0, output in -1.0_f32..1.0) {
            let schedule = ddpm();
            let (from, to) = (schedule.level(step), schedule.level(step - 1));
            let sample = from.noised(&[clean], &[noise]);
            for parameterization in [Parameterization::Clean, Parameterization::Velocity, Parameterization::Flow] {
                let prediction = Prediction { clean: parameterization.clean(&from, &sample, &[output]), variance: vec![] };
                let target = parameterization.target(&from, &[clean], &[noise])[0];
                let weight = mean_weight(parameterization, &from, &to, Posterior::between(&from, &to).variance);
                let expected = weight * f64::from(output - target).powi(2) / LN_2;
                let found = step_bits(&schedule, step, Variance::FixedSmall, &[clean], &sample, &prediction);
                prop_assert!((found - expected).abs() < 1e-3 * expected + 1e-4, "{parameterization:?}: {found}, {expected}");
            }
        }

        #[test]
        fn divergences_are_never_negative(mean in -3.0_f64..3.0, log_variance in -9.0_f64..3.0, other in -3.0_f64..3.0, other_log_variance in -9.0_f64..3.0) {
            prop_assert!(normal_divergence(mean, log_variance, other, other_log_variance) >= 0.0);
            prop_assert!(normal_divergence(mean, log_variance, mean, log_variance) == 0.0);
        }
    }

    /// Pure noise has a weight: the limit.
    #[test]
    fn min_snr_at_pure_noise() {
        let level = Level { timestep: 999.0, alpha: 0.0, sigma: 1.0 };
        assert_eq!(min_snr_weight(Parameterization::Noise, &level, 5.0), 1.0);
        assert_eq!(min_snr_weight(Parameterization::Velocity, &level, 5.0), 0.0);
    }

    /// KL of N(1, 4) from N(-1, 9): ln(3/2) + (4 + 4) / 18 - 1/2.
    #[test]
    fn the_divergence_of_two_normals() {
        assert!(near(normal_divergence(1.0, 4.0_f64.ln(), -1.0, 9.0_f64.ln()), 1.5_f64.ln() + 8.0 / 18.0 - 0.5));
    }

    fn bound(variance: Variance, judge: impl FnMut(&[f32], &Level) -> Result<Prediction, Infallible>) -> VariationalBound {
        variational_bound(&ddpm(), variance, &picture(), &mut picture_rng(1, 1), judge).unwrap()
    }

    fn picture() -> Vec<f32> {
        (0..32).map(|index| (index * 8) as f32 / 127.5 - 1.0).collect()
    }

    /// A network that knows the picture: no term of the walk costs anything, the prior is that of DDPM's schedule, the decoder knows the byte.
    #[test]
    fn a_perfect_network_costs_nothing() {
        let found = bound(Variance::FixedSmall, |_, _| Ok(Prediction { clean: picture(), variance: vec![] }));
        assert_eq!(found.steps.len(), 999);
        assert!(found.steps.iter().all(|bits| bits.abs() < 1e-9));
        assert!(found.prior > 0.0 && found.prior < 1e-4, "{}", found.prior); // DDPM, section 4: about 1e-5 bits per dimension
        // The decoder's deviation is 0.0074 (the root of beta-tilde at step 1), half a bin 0.0039: 1.3 bits for each byte but the first, whose bin is half open.
        assert!(found.decoder > 1.2 && found.decoder < 1.35, "{}", found.decoder);
        assert!(near(found.total(), found.prior + found.steps.iter().sum::<f64>() + found.decoder));
    }

    /// The two ends of a learned variance are the fixed ones; a network that knows the picture pays for a variance that is too large.
    #[test]
    fn learned_variances_run_between_the_fixed_ones() {
        let learned = |output: f32| bound(Variance::Learned, |_, _| Ok(Prediction { clean: picture(), variance: vec![output; 32] }));
        let fixed = |variance| bound(variance, |_, _| Ok(Prediction { clean: picture(), variance: vec![] }));
        assert!((learned(-1.0).total() - fixed(Variance::FixedSmall).total()).abs() < 1e-6);
        let largest: f64 = learned(1.0).steps.iter().sum();
        assert!((largest - fixed(Variance::FixedLarge).steps.iter().sum::<f64>()).abs() < 1e-6);
        assert!(largest > learned(0.0).steps.iter().sum::<f64>());
    }

    /// Normal data: the best network is linear, the reverse steps are normal too, and with their right variances the bound is the entropy, up to the rounding to
    /// bytes.
    #[test]
    fn the_bound_of_a_normal_distribution_is_its_entropy() {
        let deviation = 0.25_f64; // of the data, so that hardly any is cut off at 1
        let mut rng = picture_rng(9, 0);
        let mut picture = vec![0.0; 4000];
        fill_normal(&mut rng, &mut picture);
        for value in &mut picture {
            *value = ((f64::from(*value) * deviation * 127.5 + 127.5).round().clamp(0.0, 255.0) / 127.5 - 1.0) as f32;
        }
        let schedule = ddpm();
        let best = |sample: &[f32], level: &Level| {
            let gain = level.alpha * deviation.powi(2) / ((level.alpha * deviation).powi(2) + level.sigma.powi(2));
            // The right variance of each step adds what is not known of the clean picture.
            let unknown = deviation.powi(2) * (1.0 - gain * level.alpha);
            let posterior = Posterior::between(level, &schedule.level_at(level.timestep - 1.0));
            let right = (posterior.variance + posterior.clean.powi(2) * unknown).ln();
            let (smallest, largest) = log_variance_bounds(&schedule, level.timestep as usize);
            let output = (2.0 * (right - smallest) / (largest - smallest) - 1.0) as f32;
            let clean = sample.iter().map(|x| (gain * f64::from(*x)) as f32).collect();
            Ok::<_, Infallible>(Prediction { clean, variance: vec![output; sample.len()] })
        };
        let found = variational_bound(&schedule, Variance::Learned, &picture, &mut rng, best).unwrap().total();
        let entropy = 0.5 * (2.0 * std::f64::consts::PI * std::f64::consts::E * deviation.powi(2)).log2() + 127.5_f64.log2();
        assert!(found > entropy - 0.03 && found < entropy + 0.06, "{found} bits per dimension, entropy {entropy}");
    }
}
