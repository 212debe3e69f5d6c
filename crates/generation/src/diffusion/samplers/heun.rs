//! Heun's method on the probability flow: Euler to the next level, then the mean of the slopes at both ends (EDM, 2206.00364, algorithm 1 without churn).

use super::super::Level;
use super::super::level::combine;
use super::{Hands, steps};

/// The coordinates in which the slope is taken: a straight line in one is none in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// x / alpha over sigma / alpha, as EDM and k-diffusion do.
    NoiseToSignal,
    /// x over sigma, for flows: alpha = 1 - sigma.
    Noise,
}

impl Clock {
    /// (time, scale of the sample). In both coordinates the slope is (x - clean) / time.
    fn read(self, level: &Level) -> (f64, f64) {
        match self {
            Self::NoiseToSignal => (level.noise_to_signal(), 1.0 / level.alpha),
            Self::Noise => (level.sigma, 1.0),
        }
    }
}

/// From here on there is no picture in a sample that could bend its path. Cosine schedules end at 20,000 and come down to 10 in the first of 16 steps, and there
/// the mean of two slopes, whose times lie so far apart, would multiply the smallest difference of two predictions by a thousand. Published noise levels end at 1,348
/// (NCSN++, 2011.13456) and below.
const ALL_BUT_PURE_NOISE: f64 = 5000.0;

pub fn sample<E>(levels: &[Level], start: Vec<f32>, clock: Clock, hands: &mut Hands<E>) -> Result<Vec<f32>, E> {
    let mut x = start;
    for (step, from, to) in steps(levels) {
        let clean = hands.clean(&x, &from)?;
        let mut next = to.noised(&clean, &super::remaining_noise(&from, &x, &clean)); // Euler
        let ((from_time, from_scale), (to_time, to_scale)) = (clock.read(&from), clock.read(&to));
        // The last level has no slope, and pure noise is infinitely, or almost so, far away on the clock of EDM: there Euler's step stands.
        if to.sigma > 0.0 && from_time < ALL_BUT_PURE_NOISE {
            let slope = combine([(from_scale / from_time, &x), (-1.0 / from_time, &clean)]);
            (hands.hold)(&mut next, &to);
            let clean = hands.clean(&next, &to)?;
            let next_slope = combine([(to_scale / to_time, &next), (-1.0 / to_time, &clean)]);
            let half = (to_time - from_time) / 2.0;
            next = combine([(from_scale / to_scale, &x), (half / to_scale, &slope), (half / to_scale, &next_slope)]);
        }
        x = next;
        hands.arrive(step, &to, &mut x, &clean);
    }
    Ok(x)
}
