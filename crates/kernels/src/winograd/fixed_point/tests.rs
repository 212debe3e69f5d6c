//! How near results in fixed point come to the true ones, beside those of bf16, and what happens at the edges of the numbers.

use crate::InstructionSet;
use crate::bf16::rounded;
use crate::convolution::{Added, Convolution};
use crate::support::{products, values};
use crate::vector::{Portable, Vector};
use crate::winograd::{Picture, SPAN, TILE, convolve, pixel_points, pixels, weight_points};

fn shape(size: usize, input_channels: usize, output_channels: usize) -> Convolution {
    Convolution { batch: 1, height: size, width: size, input_channels, output_channels, kernel_size: 3, stride: 1, before: 1, after: 1 }
}

fn reference(x: &[f32], weight: &[f32], shape: Convolution) -> Vec<f64> {
    let mut y = vec![0.0f64; shape.height * shape.width * shape.output_channels];
    products(shape, |i, j, k| y[k] += f64::from(x[i]) * f64::from(weight[j]));
    y
}

fn reference_gradient(x: &[f32], dy: &[f32], shape: Convolution) -> Vec<f64> {
    let mut dweight = vec![0.0f64; 9 * shape.input_channels * shape.output_channels];
    products(shape, |i, j, k| dweight[j] += f64::from(x[i]) * f64::from(dy[k]));
    dweight
}

fn in_bf16(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| rounded(*value)).collect()
}

/// In fixed point, on every set that has it.
fn results(x: &[f32], weight: &[f32], shape: Convolution) -> Vec<Vec<f32>> {
    let sets = InstructionSet::available().iter().filter(|set| set.multiplies_pairs_of_integers());
    let results: Vec<Vec<f32>> = sets
        .map(|&set| {
            let mut y = vec![f32::NAN; shape.height * shape.width * shape.output_channels];
            convolve(set, &Picture { x, rounded: true, shape, reversed: false }, &shape.weights(weight), Added::NOTHING, &mut y);
            y
        })
        .collect();
    if results.is_empty() {
        println!("SKIPPED: this processor does not multiply pairs of integers; what does was compiled, not run");
    }
    results
}

/// Root of the mean square of the differences.
fn error(found: impl Iterator<Item = f64>, expected: &[f64]) -> f64 {
    let sum: f64 = found.zip(expected).map(|(found, expected)| (found - expected).powi(2)).sum();
    (sum / expected.len() as f64).sqrt()
}

/// Alike in all channels, and as unlike as activations and weights of trained networks are: magnitudes of channels over a factor of ten, most pixels dark.
#[test]
fn results_are_nearer_to_the_truth_than_products_of_bf16() {
    for (input_channels, output_channels) in [(64, 32), (128, 40), (200, 64), (512, 32)] {
        for unlike in [false, true] {
            let shape = shape(16, input_channels, output_channels);
            let mut x = values(256 * input_channels, 1);
            let mut weight = values(9 * input_channels * output_channels, 2);
            if unlike {
                let magnitudes = values(input_channels, 3);
                for (i, x) in x.iter_mut().enumerate() {
                    *x = x.powi(3) * 10f32.powf(magnitudes[i % input_channels] / 2.0);
                }
                weight.iter_mut().for_each(|weight| *weight = weight.powi(3));
            }
            let exact = reference(&x, &weight, shape);
            let bf16_error = error(reference(&in_bf16(&x), &in_bf16(&weight), shape).into_iter(), &exact);
            for y in results(&x, &weight, shape) {
                let error = error(y.iter().map(|y| f64::from(*y)), &exact);
                assert!(error < 0.9 * bf16_error, "{shape:?}, unlike: {unlike}: {error:e}, with bf16 {bf16_error:e}");
            }
        }
    }
}

