//! Functions of single elements, cross-entropy, nearest rows and upsampling against their definitions in f64.

mod support;

use proptest::prelude::*;
use smalti_kernels::concatenate;
use smalti_kernels::elementwise::{AdamW, Function, adamw, apply, gradient, move_average};
use smalti_kernels::nearest::nearest;
use smalti_kernels::upsample::{self, Upsample};
use smalti_kernels::{cross_entropy, threads};
use support::{Unaligned, check_close, check_same, on_each_set, poisoned, values};

/// P(N(0, 1) < x) by its series around 0 or its continued fraction.
fn normal_distribution(x: f64) -> f64 {
    let tail = |x: f64| {
        let fraction = (1..200).rev().fold(x, |below, k| x + f64::from(k) / below);
        (-x * x / 2.0).exp() / (fraction * std::f64::consts::TAU.sqrt())
    };
    if x > 3.0 {
        1.0 - tail(x)
    } else if x < -3.0 {
        tail(-x)
    } else {
        let mut term = x;
        let mut sum = x;
        for k in 1..80 {
            term *= x * x / f64::from(2 * k + 1);
            sum += term;
        }
        0.5 + sum * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
    }
}

fn definition(function: Function, x: f64) -> (f64, f64) {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match function {
        Function::Silu => (x * sigmoid(x), sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)))),
        Function::Gelu => {
            let p = normal_distribution(x);
            (x * p, p + x * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt())
        }
        Function::QuickGelu => {
            let s = sigmoid(1.702 * x);
            (x * s, s * (1.0 + 1.702 * x * (1.0 - s)))
        }
        Function::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
        Function::LeakyRelu { slope_bits } => {
            let slope = f64::from(f32::from_bits(slope_bits));
            if x > 0.0 { (x, 1.0) } else { (x * slope, slope) }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn functions_of_random_lengths(len in 0usize..300, seed in 0u64..1000) {
        let x: Vec<f32> = values(len, seed).iter().map(|value| value * 12.0).chain([0.0]).collect();
        let (x, dy) = (Unaligned::new(&x), Unaligned::new(&values(len + 1, seed + 1)));
        for function in [Function::Silu, Function::Gelu, Function::QuickGelu, Function::Relu, Function::leaky_relu(0.2)] {
            let (y, slope): (Vec<f64>, Vec<f64>) = x.as_slice().iter().map(|x| definition(function, f64::from(*x))).unzip();
            let dx: Vec<f64> = slope.iter().zip(dy.as_slice()).map(|(slope, dy)| slope * f64::from(*dy)).collect();
            on_each_set(|set| {
                let (mut found, mut found_dx) = (Unaligned::new(&poisoned(len + 1)), poisoned(len + 1));
                apply(function, x.as_slice(), found.as_mut_slice());
                gradient(function, x.as_slice(), dy.as_slice(), &mut found_dx);
                check_close(&format!("{} {function:?}", set.name()), found.as_slice(), &y, 1e-6);
                check_close(&format!("{} {function:?}'s gradient", set.name()), &found_dx, &dx, 2e-6);
            });
        }
    }

    #[test]
    fn cross_entropy_of_random_shapes(rows in 0usize..20, classes in 1usize..90, smoothing in 0.0f32..0.5, seed in 0u64..1000) {
        let logits: Vec<f32> = values(rows * classes, seed).iter().map(|value| value * 20.0).collect();
        let dlosses = values(rows, seed + 1);
        let targets: Vec<usize> = (0..rows).map(|row| row * 31 % classes).collect();
        let (mut losses, mut dlogits) = (Vec::new(), Vec::new());
        for ((row, target), dloss) in logits.chunks(classes).zip(&targets).zip(&dlosses) {
            let row: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
            let sum: f64 = row.iter().map(|value| value.exp()).sum();
            let smoothing = f64::from(smoothing);
            let share = |class: usize| smoothing / classes as f64 + if class == *target { 1.0 - smoothing } else { 0.0 };
            losses.push((0..classes).map(|class| share(class) * (sum.ln() - row[class])).sum());
            dlogits.extend((0..classes).map(|class| f64::from(*dloss) * (row[class].exp() / sum - share(class))));
        }
        on_each_set(|set| {
            let (mut found, mut log_sums, mut found_gradient) = (poisoned(rows), poisoned(rows), poisoned(rows * classes));
            cross_entropy::forward(&logits, &targets, smoothing, &mut found, &mut log_sums);
            cross_entropy::backward(&logits, &targets, smoothing, &log_sums, &dlosses, &mut found_gradient);
            check_close(&format!("{} losses", set.name()), &found, &losses, 1e-6);
            check_close(&format!("{} dlogits", set.name()), &found_gradient, &dlogits, 5e-6);
        });
    }

    #[test]
    fn nearest_of_random_shapes(count in 0usize..120, size in 1usize..90, channels in 1usize..30, seed in 0u64..1000) {
        let (rows, table) = (values(count * channels, seed), values(size * channels, seed + 1));
        on_each_set(|set| {
            let mut found = vec![usize::MAX; count];
            nearest(&rows, &table, channels, &mut found);
            for (row, found) in rows.chunks(channels).zip(found) {
                let distance = |entry: usize| row.iter().zip(&table[entry * channels..]).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
                let least = (0..size).map(distance).fold(f64::INFINITY, f64::min);
                assert!(distance(found) <= least + 1e-5, "{}: entry {found} is not the nearest", set.name());
            }
        });
    }
}

