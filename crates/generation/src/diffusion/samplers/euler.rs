//! Euler's method on the probability flow d(x / alpha) / d(sigma / alpha) = noise (EDM, 2206.00364, equation 4).
//!
//! The slope is the remaining noise, so a step keeps it and changes the level: the same step as DDIM's with eta 0, and for a flow
//! x + (sigma_to - sigma_from) (noise - clean). What sets Euler apart is that it walks between the trained steps too.

use super::super::Level;
use super::{Hands, remaining_noise, steps};

pub fn sample<E>(levels: &[Level], start: Vec<f32>, hands: &mut Hands<E>) -> Result<Vec<f32>, E> {
    let mut x = start;
    for (step, from, to) in steps(levels) {
        let clean = hands.clean(&x, &from)?;
        x = to.noised(&clean, &remaining_noise(&from, &x, &clean));
        hands.arrive(step, &to, &mut x, &clean);
    }
    Ok(x)
}
