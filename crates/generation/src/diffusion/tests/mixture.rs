//! A Gaussian mixture on the line, whose perfect network is known in closed form: samplers must land on its weights, means and variances, and the better ones
//! must get there with an error that falls faster.

use super::super::*;
use super::front_door::ALL_SAMPLERS;
use crate::random::{normal_pictures, picture_rng};
use std::convert::Infallible;

/// (weight, mean, standard deviation).
const MIXTURE: [(f64, f64, f64); 2] = [(0.3, -0.6, 0.1), (0.7, 0.4, 0.2)];

/// E[clean | x], exactly: each part of the mixture answers for itself, weighted by how likely x is to come from it.
fn expected_clean(x: f64, level: &Level) -> f64 {
    let Level { alpha, sigma, .. } = *level;
    let parts = MIXTURE.map(|(weight, mean, spread)| {
        let variance = (alpha * spread).powi(2) + sigma * sigma;
        let off = x - alpha * mean;
        (weight.ln() - 0.5 * variance.ln() - 0.5 * off * off / variance, mean + alpha * spread * spread / variance * off)
    });
    let likeliest = parts.iter().fold(f64::NEG_INFINITY, |most, (log, _)| most.max(*log));
    let total: f64 = parts.iter().map(|(log, _)| (log - likeliest).exp()).sum();
    parts.iter().map(|(log, clean)| (log - likeliest).exp() * clean).sum::<f64>() / total
}

fn run(plan: &Plan, noise: &[f32], rngs: &mut [rand_chacha::ChaCha12Rng]) -> Vec<f32> {
    let perfect = |input: &[f32], level: &Level| {
        let scale = plan.process.input_scale(level) as f32;
        let sample: Vec<f32> = input.iter().map(|value| value / scale).collect();
        let clean: Vec<f32> = sample.iter().map(|x| expected_clean(f64::from(*x), level) as f32).collect();
        Ok::<_, Infallible>(plan.parameterization.output(level, &sample, &clean))
    };
    sample(plan, plan.start_from_noise(noise), rngs, None, perfect, |_| ()).unwrap()
}

fn processes() -> [(Process, Parameterization); 3] {
    [
        (Process::VariancePreserving(Schedule::new(ScheduleConfig::cosine()).unwrap()), Parameterization::Velocity),
        (Process::VarianceExploding(sigmas::Config::edm()), Parameterization::Edm { sigma_data: 0.5 }),
        (Process::Flow(flow::Config { train_steps: 1000, shift: 1.0 }), Parameterization::Flow),
    ]
}

#[test]
fn samplers_land_on_the_mixture() {
    const COUNT: usize = 4000;
    for (process, parameterization) in processes() {
        for sampler in ALL_SAMPLERS {
            if matches!(sampler, Sampler::LatentConsistency { .. }) {
                continue; // wants a network that jumps to samples, not to their mean
            }
            let plan = Plan::new(process.clone(), parameterization, sampler, 200);
            let mut rngs = [picture_rng(11, 0)];
            let noise = normal_pictures(&mut rngs, COUNT);
            let values: Vec<f64> = run(&plan, &noise, &mut rngs).into_iter().map(f64::from).collect();
            // The two parts are five standard deviations apart: -0.25 parts them.
            let (low, high): (Vec<f64>, Vec<f64>) = values.iter().partition(|value| **value < -0.25);
            for (found, (weight, mean, spread)) in [low, high].into_iter().zip(MIXTURE) {
                let count = found.len() as f64;
                let found_mean = found.iter().sum::<f64>() / count;
                let found_spread = (found.iter().map(|value| (value - found_mean).powi(2)).sum::<f64>() / count).sqrt();
                let near = |what: &str, found: f64, expected: f64, allowed: f64| {
                    assert!((found - expected).abs() < allowed, "{sampler:?}, {parameterization:?}: {what} {found}, expected {expected}");
                };
                near("weight", count / COUNT as f64, weight, 4.0 * (weight * (1.0 - weight) / COUNT as f64).sqrt());
                near("mean", found_mean, mean, 0.01 + 4.0 * spread / count.sqrt());
                near("standard deviation", found_spread, spread, 0.01 + 4.0 * spread / (2.0 * count).sqrt());
            }
        }
    }
}

