//! Group and layer normalisation against sums in f64.

mod support;

use proptest::prelude::*;
use smalti_kernels::group_norm::{self, GroupNorm};
use smalti_kernels::{layer_norm, threads};
use support::{Unaligned, check_close, check_same, on_each_set, poisoned, values};

/// y, dx, dscale, dbias of normalising `sets` of element indices, each element with the channel whose scale and bias it takes.
fn reference(x: &[f32], scale: &[f32], bias: &[f32], dy: &[f32], sets: &[Vec<usize>], epsilon: f32, silu: bool) -> [Vec<f64>; 4] {
    let channels = scale.len();
    let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    let (mut dscale, mut dbias) = (vec![0.0; channels], vec![0.0; channels]);
    for set in sets {
        let count = set.len() as f64;
        let mean = set.iter().map(|i| f64::from(x[*i])).sum::<f64>() / count;
        let variance = set.iter().map(|i| (f64::from(x[*i]) - mean).powi(2)).sum::<f64>() / count;
        let inverse = 1.0 / (variance + f64::from(epsilon)).sqrt();
        let (mut level, mut along) = (0.0, 0.0);
        let mut terms = Vec::new();
        for &i in set {
            let (gamma, beta) = (f64::from(scale[i % channels]), f64::from(bias[i % channels]));
            let normalised = (f64::from(x[i]) - mean) * inverse;
            let value = normalised * gamma + beta;
            let s = 1.0 / (1.0 + (-value).exp());
            y[i] = if silu { value * s } else { value };
            let d = f64::from(dy[i]) * if silu { s * (1.0 + value * (1.0 - s)) } else { 1.0 };
            dscale[i % channels] += d * normalised;
            dbias[i % channels] += d;
            level += d * gamma;
            along += d * gamma * normalised;
            terms.push((i, d * gamma, normalised));
        }
        for (i, g, normalised) in terms {
            dx[i] = inverse * (g - level / count - normalised * along / count);
        }
    }
    [y, dx, dscale, dbias]
}

