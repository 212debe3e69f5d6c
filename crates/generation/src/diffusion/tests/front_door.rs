//! The front door: a picture is the same whatever its batch; known pixels stay; wrong networks are named.

use super::super::*;
use crate::random::{normal_pictures, picture_rng};
use rand_chacha::ChaCha12Rng;
use std::convert::Infallible;

const VALUE_COUNT: usize = 6;

pub const ALL_SAMPLERS: [Sampler; 9] = [
    Sampler::Ddpm,
    Sampler::Ddim { eta: 0.0 },
    Sampler::Ddim { eta: 0.7 },
    Sampler::Euler,
    Sampler::EulerAncestral,
    Sampler::Heun,
    Sampler::DpmSolverPlusPlus2M,
    Sampler::UniPc,
    Sampler::LatentConsistency { distilled_steps: 50 },
];

fn plan(sampler: Sampler) -> Plan {
    let process = Process::VariancePreserving(Schedule::new(ScheduleConfig::cosine()).unwrap());
    Plan { threshold: Threshold::dynamic(0.8), ..Plan::new(process, Parameterization::Velocity, sampler, 12) }
}

/// An output that depends on the neighbours of a value within its picture and on the level, as a network's does.
fn network(input: &[f32], level: &Level) -> Result<Vec<f32>, Infallible> {
    let output = |picture: &[f32], index: usize| (picture[index] - 0.7 * picture[(index + 1) % VALUE_COUNT] + level.timestep as f32 / 300.0).sin();
    Ok(input.chunks(VALUE_COUNT).flat_map(|picture| (0..VALUE_COUNT).map(move |index| output(picture, index))).collect())
}

fn pictures(plan: &Plan, pictures: std::ops::Range<u64>) -> Vec<f32> {
    let mut rngs: Vec<ChaCha12Rng> = pictures.map(|picture| picture_rng(5, picture)).collect();
    let noise = normal_pictures(&mut rngs, VALUE_COUNT);
    sample(plan, plan.start_from_noise(&noise), &mut rngs, None, network, |_| ()).unwrap()
}

/// The same picture alone, in a batch, and in another place of the batch.
#[test]
fn a_batch_of_four_is_four_of_one() {
    for sampler in ALL_SAMPLERS {
        let batch = pictures(&plan(sampler), 0..4);
        let singles: Vec<f32> = (0..4).flat_map(|picture| pictures(&plan(sampler), picture..picture + 1)).collect();
        assert_eq!(batch, singles, "{sampler:?}");
        assert_eq!(batch[2 * VALUE_COUNT..], pictures(&plan(sampler), 2..4), "{sampler:?}");
        assert!(batch.iter().all(|value| value.abs() <= 1.0 + 1e-6) || matches!(sampler, Sampler::LatentConsistency { .. }), "{sampler:?}: thresholded");
        assert!(batch[..VALUE_COUNT] != batch[VALUE_COUNT..2 * VALUE_COUNT], "{sampler:?}: pictures have noise of their own");
    }
}

#[test]
fn every_step_is_observed_in_order() {
    for sampler in ALL_SAMPLERS {
        let plan = Plan { strength: 0.5, ..plan(sampler) };
        let (mut seen, mut last) = (Vec::new(), Vec::new());
        let mut rngs = [picture_rng(1, 0)];
        let start = plan.start_from_picture(&[0.1; VALUE_COUNT], &[0.3; VALUE_COUNT]);
        let result = sample(&plan, start, &mut rngs, None, network, |step| {
            seen.push((step.index, step.count));
            last = step.sample.to_vec();
        });
        assert_eq!(seen, (0..6).map(|index| (index, 6)).collect::<Vec<_>>(), "{sampler:?}");
        assert_eq!(result.unwrap(), last);
    }
}

