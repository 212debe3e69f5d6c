//! Against sums in f64 over inputs rounded to bf16, on every instruction set of this processor and on AMX tiles in software.

use super::convolution::{filters_weight_gradient, forward_on, input_gradient_on, weight_gradient_on};
use super::product::{multiply_on, multiply_transposed_on};
use super::{Element, rounded};
use crate::InstructionSet;
use crate::convolution::{Added, Convolution};
use crate::product::Sizes;
use crate::support::{OfPicture, Unaligned, check_close, check_same, poisoned, products, values};
use crate::threads;
use crate::winograd;
use half::bf16;
use proptest::prelude::*;

/// Products of bf16 are exact in f32: what is left is the rounding of the sums.
const TOLERANCE: f64 = 1e-5;
/// Rounding pictures to bf16 would cost as much; `winograd::fixed_point` compares the two.
const INTEGERS_TOLERANCE: f64 = 4e-3;

fn sets() -> impl Iterator<Item = InstructionSet> {
    InstructionSet::available().iter().copied().chain([InstructionSet::EmulatedAmx])
}

fn exact(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(rounded(*value))).collect()
}

fn reference(a: impl Fn(usize, usize) -> f64, b: impl Fn(usize, usize) -> f64, bias: Option<&[f32]>, sizes: Sizes) -> Vec<f64> {
    let element = |row: usize, column: usize| {
        let sum: f64 = (0..sizes.depth).map(|k| a(row, k) * b(k, column)).sum();
        sum + bias.map_or(0.0, |bias| f64::from(bias[column]))
    };
    (0..sizes.rows * sizes.columns).map(|i| element(i / sizes.columns, i % sizes.columns)).collect()
}

fn check_product(sizes: Sizes, seed: u64) {
    let Sizes { rows, depth, columns } = sizes;
    let (a, b, bias) = (Unaligned::new(&values(rows * depth, seed)), Unaligned::new(&values(depth * columns, seed + 1)), values(columns, seed + 2));
    let (a, b) = (a.as_slice(), b.as_slice());
    let stored: Vec<bf16> = b.iter().map(|value| bf16::from_f32(*value)).collect();
    let (exact_a, exact_b) = (exact(a), exact(b));
    let plain = reference(|i, k| exact_a[i * depth + k], |k, j| exact_b[k * columns + j], Some(&bias), sizes);
    let turned = reference(|i, k| exact_a[i * depth + k], |k, j| exact_b[j * depth + k], None, sizes);
    let summed = reference(|i, k| exact_a[k * rows + i], |k, j| exact_b[k * columns + j], None, sizes);
    let sums = reference(|_, _| 1.0, |k, j| f64::from(b[k * columns + j]), None, Sizes { rows: 1, depth, columns });
    for set in sets() {
        let name = format!("{} {sizes:?}", set.name());
        let mut y = Unaligned::new(&poisoned(rows * columns));
        multiply_on(set, a, b, false, Some(&bias), sizes, y.as_mut_slice());
        check_close(&name, y.as_slice(), &plain, TOLERANCE);
        let mut same = poisoned(rows * columns);
        multiply_on(set, a, &stored, false, Some(&bias), sizes, &mut same);
        check_same(&name, &same, y.as_slice());
        multiply_on(set, a, b, true, None, sizes, y.as_mut_slice());
        check_close(&name, y.as_slice(), &turned, TOLERANCE);
        let (mut y, mut found) = (poisoned(rows * columns), poisoned(columns));
        multiply_transposed_on(set, a, b, sizes, &mut y, Some(&mut found));
        check_close(&name, &y, &summed, TOLERANCE);
        check_close(&name, &found, &sums, TOLERANCE);
    }
}

