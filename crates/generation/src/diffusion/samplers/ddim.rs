//! DDIM: the predicted clean picture and the noise that remains are mixed anew at the next level (2010.02502, equation 12).

use super::super::level::combine;
use super::super::{Level, Posterior};
use super::{Hands, remaining_noise, steps};

/// `eta` times the posterior's standard deviation (equation 16) of the noise is fresh.
pub fn sample<E>(levels: &[Level], start: Vec<f32>, eta: f64, hands: &mut Hands<E>) -> Result<Vec<f32>, E> {
    let mut x = start;
    for (step, from, to) in steps(levels) {
        let clean = hands.clean(&x, &from)?;
        let noise = remaining_noise(&from, &x, &clean);
        let fresh = eta * Posterior::between(&from, &to).variance.sqrt();
        let kept = (to.sigma.powi(2) - fresh.powi(2)).max(0.0).sqrt();
        x = combine([(to.alpha, &clean), (kept, &noise)]);
        if fresh > 0.0 {
            x = combine([(1.0, &x), (fresh, &(hands.noise)())]);
        }
        hands.arrive(step, &to, &mut x, &clean);
    }
    Ok(x)
}