#[test]
fn known_pixels_stay_bit_for_bit() {
    let (clean, keep) = ([0.1, -0.2, 0.3, 0.9, -1.0, 0.0], [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
    for sampler in ALL_SAMPLERS {
        let plan = plan(sampler);
        let mut rngs = [picture_rng(1, 0)];
        let noise = normal_pictures(&mut rngs, VALUE_COUNT);
        let known = Known { clean: &clean, noise: &noise, keep: &keep };
        let result = sample(&plan, plan.start_from_noise(&noise), &mut rngs, Some(&known), network, |_| ()).unwrap();
        for index in 0..VALUE_COUNT {
            assert_eq!(result[index] == clean[index], keep[index] == 1.0, "{sampler:?}: {result:?}");
        }
        let all = Known { keep: &[1.0; VALUE_COUNT], ..known };
        assert_eq!(sample(&plan, plan.start_from_noise(&noise), &mut rngs, Some(&all), network, |_| ()).unwrap(), clean);
    }
}

#[test]
fn strength_zero_gives_the_picture_back() {
    let plan = Plan { strength: 0.0, ..plan(Sampler::Euler) };
    let picture = [0.1, -0.2, 0.3, 0.9, -1.0, 0.0];
    let start = plan.start_from_picture(&picture, &[1.0; VALUE_COUNT]);
    assert_eq!(sample(&plan, start, &mut [picture_rng(1, 0)], None, network, |_| panic!("no step")).unwrap(), picture);
}

/// The bounds of a learned variance are the two fixed ones, and other samplers pass over it.
#[test]
fn a_learned_variance_at_its_bounds_is_a_fixed_one() {
    for (bound, fixed) in [(-1.0, Variance::FixedSmall), (1.0, Variance::FixedLarge)] {
        let learned = |input: &[f32], level: &Level| {
            let output = network(input, level)?;
            Ok::<_, Infallible>(output.chunks(VALUE_COUNT).flat_map(|picture| picture.iter().copied().chain([bound; VALUE_COUNT])).collect())
        };
        for sampler in [Sampler::Ddpm, Sampler::Heun] {
            let plan = Plan { variance: fixed, ..plan(sampler) };
            let expected = pictures(&plan, 0..2);
            let mut rngs = [picture_rng(5, 0), picture_rng(5, 1)];
            let noise = normal_pictures(&mut rngs, VALUE_COUNT);
            let plan = Plan { variance: Variance::Learned, ..plan };
            let found = sample(&plan, plan.start_from_noise(&noise), &mut rngs, None, learned, |_| ()).unwrap();
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "{sampler:?} {fixed:?}");
            }
        }
    }
}

#[test]
fn wrong_networks_and_wrong_sizes_are_named() {
    let plan = plan(Sampler::Ddim { eta: 0.0 });
    let run = |plan: &Plan, start: usize, known: Option<&Known>, output: Result<Vec<f32>, std::io::Error>| {
        let mut output = Some(output);
        let mut rngs = [picture_rng(0, 0), picture_rng(0, 1)];
        sample(plan, vec![0.5; start], &mut rngs, known, |_, _| output.take().unwrap(), |_| ()).unwrap_err().to_string()
    };
    assert_eq!(run(&plan, 4, None, Ok(vec![0.0; 3])), "output of the network: expected 4 numbers, found 3");
    assert_eq!(run(&Plan { variance: Variance::Learned, ..plan.clone() }, 4, None, Ok(vec![0.0; 4])), "output of the network: expected 8 numbers, found 4");
    let message = run(&plan, 4, None, Ok(vec![0.0, 0.0, 0.0, f32::NAN]));
    assert!(message.starts_with("output of the network for picture 1 at timestep 999: number 1 is NaN; hint: "), "{message}");
    assert_eq!(run(&plan, 4, None, Err(std::io::Error::other("the network is gone"))), "the network is gone");
    assert_eq!(run(&plan, 5, None, Ok(vec![])), "start: expected 4 numbers, found 5");
    assert_eq!(run(&Plan { steps: 0, ..plan.clone() }, 4, None, Ok(vec![])), "steps: expected at least 1, found 0");
    let known = Known { clean: &[0.0; 4], noise: &[0.0; 4], keep: &[1.0; 3] };
    assert_eq!(run(&plan, 4, Some(&known), Ok(vec![])), "mask: expected 4 numbers, found 3");
}