fn check_convolution(shape: Convolution, seed: u64) {
    let Convolution { batch, height, width, input_channels, output_channels, kernel_size, .. } = shape;
    let outputs = batch * shape.output_height() * shape.output_width();
    let x = Unaligned::new(&values(batch * height * width * input_channels, seed));
    let weight = Unaligned::new(&values(kernel_size * kernel_size * input_channels * output_channels, seed + 1));
    let dy = Unaligned::new(&values(outputs * output_channels, seed + 2));
    let (x, weight, dy, bias) = (x.as_slice(), weight.as_slice(), dy.as_slice(), values(output_channels, seed + 3));
    let (exact_x, exact_weight, exact_dy) = (exact(x), exact(weight), exact(dy));
    let mut y: Vec<f64> = (0..dy.len()).map(|i| f64::from(bias[i % output_channels])).collect();
    let (mut dx, mut dweight, mut dbias) = (vec![0.0f64; x.len()], vec![0.0f64; weight.len()], vec![0.0f64; output_channels]);
    let (mut unrounded_y, mut unrounded_dx, mut unrounded_dweight) = (y.clone(), dx.clone(), dweight.clone());
    products(shape, |i, j, k| {
        y[k] += exact_x[i] * exact_weight[j];
        dx[i] += exact_weight[j] * exact_dy[k];
        dweight[j] += exact_x[i] * exact_dy[k];
        unrounded_y[k] += f64::from(x[i]) * f64::from(weight[j]);
        unrounded_dx[i] += f64::from(weight[j]) * f64::from(dy[k]);
        unrounded_dweight[j] += f64::from(x[i]) * f64::from(dy[k]);
    });
    dy.iter().enumerate().for_each(|(i, value)| dbias[i % output_channels] += f64::from(*value));
    let [of_picture, unrounded_of_picture] = [&y, &unrounded_y].map(|y| OfPicture::new(&shape, &bias, y, dy, seed + 4));
    for set in sets() {
        let name = |what: &str| format!("{} {what} {shape:?}", set.name());
        let mut found = Unaligned::new(&poisoned(y.len()));
        forward_on(set, x, weight, Added::bias(&bias), shape, found.as_mut_slice());
        // Where Winograd's kernels make integers of values, those are finer than bf16.
        let in_integers = set.multiplies_pairs_of_integers();
        if in_integers && winograd::applies(&shape, true) {
            check_close(&name("y"), found.as_slice(), &unrounded_y, INTEGERS_TOLERANCE);
        } else {
            check_close(&name("y"), found.as_slice(), &y, TOLERANCE);
        }
        let mut found = Unaligned::new(&poisoned(y.len()));
        forward_on(set, x, weight, of_picture.added(), shape, found.as_mut_slice());
        if in_integers && winograd::applies(&shape, true) {
            check_close(&name("y with each picture's bias and a residual"), found.as_slice(), &unrounded_of_picture.y, INTEGERS_TOLERANCE);
        } else {
            check_close(&name("y with each picture's bias and a residual"), found.as_slice(), &of_picture.y, TOLERANCE);
        }
        let mut found = poisoned(x.len());
        input_gradient_on(set, weight, dy, shape, &mut found);
        if in_integers && shape.turned().is_some_and(|turned| winograd::applies(&turned, true)) {
            check_close(&name("dx"), &found, &unrounded_dx, INTEGERS_TOLERANCE);
        } else {
            check_close(&name("dx"), &found, &dx, TOLERANCE);
        }
        let (mut found, mut found_bias) = (poisoned(weight.len()), poisoned(output_channels));
        weight_gradient_on(set, x, dy, shape, &mut found, Some(&mut found_bias));
        if in_integers && filters_weight_gradient(set, &shape) {
            check_close(&name("dweight"), &found, &unrounded_dweight, INTEGERS_TOLERANCE);
        } else {
            check_close(&name("dweight"), &found, &dweight, TOLERANCE);
        }
        check_close(&name("dbias"), &found_bias, &dbias, TOLERANCE);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_of_random_sizes(rows in 0usize..120, depth in 0usize..300, columns in 0usize..70, seed in 0u64..1000) {
        check_product(Sizes { rows, depth, columns }, seed);
    }

    #[test]
    fn convolutions_of_random_shapes(
        (batch, height, width) in (0usize..4, 1usize..12, 1usize..12),
        (input_channels, output_channels) in (1usize..40, 1usize..40),
        (kernel_size, stride, before, after) in (1usize..5, 1usize..4, 0usize..3, 0usize..3),
        seed in 0u64..1000,
    ) {
        let shape = Convolution { batch, height, width, input_channels, output_channels, kernel_size, stride, before, after };
        prop_assume!(height.min(width) + before + after >= kernel_size);
        check_convolution(shape, seed);
    }

    #[test]
    fn rounding_is_to_nearest_even(bits in any::<u32>()) {
        let value = f32::from_bits(bits);
        prop_assert_eq!(value.bits(), bf16::from_f32(value).to_bits(), "{:e}", value);
    }
}

#[test]
fn rounding_at_the_edges() {
    for value in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0] {
        assert_eq!(value.bits(), bf16::from_f32(value).to_bits(), "{value:e}");
    }
    assert!(rounded(f32::from_bits(0x7f80_0001)).is_nan(), "a NaN with low bits alone");
}

#[test]
fn sizes_at_the_blocks_borders() {
    for (rows, depth, columns) in [(1, 1, 1), (97, 257, 33), (6, 512, 16), (64, 40, 32), (65, 40, 32), (300, 3, 5), (64, 2100, 48), (16, 64, 64)] {
        check_product(Sizes { rows, depth, columns }, 7);
    }
    for (rows, depth, columns) in [(0, 5, 5), (5, 0, 5), (5, 5, 0)] {
        check_product(Sizes { rows, depth, columns }, 8);
    }
}

