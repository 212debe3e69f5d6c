//! A Gaussian mixture on the line, whose perfect network is known in closed form: samplers must land on its weights, means and variances, from noise and from
//! half-drowned pictures, a perfect classifier must lead to one part of it, and the better samplers must get there with an error that falls faster.

use super::super::*;
use super::front_door::ALL_SAMPLERS;
use crate::random::{normal_pictures, picture_rng};
use std::convert::Infallible;

/// (weight, mean, standard deviation).
const MIXTURE: [Part; 2] = [(0.3, -0.6, 0.1), (0.7, 0.4, 0.2)];

type Part = (f64, f64, f64);

/// E[clean | x], exactly: each part of the mixture answers for itself, weighted by how likely x is to come from it.
fn expected_clean(x: f64, level: &Level) -> f64 {
    let clean = MIXTURE.map(|part| expected_clean_of(part, x, level));
    probabilities(x, level).iter().zip(clean).map(|(probability, clean)| probability * clean).sum()
}

/// The same if x comes from this part.
fn expected_clean_of((_, mean, spread): Part, x: f64, &Level { alpha, sigma, .. }: &Level) -> f64 {
    let variance = (alpha * spread).powi(2) + sigma * sigma;
    mean + alpha * spread * spread / variance * (x - alpha * mean)
}

/// How likely x is to come from each part: what a perfect classifier of noisy pictures says.
fn probabilities(x: f64, &Level { alpha, sigma, .. }: &Level) -> [f64; 2] {
    let logs = MIXTURE.map(|(weight, mean, spread)| {
        let variance = (alpha * spread).powi(2) + sigma * sigma;
        weight.ln() - 0.5 * variance.ln() - 0.5 * (x - alpha * mean).powi(2) / variance
    });
    let likeliest = logs.into_iter().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logs.iter().map(|log| (log - likeliest).exp()).sum();
    logs.map(|log| (log - likeliest).exp() / total)
}

fn run(plan: &Plan, noise: &[f32], rngs: &mut [rand_chacha::ChaCha12Rng]) -> Vec<f32> {
    walk(plan, plan.start_from_noise(noise), rngs, |_, _, output| output)
}

/// With the perfect network, whose output at samples and a level `guide` may change.
fn walk(plan: &Plan, start: Vec<f32>, rngs: &mut [rand_chacha::ChaCha12Rng], guide: impl Fn(&[f32], &Level, Vec<f32>) -> Vec<f32>) -> Vec<f32> {
    let perfect = |input: &[f32], level: &Level| {
        let scale = plan.process.input_scale(level) as f32;
        let sample: Vec<f32> = input.iter().map(|value| value / scale).collect();
        let clean: Vec<f32> = sample.iter().map(|x| expected_clean(f64::from(*x), level) as f32).collect();
        let output = plan.parameterization.output(level, &sample, &clean);
        Ok::<_, Infallible>(guide(&sample, level, output))
    };
    sample(plan, start, rngs, None, perfect, |_| ()).unwrap()
}

/// Weights, means and standard deviations of values must be those of `parts`, as near as their number allows.
fn assert_lands_on(parts: &[Part], values: &[f32], what: &str) {
    // The two parts are five standard deviations apart: -0.25 parts them.
    let of = |(_, mean, _): &Part| values.iter().map(|value| f64::from(*value)).filter(|value| (*value < -0.25) == (*mean < -0.25)).collect::<Vec<f64>>();
    let strangers = values.len() - parts.iter().map(|part| of(part).len()).sum::<usize>();
    assert!(strangers as f64 <= 0.002 * values.len() as f64, "{what}: {strangers} values of other parts");
    for part in parts {
        let (found, (weight, mean, spread)) = (of(part), *part);
        let count = found.len() as f64;
        let found_mean = found.iter().sum::<f64>() / count;
        let found_spread = (found.iter().map(|value| (value - found_mean).powi(2)).sum::<f64>() / count).sqrt();
        let near = |name: &str, found: f64, expected: f64, allowed: f64| {
            assert!((found - expected).abs() < allowed, "{what}: {name} {found}, expected {expected}");
        };
        near("weight", count / values.len() as f64, weight, (4.0 * (weight * (1.0 - weight) / values.len() as f64).sqrt()).max(0.002));
        near("mean", found_mean, mean, 0.01 + 4.0 * spread / count.sqrt());
        near("standard deviation", found_spread, spread, 0.01 + 4.0 * spread / (2.0 * count).sqrt());
    }
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
            assert_lands_on(&MIXTURE, &run(&plan, &noise, &mut rngs), &format!("{sampler:?}, {parameterization:?}"));
        }
    }
}

