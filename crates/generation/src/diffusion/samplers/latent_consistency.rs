//! Latent consistency sampling: the network jumps to the picture at once; a few rounds of fresh noise and another jump make it better (2310.04378, algorithm 3).

use super::super::level::combine;
use super::super::{Level, Schedule};
use super::{Hands, steps};

/// Standard deviation of the data and the scale of the timestep in the boundary condition (2310.04378, appendix; `LCMScheduler`).
const SIGMA_DATA: f64 = 0.5;
const TIMESTEP_SCALE: f64 = 10.0;

pub fn sample<E>(levels: &[Level], start: Vec<f32>, hands: &mut Hands<E>) -> Result<Vec<f32>, E> {
    let mut x = start;
    let last = levels.len().saturating_sub(2);
    for (step, from, to) in steps(levels) {
        let clean = hands.clean(&x, &from)?;
        // The boundary condition, 2303.01469, equation 5: at timestep 0 the jump is no jump.
        let time = from.timestep * TIMESTEP_SCALE;
        let power = time.powi(2) + SIGMA_DATA.powi(2);
        let landed = combine([(time / power.sqrt(), &clean), (SIGMA_DATA.powi(2) / power, &x)]);
        x = if step == last { landed } else { to.noised(&landed, &(hands.noise)()) };
        hands.arrive(step, &to, &mut x, &clean);
    }
    Ok(x)
}

/// `steps` of the `distilled_steps` levels over which the network was distilled, evenly taken from the noisiest down.
pub(crate) fn levels(schedule: &Schedule, distilled_steps: usize, steps: usize) -> Vec<Level> {
    let gap = schedule.train_steps() / distilled_steps;
    (0..steps).map(|index| schedule.level((distilled_steps - index * distilled_steps / steps) * gap - 1)).collect()
}