#[test]
fn the_shapes_networks_use() {
    let shape = Convolution { batch: 2, height: 16, width: 16, input_channels: 32, output_channels: 32, kernel_size: 3, stride: 1, before: 1, after: 1 };
    for (kernel_size, stride, before, after) in [(3, 1, 1, 1), (3, 2, 0, 1), (3, 2, 1, 1), (4, 2, 1, 1), (4, 1, 1, 1), (1, 1, 0, 0), (1, 2, 0, 0)] {
        check_convolution(Convolution { kernel_size, stride, before, after, ..shape }, 3);
    }
    check_convolution(Convolution { input_channels: 300, output_channels: 20, height: 3, width: 4, ..shape }, 4);
    check_convolution(Convolution { input_channels: 3, width: 33, ..shape }, 5);
    check_convolution(Convolution { output_channels: 3, width: 8, ..shape }, 6);
    check_convolution(Convolution { batch: 1, height: 1, width: 1, input_channels: 1, output_channels: 1, ..shape }, 7);
    // First and last layers: one panel of neighbours and two, pixels left out, borders of unlike width.
    for (input_channels, output_channels) in [(3, 40), (7, 40), (40, 3), (40, 7), (2, 3)] {
        for (stride, before, after) in [(1, 1, 1), (2, 0, 1), (1, 2, 0), (1, 0, 2)] {
            check_convolution(Convolution { input_channels, output_channels, height: 9, width: 13, stride, before, after, ..shape }, 9);
        }
    }
    check_convolution(Convolution { batch: 0, ..shape }, 8);
}

#[test]
fn threads_and_batch_change_no_bit() {
    let shape = Convolution { batch: 5, height: 20, width: 20, input_channels: 40, output_channels: 48, kernel_size: 3, stride: 1, before: 1, after: 1 };
    let (x, weight, dy, bias) = (values(5 * 400 * 40, 1), values(9 * 40 * 48, 2), values(5 * 400 * 48, 3), values(48, 4));
    let sizes = Sizes { rows: 300, depth: 700, columns: 130 };
    let (a, b) = (values(300 * 700, 5), values(700 * 130, 6));
    for set in sets() {
        let run = |thread_count: usize| {
            threads::install(thread_count, || {
                let mut all = [poisoned(dy.len()), poisoned(x.len()), poisoned(weight.len()), poisoned(48), poisoned(300 * 130)];
                let [y, dx, dweight, dbias, product] = &mut all;
                forward_on(set, &x, &weight, Added::bias(&bias), shape, y);
                input_gradient_on(set, &weight, &dy, shape, dx);
                weight_gradient_on(set, &x, &dy, shape, dweight, Some(dbias));
                multiply_on(set, &a, &b, false, None, sizes, product);
                all
            })
        };
        let (one, all) = (run(1), run(0));
        one.iter().zip(&all).for_each(|(one, all)| check_same(set.name(), one, all));
        let (alone, place) = (Convolution { batch: 1, ..shape }, 3);
        let (mut y, mut dx) = (poisoned(400 * 48), poisoned(400 * 40));
        forward_on(set, &x[place * 400 * 40..][..400 * 40], &weight, Added::bias(&bias), alone, &mut y);
        input_gradient_on(set, &weight, &dy[place * 400 * 48..][..400 * 48], alone, &mut dx);
        check_same(set.name(), &y, &one[0][place * 400 * 48..][..400 * 48]);
        check_same(set.name(), &dx, &one[1][place * 400 * 40..][..400 * 40]);
        for (first, count) in [(0, 1), (17, 3), (200, 64), (100, 65)] {
            let mut few = poisoned(count * 130);
            multiply_on(set, &a[first * 700..][..count * 700], &b, false, None, Sizes { rows: count, ..sizes }, &mut few);
            check_same(set.name(), &few, &one[4][first * 130..][..count * 130]);
        }
    }
}

/// Says which bodies this processor could not run, so that a green test is not taken for more than it is.
#[test]
fn units_of_this_processor() {
    assert!(InstructionSet::EmulatedAmx.has_bf16_units(), "or the tests above would try the kernels of f32 in place of the tiles");
    for set in [InstructionSet::Avx2, InstructionSet::Avx512, InstructionSet::Avx512Vnni, InstructionSet::Avx512Bf16, InstructionSet::Amx] {
        if !InstructionSet::available().contains(&set) {
            println!("SKIPPED: this processor has no {}; its bf16 bodies were compiled, not run", set.name());
        }
    }
}

#[test]
#[should_panic(expected = "bf16 multiply Sizes { rows: 2, depth: 3, columns: 4 }: expected lengths of (a, b, y, bias) (6, 12, 8, 4), found (6, 12, 7, 4)")]
fn misuse_names_both() {
    super::product::multiply(&[0.0; 6], &[0.0f32; 12], false, None, Sizes { rows: 2, depth: 3, columns: 4 }, &mut [0.0; 7]);
}