/// Picture to picture: what was drawn from the mixture and drowned half-way comes back as the mixture, and nearer to where it was than strangers are.
#[test]
fn drowned_pictures_come_back_to_the_mixture() {
    const COUNT: usize = 4000;
    for (process, parameterization) in processes() {
        let plan = Plan { strength: 0.5, ..Plan::new(process, parameterization, Sampler::Ddim { eta: 0.0 }, 200) };
        let mut rngs = [picture_rng(13, 0)];
        let [picks, spreads, noise] = [(); 3].map(|()| normal_pictures(&mut rngs, COUNT));
        // Of unit normal numbers, 0.3 lie below -0.5244.
        let part = |pick: &f32| MIXTURE[usize::from(*pick > -0.5244)];
        let pictures: Vec<f32> = picks.iter().map(part).zip(spreads).map(|((_, mean, spread), x)| (mean + spread * f64::from(x)) as f32).collect();
        assert_lands_on(&MIXTURE, &pictures, "the pictures themselves");
        let values = walk(&plan, plan.start_from_picture(&pictures, &noise), &mut rngs, |_, _, output| output);
        assert_lands_on(&MIXTURE, &values, &format!("{parameterization:?}"));
        let distance = |others: &[f32]| values.iter().zip(others).map(|(a, b)| (a - b).abs()).sum::<f32>() / COUNT as f32;
        let strangers: Vec<f32> = pictures[1..].iter().chain(&pictures[..1]).copied().collect();
        assert!(distance(&pictures) < 0.95 * distance(&strangers), "{parameterization:?}: {} and {}", distance(&pictures), distance(&strangers));
    }
}

/// At scale 1 the gradient of a perfect classifier's log-probability turns the mixture's prediction into that of the part it leads to (2105.05233, section 4.2), and
/// the walk lands on this part alone.
#[test]
fn a_perfect_classifier_leads_to_its_part_of_the_mixture() {
    const COUNT: usize = 2000;
    for (process, parameterization) in processes() {
        for (wanted, part) in MIXTURE.into_iter().enumerate() {
            let guide = |sample: &[f32], level: &Level, output: Vec<f32>| {
                let step = 1e-4 * (level.alpha + level.sigma);
                let log = |x: f64| probabilities(x, level)[wanted].ln();
                let slope = |x: f64| if level.sigma == 0.0 { 0.0 } else { (log(x + step) - log(x - step)) / (2.0 * step) };
                let gradient: Vec<f32> = sample.iter().map(|x| slope(f64::from(*x)) as f32).collect();
                let guided = guidance::classifier(parameterization, level, &output, &gradient, 1.0);
                // Where noise all but drowns the picture, single precision cannot hold what the gradient changes; where there is none, nothing is left to guide.
                if (0.05..20.0).contains(&level.noise_to_signal()) {
                    for (x, clean) in sample.iter().zip(parameterization.clean(level, sample, &guided)) {
                        let expected = expected_clean_of(part, f64::from(*x), level);
                        assert!((f64::from(clean) - expected).abs() < 2e-3, "{parameterization:?} at {level:?}, {x}: {clean}, expected {expected}");
                    }
                }
                guided
            };
            let plan = Plan::new(process.clone(), parameterization, Sampler::Ddim { eta: 0.0 }, 200);
            let mut rngs = [picture_rng(14, 0)];
            let noise = normal_pictures(&mut rngs, COUNT);
            let values = walk(&plan, plan.start_from_noise(&noise), &mut rngs, guide);
            let (_, mean, spread) = part;
            assert_lands_on(&[(1.0, mean, spread)], &values, &format!("{parameterization:?}, part {wanted}"));
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
