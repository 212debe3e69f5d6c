//! DPM-Solver++ of second order, multistep: the clean picture is taken to change linearly in lambda = ln(alpha / sigma), as it did over the last step
//! (2211.01095, algorithm 2).

use super::super::Level;
use super::super::level::combine;
use super::{Hands, steps};

pub fn sample<E>(levels: &[Level], start: Vec<f32>, hands: &mut Hands<E>) -> Result<Vec<f32>, E> {
    let mut x = start;
    let mut before: Option<(f64, Vec<f32>)> = None; // lambda and clean picture one step ago
    for (step, from, to) in steps(levels) {
        let clean = hands.clean(&x, &from)?;
        // Half a step further along; the first step knows no direction, and the last, on which lambda grows without bound, must not use it.
        let middle = match &before {
            Some((lambda, last)) if to.sigma > 0.0 => {
                let share = 0.5 * (to.lambda() - from.lambda()) / (from.lambda() - lambda);
                combine([(1.0 + share, &clean), (-share, last)])
            }
            _ => clean.clone(),
        };
        x = advance(&from, &to, &x, &middle);
        hands.arrive(step, &to, &mut x, &clean);
        before = Some((from.lambda(), clean));
    }
    Ok(x)
}

/// The exact step for a clean picture that does not change on the way (equation 9 of 2211.01095): sigma_to / sigma_from x - alpha_to (e^-h - 1) clean, in
/// which alpha_to e^-h is written so that it is finite at pure noise and at the clean picture.
pub(super) fn advance(from: &Level, to: &Level, x: &[f32], clean: &[f32]) -> Vec<f32> {
    combine([(to.sigma / from.sigma, x), (gain(from, to), clean)])
}

/// -alpha_to (e^-h - 1), with h = lambda_to - lambda_from.
pub(super) fn gain(from: &Level, to: &Level) -> f64 {
    to.alpha - to.sigma * from.alpha / from.sigma
}