/// Eight steps are too few for the right spread, but nothing may leave the range of the data: cosine schedules begin all but infinitely far from it.
#[test]
fn few_steps_stay_among_the_data() {
    for (process, parameterization) in processes() {
        for sampler in ALL_SAMPLERS.into_iter().filter(|sampler| !matches!(sampler, Sampler::LatentConsistency { .. })) {
            let plan = Plan::new(process.clone(), parameterization, sampler, 8);
            let mut rngs = [picture_rng(12, 0)];
            let noise = normal_pictures(&mut rngs, 500);
            let farthest = run(&plan, &noise, &mut rngs).into_iter().fold(0.0, |most: f32, value| most.max(value.abs()));
            assert!(farthest < 2.0, "{sampler:?}, {parameterization:?}: {farthest}");
        }
    }
}

/// Twice the steps: half the error for Euler, a quarter or less for the methods of second order. Over an interval in which the flow is smooth, at levels
/// evenly spaced in lambda; the reference is Heun's with many steps.
#[test]
fn errors_fall_as_fast_as_the_order_says() {
    let level = |lambda: f64| {
        let alpha = 1.0 / (1.0 + (-2.0 * lambda).exp()).sqrt();
        Level { timestep: 0.0, alpha, sigma: (1.0 - alpha * alpha).sqrt() }
    };
    let levels = |steps: usize| (0..=steps).map(|index| level(-1.5 + 3.0 * index as f64 / steps as f64)).collect::<Vec<_>>();
    let start: Vec<f32> = (0..40).map(|index| (index as f32 - 20.0) / 10.0).collect();
    let (process, _) = &processes()[0];
    let walk = |sampler: Sampler, steps: usize| {
        let hands = &mut samplers::Hands {
            predict: &mut |sample, level| {
                let clean = sample.iter().map(|x| expected_clean(f64::from(*x), level) as f32).collect();
                Ok::<_, Infallible>(samplers::Prediction { clean, variance: Vec::new() })
            },
            noise: &mut || panic!("deterministic"),
            hold: &mut |_, _| (),
            observe: &mut |_, _, _| (),
        };
        sampler.walk(process, Variance::FixedSmall, &levels(steps), start.clone(), hands).unwrap()
    };
    let reference = walk(Sampler::Heun, 1500);
    let error = |sampler, steps| {
        let squares: f64 = walk(sampler, steps).iter().zip(&reference).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        (squares / start.len() as f64).sqrt()
    };
    for (sampler, order) in [(Sampler::Euler, 1.0), (Sampler::Heun, 2.0), (Sampler::DpmSolverPlusPlus2M, 2.0), (Sampler::UniPc, 2.0)] {
        let (coarse, fine) = (error(sampler, 30), error(sampler, 60));
        let found = (coarse / fine).log2();
        assert!(found > order - 0.25, "{sampler:?}: order {found}; errors {coarse}, {fine}");
        assert!(sampler != Sampler::Euler || found < 1.3, "Euler is of first order: {found}");
        assert!(sampler == Sampler::Euler || fine < 0.3 * error(Sampler::Euler, 60), "{sampler:?} is better than Euler");
    }
}

/// Three names, one step: DDIM without fresh noise is Euler; DDIM with eta 1, ancestral Euler and DDPM with the small variance draw from the posterior.
#[test]
fn equal_samplers_are_equal() {
    let process = &processes()[0].0;
    let result = |sampler| {
        let plan = Plan::new(process.clone(), Parameterization::Velocity, sampler, 20);
        let mut rngs = [picture_rng(4, 2)];
        let noise = normal_pictures(&mut rngs, 50);
        run(&plan, &noise, &mut rngs)
    };
    for (a, b) in
        [(Sampler::Ddim { eta: 0.0 }, Sampler::Euler), (Sampler::Ddim { eta: 1.0 }, Sampler::Ddpm), (Sampler::Ddim { eta: 1.0 }, Sampler::EulerAncestral)]
    {
        for (found, expected) in result(a).iter().zip(result(b)) {
            assert!((found - expected).abs() < 1e-4, "{a:?} and {b:?}: {found}, {expected}");
        }
    }
}
