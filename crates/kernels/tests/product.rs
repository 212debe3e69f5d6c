//! Matrix products against sums in f64.

mod support;

use proptest::prelude::*;
use smalti_kernels::product::{Sizes, multiply, multiply_batch, multiply_transposed, multiply_transposed_batch};
use smalti_kernels::threads;
use support::{Unaligned, check_close, check_same, on_each_set, poisoned, values};

fn reference(a: impl Fn(usize, usize) -> f32, b: impl Fn(usize, usize) -> f32, bias: Option<&[f32]>, sizes: Sizes) -> Vec<f64> {
    let element = |row: usize, column: usize| {
        let sum: f64 = (0..sizes.depth).map(|k| f64::from(a(row, k)) * f64::from(b(k, column))).sum();
        sum + bias.map_or(0.0, |bias| f64::from(bias[column]))
    };
    (0..sizes.rows * sizes.columns).map(|i| element(i / sizes.columns, i % sizes.columns)).collect()
}

fn check(sizes: Sizes, seed: u64) {
    let Sizes { rows, depth, columns } = sizes;
    let (a, b, bias) = (Unaligned::new(&values(rows * depth, seed)), Unaligned::new(&values(depth * columns, seed + 1)), values(columns, seed + 2));
    let (a, b) = (a.as_slice(), b.as_slice());
    on_each_set(|set| {
        let name = format!("{} {sizes:?}", set.name());
        let mut y = Unaligned::new(&poisoned(rows * columns));
        multiply(a, b, false, Some(&bias), sizes, y.as_mut_slice());
        check_close(&name, y.as_slice(), &reference(|i, k| a[i * depth + k], |k, j| b[k * columns + j], Some(&bias), sizes), 1e-5);
        multiply(a, b, true, None, sizes, y.as_mut_slice());
        check_close(&name, y.as_slice(), &reference(|i, k| a[i * depth + k], |k, j| b[j * depth + k], None, sizes), 1e-5);
        let mut sums = poisoned(columns);
        let mut y = poisoned(rows * columns);
        multiply_transposed(a, b, sizes, &mut y, Some(&mut sums));
        check_close(&name, &y, &reference(|i, k| a[k * rows + i], |k, j| b[k * columns + j], None, sizes), 1e-5);
        let ones = Sizes { rows: 1, depth, columns };
        check_close(&name, &sums, &reference(|_, _| 1.0, |k, j| b[k * columns + j], None, ones), 1e-5);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn random_sizes(rows in 0usize..120, depth in 0usize..300, columns in 0usize..70, seed in 0u64..1000) {
        check(Sizes { rows, depth, columns }, seed);
    }
}

#[test]
fn sizes_at_the_blocks_borders() {
    for (rows, depth, columns) in
        [(1, 1, 1), (97, 257, 33), (6, 512, 16), (8, 40, 32), (9, 40, 32), (300, 3, 5), (64, 2100, 48), (0, 5, 5), (5, 0, 5), (5, 5, 0)]
    {
        check(Sizes { rows, depth, columns }, 7);
    }
}

#[test]
fn threads_and_neighbouring_rows_change_no_bit() {
    let sizes = Sizes { rows: 500, depth: 600, columns: 130 };
    let (a, b, bias) = (values(500 * 600, 1), values(600 * 130, 2), values(130, 3));
    let deep = Sizes { rows: 60, depth: 5000, columns: 60 };
    let (c, d) = (values(60 * 5000, 4), values(5000 * 60, 5));
    on_each_set(|set| {
        let run = |thread_count: usize| {
            let (mut y, mut z, mut sums) = (poisoned(500 * 130), poisoned(60 * 60), poisoned(60));
            threads::install(thread_count, || {
                multiply(&a, &b, false, Some(&bias), sizes, &mut y);
                multiply_transposed(&c, &d, deep, &mut z, Some(&mut sums));
            });
            [y, z, sums]
        };
        let (one, all) = (run(1), run(0));
        one.iter().zip(&all).for_each(|(one, all)| check_same(set.name(), one, all));
        for (row, rows) in [(0, 1), (1, 2), (95, 5), (96, 1), (300, 8), (400, 16), (410, 17), (499, 1)] {
            let mut few = poisoned(rows * 130);
            multiply(&a[row * 600..][..rows * 600], &b, false, Some(&bias), Sizes { rows, ..sizes }, &mut few);
            check_same(set.name(), &few, &one[0][row * 130..][..rows * 130]);
        }
    });
}

#[test]
fn few_rows_are_shared_out_in_every_way_with_the_same_bits() {
    // Whole rows of B or pieces of them, one slice of the depth or several, a last one that is short: against rows among many.
    for (depth, columns) in [(100, 1100), (128, 200), (129, 200), (300, 1024), (300, 1025), (640, 40), (257, 5000)] {
        let (a, b, bias) = (values(20 * depth, 1), values(depth * columns, 2), values(columns, 3));
        on_each_set(|set| {
            let mut all = poisoned(20 * columns);
            multiply(&a, &b, false, Some(&bias), Sizes { rows: 20, depth, columns }, &mut all);
            for (rows, thread_count) in [(1, 1), (1, 0), (2, 0), (3, 1), (3, 0), (16, 0)] {
                let mut few = poisoned(rows * columns);
                threads::install(thread_count, || multiply(&a[..rows * depth], &b, false, Some(&bias), Sizes { rows, depth, columns }, &mut few));
                check_same(&format!("{} {rows} x {depth} x {columns}", set.name()), &few, &all[..rows * columns]);
            }
        });
    }
}

#[test]
fn batches_are_products_one_by_one() {
    let sizes = Sizes { rows: 33, depth: 70, columns: 41 };
    let (a, b) = (values(5 * 33 * 70, 1), values(5 * 70 * 41, 2));
    on_each_set(|set| {
        let (mut y, mut z) = (poisoned(5 * 33 * 41), poisoned(5 * 33 * 41));
        multiply_batch(&a, &b, true, None, sizes, 5, &mut y);
        multiply_transposed_batch(&a, &b, sizes, 5, &mut z);
        for i in 0..5 {
            let (a, b) = (&a[i * 33 * 70..][..33 * 70], &b[i * 70 * 41..][..70 * 41]);
            let mut alone = poisoned(33 * 41);
            multiply(a, b, true, None, sizes, &mut alone);
            check_same(set.name(), &alone, &y[i * 33 * 41..][..33 * 41]);
            multiply_transposed(a, b, sizes, &mut alone, None);
            check_same(set.name(), &alone, &z[i * 33 * 41..][..33 * 41]);
        }
    });
}

#[test]
#[should_panic(expected = "expected lengths of (a, b, y, bias) (6, 12, 8, 4), found (6, 12, 7, 4)")]
fn misuse_names_both() {
    multiply(&[0.0; 6], &[0.0; 12], false, None, Sizes { rows: 2, depth: 3, columns: 4 }, &mut [0.0; 7]);
}
