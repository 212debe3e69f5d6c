//! UniPC of second order on the clean picture, with B(h) = e^h - 1 (2302.04867, algorithms 5 and 6): the predictor is that of DPM-Solver++ 2M; when the network is
//! asked at the next level, its answer first corrects the step that led there.

use super::super::Level;
use super::super::level::combine;
use super::dpm_solver_pp_2m::{advance, gain};
use super::{Hands, steps};

/// What the network saw at a level.
struct Sight {
    level: Level,
    clean: Vec<f32>,
}

/// A step that waits for its correction.
struct Taken {
    sample: Vec<f32>,
    sight: Sight,
    before: Option<Sight>,
}

pub fn sample<E>(levels: &[Level], start: Vec<f32>, hands: &mut Hands<E>) -> Result<Vec<f32>, E> {
    let mut x = start;
    let mut taken: Option<Taken> = None;
    for (step, from, to) in steps(levels) {
        let sight = Sight { level: from, clean: hands.clean(&x, &from)? };
        if let Some(taken) = &taken {
            x = corrected(taken, &sight);
            (hands.hold)(&mut x, &from);
        }
        // Of no use before the last step, and where pure noise lies infinitely far back.
        let before = taken.map(|taken| taken.sight).filter(|before| to.sigma > 0.0 && before.level.alpha > 0.0);
        let mut next = match &before {
            Some(before) => {
                let share = 0.5 * (to.lambda() - from.lambda()) / (from.lambda() - before.level.lambda());
                advance(&from, &to, &x, &combine([(1.0 + share, &sight.clean), (-share, &before.clean)]))
            }
            None => advance(&from, &to, &x, &sight.clean),
        };
        hands.arrive(step, &to, &mut next, &sight.clean);
        taken = Some(Taken { sample: std::mem::replace(&mut x, next), sight, before });
    }
    Ok(x)
}

/// The step walked again, with the clean picture seen at its end.
fn corrected(taken: &Taken, now: &Sight) -> Vec<f32> {
    let Taken { sample, sight, before } = taken;
    let h = now.level.lambda() - sight.level.lambda();
    let Some(before) = before else {
        let mean = combine([(0.5, &sight.clean), (0.5, &now.clean)]);
        return advance(&sight.level, &now.level, sample, &mean);
    };
    // Equation 12 for two points at r = (lambda_before - lambda) / h and 1: rho_before + rho_now = b_1, r rho_before + rho_now = b_2.
    let r = (before.level.lambda() - sight.level.lambda()) / h;
    let b = (-h).exp_m1();
    let phi_2 = b / -h - 1.0; // (-h) phi_2(-h)
    let phi_3 = phi_2 / -h - 0.5;
    let (b_1, b_2) = (phi_2 / b, 2.0 * phi_3 / b);
    let of_before = (b_1 - b_2) / (1.0 - r);
    let of_now = b_1 - of_before;
    let mean = combine([(1.0 - of_before / r - of_now, &sight.clean), (of_before / r, &before.clean), (of_now, &now.clean)]);
    combine([(now.level.sigma / sight.level.sigma, sample), (gain(&sight.level, &now.level), &mean)])
}