fn check_group(batch: usize, pixels: usize, group_count: usize, size: usize, silu: bool, offset: f32, seed: u64) {
    let channels = group_count * size;
    let x: Vec<f32> = values(batch * pixels * channels, seed).iter().map(|value| value + offset).collect();
    let (scale, bias) = (values(channels, seed + 1), values(channels, seed + 2));
    let (x, dy) = (Unaligned::new(&x), Unaligned::new(&values(batch * pixels * channels, seed + 3)));
    let shape = GroupNorm { batch, pixels, channels, group_count, epsilon: 1e-3, silu };
    let sets: Vec<Vec<usize>> = (0..batch * group_count)
        .map(|set| {
            let (picture, group) = (set / group_count, set % group_count);
            (0..pixels * size).map(|i| (picture * pixels + i / size) * channels + group * size + i % size).collect()
        })
        .collect();
    let expected = reference(x.as_slice(), &scale, &bias, dy.as_slice(), &sets, 1e-3, silu);
    on_each_set(|set| {
        let name = |what: &str| format!("{} {what} {shape:?} around {offset}", set.name());
        let (mut y, mut mean, mut inverse) = (Unaligned::new(&poisoned(dy.as_slice().len())), poisoned(batch * group_count), poisoned(batch * group_count));
        group_norm::forward(x.as_slice(), &scale, &bias, shape, y.as_mut_slice(), &mut mean, &mut inverse);
        let (mut dx, mut dscale, mut dbias) = (poisoned(dy.as_slice().len()), poisoned(channels), poisoned(channels));
        group_norm::backward(x.as_slice(), &scale, &bias, &mean, &inverse, dy.as_slice(), shape, &mut dx, &mut dscale, &mut dbias);
        // Far from zero the differences that remain have lost digits already in x.
        let tolerance = 2e-5 * f64::from(1.0 + offset.abs());
        for (what, (found, expected)) in ["y", "dx", "dscale", "dbias"].iter().zip([y.as_slice(), &dx, &dscale, &dbias].into_iter().zip(&expected)) {
            check_close(&name(what), found, expected, tolerance);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn group_norm_of_random_shapes(
        (batch, pixels, group_count, size) in (0usize..4, 1usize..50, 1usize..9, 1usize..9),
        silu in any::<bool>(),
        seed in 0u64..1000,
    ) {
        check_group(batch, pixels, group_count, size, silu, 0.0, seed);
    }

    #[test]
    fn layer_norm_of_random_shapes(rows in 0usize..150, channels in 1usize..80, seed in 0u64..1000) {
        let (x, dy) = (Unaligned::new(&values(rows * channels, seed)), Unaligned::new(&values(rows * channels, seed + 1)));
        let (scale, bias) = (values(channels, seed + 2), values(channels, seed + 3));
        let sets: Vec<Vec<usize>> = (0..rows).map(|row| (row * channels..(row + 1) * channels).collect()).collect();
        let expected = reference(x.as_slice(), &scale, &bias, dy.as_slice(), &sets, 1e-3, false);
        on_each_set(|set| {
            let (mut y, mut mean, mut inverse) = (poisoned(rows * channels), poisoned(rows), poisoned(rows));
            layer_norm::forward(x.as_slice(), &scale, Some(&bias), 1e-3, &mut y, &mut mean, &mut inverse);
            let (mut dx, mut dscale, mut dbias) = (poisoned(rows * channels), poisoned(channels), poisoned(channels));
            layer_norm::backward(x.as_slice(), &scale, &mean, &inverse, dy.as_slice(), &mut dx, &mut dscale, Some(&mut dbias));
            for (what, (found, expected)) in ["y", "dx", "dscale", "dbias"].iter().zip([&y, &dx, &dscale, &dbias].into_iter().zip(&expected)) {
                check_close(&format!("{} {what} [{rows}, {channels}]", set.name()), found, expected, 2e-5);
            }
        });
    }
}

#[test]
fn group_norm_at_borders() {
    check_group(2, 3000, 4, 12, true, 0.0, 1); // several runs of pixels
    check_group(1, 1, 1, 1, true, 0.0, 2); // one pixel, one channel: no variance at all
    check_group(2, 400, 2, 16, true, 100.0, 3); // a mean that dwarfs the deviation
}

#[test]
fn threads_and_batch_change_no_bit() {
    let shape = GroupNorm { batch: 4, pixels: 3000, channels: 48, group_count: 8, epsilon: 1e-5, silu: true };
    let (x, dy, scale, bias) = (values(4 * 3000 * 48, 1), values(4 * 3000 * 48, 2), values(48, 3), values(48, 4));
    on_each_set(|set| {
        let run = |thread_count: usize| {
            threads::install(thread_count, || {
                let mut all = [poisoned(x.len()), poisoned(32), poisoned(32), poisoned(x.len()), poisoned(48), poisoned(48)];
                let [y, mean, inverse, dx, dscale, dbias] = &mut all;
                group_norm::forward(&x, &scale, &bias, shape, y, mean, inverse);
                group_norm::backward(&x, &scale, &bias, mean, inverse, &dy, shape, dx, dscale, dbias);
                all
            })
        };
        let (one, all) = (run(1), run(0));
        one.iter().zip(&all).for_each(|(one, all)| check_same(set.name(), one, all));
        let place = 2 * 3000 * 48;
        let (mut y, mut mean, mut inverse) = (poisoned(3000 * 48), poisoned(8), poisoned(8));
        group_norm::forward(&x[place..place + 3000 * 48], &scale, &bias, GroupNorm { batch: 1, ..shape }, &mut y, &mut mean, &mut inverse);
        check_same(set.name(), &y, &one[0][place..place + 3000 * 48]);
    });
}

#[test]
#[should_panic(expected = "expected lengths of [x and y, scale, bias, statistics] [24, 4, 4, 2], found [23, 4, 4, 2]")]
fn misuse_names_both() {
    let shape = GroupNorm { batch: 1, pixels: 6, channels: 4, group_count: 2, epsilon: 1e-5, silu: false };
    group_norm::forward(&[0.0; 23], &[0.0; 4], &[0.0; 4], shape, &mut [0.0; 23], &mut [0.0; 2], &mut [0.0; 2]);
}
