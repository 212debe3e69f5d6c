//! The front door: a plan, a start, a network as a function; pictures come out.

use super::samplers::{Hands, Prediction};
use super::{Known, Level, Plan, PlanError, Variance};
use crate::random::normal_pictures;
use rand_chacha::ChaCha12Rng;
use std::error::Error;

#[derive(Debug, thiserror::Error)]
pub enum SampleError<E: Error + 'static> {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("{what}: expected {expected} numbers, found {found}")]
    Shape { what: &'static str, expected: usize, found: usize },
    #[error(
        "output of the network for picture {picture} at timestep {timestep}: number {index} is {value}; hint: its weights or a too large guidance scale overflow"
    )]
    NotFinite { picture: usize, timestep: f64, index: usize, value: f32 },
    /// What the function of the caller said.
    #[error(transparent)]
    Network(E),
}

/// A step that was walked.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// From 0.
    pub index: usize,
    pub count: usize,
    /// The samples it led to.
    pub sample: &'a [f32],
    /// The clean pictures that were predicted on the way, thresholded: a preview.
    pub clean: &'a [f32],
}

/// Walks from `start` ([`Plan::start_from_noise`], [`Plan::start_from_picture`]) to pictures; as long as `start`, which holds one picture for each of `rngs`.
///
/// `denoise(input, level)` is the network. `input` is the sample as the network was trained to see it, `level.timestep` what it is to be told. It returns the raw
/// output, as the plan's parameterization means it, already guided (see [`guidance`](super::guidance)): one number for each of `input`. With
/// [`Variance::Learned`] it returns twice as many, for each picture first all of the prediction, then all of the variance.
///
/// Pictures share nothing but that function: picture p draws from `rngs[p]` alone and is thresholded alone, so that it is the same whatever stands beside it,
/// as long as the network's output is.
pub fn sample<E: Error + 'static>(
    plan: &Plan,
    start: Vec<f32>,
    rngs: &mut [ChaCha12Rng],
    known: Option<&Known>,
    mut denoise: impl FnMut(&[f32], &Level) -> Result<Vec<f32>, E>,
    mut observe: impl FnMut(Step),
) -> Result<Vec<f32>, SampleError<E>> {
    plan.validate()?;
    check_shapes(&start, rngs.len(), known)?;
    if start.is_empty() {
        return Ok(start);
    }
    let value_count = start.len() / rngs.len();
    let levels = plan.levels();
    let mut start = start;
    if let Some(known) = known {
        known.put_back(&levels[0], &mut start);
    }
    let hands = &mut Hands {
        predict: &mut |sample, level| {
            let scale = plan.process.input_scale(level);
            let output = if scale == 1.0 { denoise(sample, level) } else { denoise(&scaled(sample, scale), level) }.map_err(SampleError::Network)?;
            read(plan, sample, level, &output, value_count)
        },
        noise: &mut || normal_pictures(rngs, value_count),
        hold: &mut |sample, level| {
            if let Some(known) = known {
                known.put_back(level, sample);
            }
        },
        observe: &mut |index, sample, clean| observe(Step { index, count: levels.len() - 1, sample, clean }),
    };
    plan.sampler.walk(&plan.process, plan.variance, &levels, start, hands)
}

fn check_shapes<E: Error>(start: &[f32], picture_count: usize, known: Option<&Known>) -> Result<(), SampleError<E>> {
    if picture_count == 0 && !start.is_empty() || picture_count > 0 && !start.len().is_multiple_of(picture_count) {
        let expected = start.len().checked_div(picture_count).unwrap_or(0) * picture_count;
        return Err(SampleError::Shape { what: "start", expected, found: start.len() });
    }
    let Some(known) = known else { return Ok(()) };
    for (what, values) in [("known pictures", known.clean), ("noise of the known pictures", known.noise), ("mask", known.keep)] {
        if values.len() != start.len() {
            return Err(SampleError::Shape { what, expected: start.len(), found: values.len() });
        }
    }
    Ok(())
}

fn scaled(sample: &[f32], scale: f64) -> Vec<f32> {
    sample.iter().map(|value| (f64::from(*value) * scale) as f32).collect()
}

/// From the network's output to a thresholded clean picture, and the learned variance if there is one.
pub(super) fn read<E: Error>(plan: &Plan, sample: &[f32], level: &Level, output: &[f32], value_count: usize) -> Result<Prediction, SampleError<E>> {
    let output_count = if plan.variance == Variance::Learned { 2 * value_count } else { value_count };
    let expected = sample.len() / value_count * output_count;
    if output.len() != expected {
        return Err(SampleError::Shape { what: "output of the network", expected, found: output.len() });
    }
    if let Some(index) = output.iter().position(|value| !value.is_finite()) {
        let (picture, timestep) = (index / output_count, level.timestep);
        return Err(SampleError::NotFinite { picture, timestep, index: index % output_count, value: output[index] });
    }
    let halves = |from: usize| output.chunks_exact(output_count).flat_map(move |picture| &picture[from..][..value_count]).copied().collect::<Vec<f32>>();
    let (output, variance) = match plan.variance {
        Variance::Learned => (halves(0), halves(value_count)),
        Variance::FixedSmall | Variance::FixedLarge => (output.to_vec(), Vec::new()),
    };
    let mut clean = plan.parameterization.clean(level, sample, &output);
    for picture in clean.chunks_exact_mut(value_count) {
        plan.threshold.apply(picture);
    }
    Ok(Prediction { clean, variance })
}
