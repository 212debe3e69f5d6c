//! Euler with fresh noise: down the probability flow to below the next level, then up to it with noise (k-diffusion, `sample_euler_ancestral`).

use super::super::Level;
use super::super::level::combine;
use super::{Hands, remaining_noise, steps};

pub fn sample<E>(levels: &[Level], start: Vec<f32>, hands: &mut Hands<E>) -> Result<Vec<f32>, E> {
    let mut x = start;
    for (step, from, to) in steps(levels) {
        let clean = hands.clean(&x, &from)?;
        let noise = remaining_noise(&from, &x, &clean);
        // In sigma / alpha: up^2 = to^2 (from^2 - to^2) / from^2, and down^2 = to^2 - up^2.
        let share = to.noise_to_signal() / from.noise_to_signal();
        let (up, down) = (to.sigma * (1.0 - share.powi(2)).max(0.0).sqrt(), to.sigma * share);
        x = combine([(to.alpha, &clean), (down, &noise)]);
        if up > 0.0 {
            x = combine([(1.0, &x), (up, &(hands.noise)())]);
        }
        hands.arrive(step, &to, &mut x, &clean);
    }
    Ok(x)
}
