//! Ancestral sampling: each step draws from the posterior, with the predicted clean picture in place of the true one (DDPM, 2006.11239, algorithm 2).

use super::super::level::combine;
use super::super::posterior::learned_log_variance;
use super::super::{Level, Posterior, Variance};
use super::{Hands, Prediction, steps};

/// With fewer than the trained steps the betas are those of the longer steps (Improved DDPM, 2102.09672, equation 19).
pub fn sample<E>(levels: &[Level], start: Vec<f32>, variance: Variance, hands: &mut Hands<E>) -> Result<Vec<f32>, E> {
    let mut x = start;
    for (step, from, to) in steps(levels) {
        let Prediction { clean, variance: learned } = (hands.predict)(&x, &from)?;
        let posterior = Posterior::between(&from, &to);
        x = combine([(posterior.clean, &clean), (posterior.sample, &x)]);
        if to.sigma > 0.0 {
            let noise = (hands.noise)();
            match variance {
                Variance::FixedSmall => x = combine([(1.0, &x), (posterior.variance.sqrt(), &noise)]),
                Variance::FixedLarge => x = combine([(1.0, &x), (posterior.forward_variance.sqrt(), &noise)]),
                Variance::Learned => add_learned_noise(&mut x, &learned, &noise, &posterior),
            }
        }
        hands.arrive(step, &to, &mut x, &clean);
    }
    Ok(x)
}

fn add_learned_noise(x: &mut [f32], learned: &[f32], noise: &[f32], posterior: &Posterior) {
    for ((value, learned), noise) in x.iter_mut().zip(learned).zip(noise) {
        let log_variance = learned_log_variance(f64::from(*learned), posterior.variance, posterior.forward_variance);
        *value += ((0.5 * log_variance).exp() * f64::from(*noise)) as f32;
    }
}