/// Why the values are not simply rounded to bf16: one tile of 128 channels and eight output channels, one in each lane.
#[test]
fn values_in_bf16_would_bring_back_several_times_the_error() {
    const CHANNELS: usize = 128;
    let tile = Convolution { batch: 1, height: SPAN, width: SPAN, before: 0, after: 0, ..shape(SPAN, CHANNELS, 8) };
    let (x, weight) = (in_bf16(&values(SPAN * SPAN * CHANNELS, 8)), in_bf16(&values(9 * CHANNELS * 8, 9)));
    let mut exact = vec![0.0f64; TILE * TILE * 8];
    products(tile, |i, j, k| exact[k] += f64::from(x[i]) * f64::from(weight[j]));
    let mut sums = [[Portable::zero(); SPAN]; SPAN];
    for c in 0..CHANNELS {
        // SAFETY: eight output channels are a vector.
        let tap = |tap: usize| unsafe { Portable::load(weight[(tap * CHANNELS + c) * 8..].as_ptr()) };
        let pixel = |i: usize, j: usize| Portable::splat(x[(i * SPAN + j) * CHANNELS + c]);
        let weight_columns: [_; 3] = std::array::from_fn(|v| weight_points(std::array::from_fn(|u| tap(3 * u + v))));
        let pixel_columns: [_; SPAN] = std::array::from_fn(|j| pixel_points(std::array::from_fn(|i| pixel(i, j))));
        for (i, sums) in sums.iter_mut().enumerate() {
            let weight_values = weight_points(weight_columns.map(|column| column[i]));
            let pixel_values = pixel_points(pixel_columns.map(|column| column[i]));
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = pixel_values[j].rounded_to_bf16().mul_add(weight_values[j].rounded_to_bf16(), *sum);
            }
        }
    }
    let columns: [_; SPAN] = std::array::from_fn(|j| pixels(std::array::from_fn(|i| sums[i][j])));
    let y = (0..TILE).flat_map(|i| pixels(columns.map(|column| column[i]))).flat_map(|value| value.0).map(f64::from);
    let values_error = error(y, &exact);
    // What rounding the inputs costs, which are in bf16 here already: values again, before they are rounded.
    let (x, weight) = (values(SPAN * SPAN * CHANNELS, 8), values(9 * CHANNELS * 8, 9));
    let mut unrounded = vec![0.0f64; TILE * TILE * 8];
    products(tile, |i, j, k| unrounded[k] += f64::from(x[i]) * f64::from(weight[j]));
    let inputs_error = error(exact.iter().copied(), &unrounded);
    println!("the values in bf16 cost {:.1} times as much as the inputs in bf16", values_error / inputs_error);
    assert!(values_error > 3.0 * inputs_error, "{values_error:e} and {inputs_error:e}");
}

/// The last picture has more tiles than a block, the one before it channels that fill no panel.
#[test]
fn weight_gradients_are_nearer_to_the_truth_than_products_of_bf16() {
    if !InstructionSet::available().iter().any(|set| set.multiplies_pairs_of_integers()) {
        return println!("SKIPPED: this processor does not multiply pairs of integers; what does was compiled, not run");
    }
    for (size, input_channels, output_channels) in [(16, 64, 32), (18, 70, 40), (256, 8, 9)] {
        for unlike in [false, true] {
            let shape = shape(size, input_channels, output_channels);
            let (mut x, mut dy) = (values(size * size * input_channels, 6), values(size * size * output_channels, 7));
            if unlike {
                x.iter_mut().for_each(|x| *x = x.powi(3));
                dy.iter_mut().enumerate().for_each(|(i, dy)| *dy *= 1e-3 * (1.0 + (i % output_channels) as f32));
            }
            let exact = reference_gradient(&x, &dy, shape);
            let bf16_error = error(reference_gradient(&in_bf16(&x), &in_bf16(&dy), shape).into_iter(), &exact);
            let mut found = vec![f32::NAN; exact.len()];
            super::weight_gradient(&x, &dy, shape, &mut found);
            let error = error(found.iter().map(|found| f64::from(*found)), &exact);
            assert!(error < 0.9 * bf16_error, "{shape:?}, unlike: {unlike}: {error:e}, with bf16 {bf16_error:e}");
        }
    }
}

/// All values of a slice as large as they can be, with the same sign: the sum is the largest there is.
#[test]
fn the_largest_sum_does_not_overflow() {
    for channels in [8, 16, 33, 64, 128, 129, 256] {
        let shape = shape(16, channels, 32);
        let (x, weight) = (vec![3.0; 256 * channels], vec![-7.0; 9 * channels * 32]);
        for y in results(&x, &weight, shape) {
            let expected = -21.0 * 9.0 * channels as f32;
            let found = y[(8 * 16 + 8) * 32]; // away from the border
            assert!((found - expected).abs() < 1e-3 * expected.abs(), "{channels}: expected {expected}, found {found}");
        }
    }
}

#[test]
fn no_number_stays_no_number_and_zeros_stay_zeros() {
    let shape = shape(16, 40, 32);
    let weight = values(9 * 40 * 32, 5);
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = values(256 * 40, 4);
        x[(5 * 16 + 5) * 40 + 7] = broken;
        for y in results(&x, &weight, shape) {
            assert!(y[(5 * 16 + 5) * 32..][..32].iter().all(|y| !y.is_finite()), "{broken}: {:?}", &y[(5 * 16 + 5) * 32..][..4]);
            assert!(y[(15 * 16 + 15) * 32..].iter().all(|y| y.is_finite()), "{broken} reaches tiles far away");
        }
        let mut weight = weight.clone();
        weight[4 * 40 * 32 + 3] = broken;
        for y in results(&values(256 * 40, 4), &weight, shape) {
            assert!(y.chunks_exact(32).all(|y| !y[3].is_finite() && y[4].is_finite()), "{broken} in the weights");
        }
    }
    for magnitude in [0.0, 1e-38, 1e-20, 1e15] {
        let x: Vec<f32> = values(256 * 40, 4).into_iter().map(|x| x * magnitude).collect();
        let exact = reference(&x, &weight, shape);
        let scale = exact.iter().fold(0.0f64, |scale, y| scale.max(y.abs()));
        for y in results(&x, &weight, shape) {
            let error = error(y.iter().map(|y| f64::from(*y)), &exact);
            assert!(error <= 1e-3 * scale + 1e-30, "magnitude {magnitude:e}: {error:e} of {scale:e}");
        }
    }
}