/// Found by chance: the loss of one class, which is 0, came out as the rounding of a logit near 20.
#[test]
fn cross_entropy_of_a_certain_class_is_zero() {
    for logit in [-19.99f32, 19.87, 1e4] {
        on_each_set(|set| {
            let (mut loss, mut log_sum) = ([f32::NAN], [f32::NAN]);
            cross_entropy::forward(&[logit], &[0], 0.048, &mut loss, &mut log_sum);
            assert_eq!((loss[0], log_sum[0]), (0.0, logit), "{}", set.name());
        });
    }
}

#[test]
fn nearest_takes_the_lowest_of_equals() {
    let entry = values(7, 1);
    let table = [values(7, 2), entry.clone(), values(7, 3), entry.clone()].concat();
    on_each_set(|_| {
        let mut found = vec![0; 50];
        nearest(&entry.repeat(50), &table, 7, &mut found);
        assert_eq!(found, [1; 50]);
    });
}

#[test]
fn extremes_stay_numbers_and_nan_stays_nan() {
    let x = [f32::NEG_INFINITY, -1e30, -100.0, 100.0, 1e30, f32::NAN, 0.0, -0.0, 1.0];
    on_each_set(|set| {
        for function in [Function::Silu, Function::Gelu, Function::QuickGelu] {
            let mut y = poisoned(9);
            apply(function, &x[1..], &mut y[1..]);
            check_close(set.name(), &y[1..5], &[0.0, 0.0, 100.0, 1e30], 1e-6);
            assert!(y[5].is_nan() && y[6..].iter().all(|value| value.is_finite()), "{} {function:?}: {y:?}", set.name());
        }
    });
}

#[test]
fn adamw_and_average_follow_their_formulas() {
    let numbers = AdamW { learning_rate: 0.01, beta_1: 0.9, beta_2: 0.99, epsilon: 1e-6, weight_decay: 0.1, step: 3 };
    let len = 70_001; // more than one task
    let (parameter, gradient, moment_1) = (values(len, 1), values(len, 2), values(len, 3));
    let moment_2: Vec<f32> = values(len, 4).iter().map(|value| value.abs()).collect();
    let step = |i: usize| {
        let (p, g) = (f64::from(parameter[i]), f64::from(gradient[i]));
        let m = f64::from(moment_1[i]) * 0.9 + g * 0.1;
        let v = f64::from(moment_2[i]) * 0.99 + g * g * 0.01;
        p * (1.0 - 0.01 * 0.1) - 0.01 * (m / (1.0 - 0.9f64.powi(3))) / ((v / (1.0 - 0.99f64.powi(3))).sqrt() + 1e-6)
    };
    let expected: Vec<f64> = (0..len).map(step).collect();
    let average: Vec<f64> = (0..len).map(|i| f64::from(parameter[i]) * 0.9 + f64::from(gradient[i]) * 0.1).collect();
    on_each_set(|set| {
        let (mut p, mut m, mut v) = (parameter.clone(), moment_1.clone(), moment_2.clone());
        adamw(&mut p, &gradient, &mut m, &mut v, numbers);
        check_close(set.name(), &p, &expected, 1e-6);
        let mut moved = parameter.clone();
        move_average(&mut moved, &gradient, 0.9);
        check_close(set.name(), &moved, &average, 1e-6);
        let mut again = [parameter.clone(), moment_1.clone(), moment_2.clone()];
        let [p1, m1, v1] = &mut again;
        threads::install(1, || adamw(p1, &gradient, m1, v1, numbers));
        check_same(set.name(), &p, &again[0]);
    });
}

#[test]
fn upsampling_repeats_and_its_gradient_sums() {
    let shape = Upsample { lines: 5, width: 3, channels: 7 };
    let (x, dy) = (values(105, 1), values(420, 2));
    let (mut y, mut dx) = (poisoned(420), poisoned(105));
    upsample::forward(&x, shape, &mut y);
    upsample::backward(&dy, shape, &mut dx);
    let mut expected = vec![0.0; 105];
    for i in 0..420 {
        let (line, column, c) = (i / 42 / 2, i / 7 % 6 / 2, i % 7);
        let source = (line * 3 + column) * 7 + c;
        assert_eq!(y[i], x[source]);
        expected[source] += f64::from(dy[i]);
    }
    check_close("dx", &dx, &expected, 1e-6);
}

/// So many rows that they are shared out, and widths of nothing.
#[test]
fn channels_side_by_side_and_apart_again() {
    for (rows, widths) in [(2, [3, 1]), (5000, [7, 20]), (3, [0, 4]), (3, [4, 0]), (0, [2, 2]), (4, [0, 0])] {
        let (a, b) = (values(rows * widths[0], 1), values(rows * widths[1], 2));
        let mut y = poisoned(rows * (widths[0] + widths[1]));
        concatenate::forward(&a, &b, widths, &mut y);
        let expected: Vec<f32> = (0..rows).flat_map(|row| [&a[row * widths[0]..][..widths[0]], &b[row * widths[1]..][..widths[1]]].concat()).collect();
        assert_eq!(y, expected, "{rows} rows of {widths:?}");
        let (mut da, mut db) = (poisoned(a.len()), poisoned(b.len()));
        concatenate::backward(&y, widths, &mut da, &mut db);
        assert!(da == a && db == b, "{rows} rows of {widths:?}");
    }
}

#[test]
#[should_panic(expected = "concatenate of [2, 3] channels: expected lengths ([4, 6], 10), found ([4, 5], 10)")]
fn concatenate_names_the_lengths() {
    concatenate::forward(&[0.0; 4], &[0.0; 5], [2, 3], &mut [0.0; 10]);
}
