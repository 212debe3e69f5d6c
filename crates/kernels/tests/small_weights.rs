//! Products with narrow weights: those of 16 bits against the same weights in f32, bit for bit; those of 8 bits against sums in f64.

mod support;

use half::{bf16, f16};
use proptest::prelude::*;
use smalti_kernels::product::{self, Sizes};
use smalti_kernels::small_weights::{Weight, multiply, multiply_scaled, quantize, with_wide};
use support::{Unaligned, check_close, check_same, on_each_set, poisoned, values};

fn check_same_as_wide<W: Weight>(narrow: impl Fn(f32) -> W, sizes: Sizes, seed: u64) {
    let Sizes { rows, depth, columns } = sizes;
    let (a, bias) = (Unaligned::new(&values(rows * depth, seed)), values(columns, seed + 2));
    let b: Vec<W> = std::iter::once(W::default()).chain(values(depth * columns, seed + 1).into_iter().map(narrow)).collect();
    let b = &b[1..]; // one off the allocator's alignment
    let wide: Vec<f32> = b.iter().map(|value| value.widen()).collect();
    on_each_set(|set| {
        let name = format!("{} {sizes:?}", set.name());
        with_wide(b, |found| check_same(&name, found, &wide));
        for (transposed, bias) in [(false, Some(&bias[..])), (false, None), (true, None)] {
            let (mut y, mut expected) = (Unaligned::new(&poisoned(rows * columns)), poisoned(rows * columns));
            multiply(a.as_slice(), b, transposed, bias, sizes, y.as_mut_slice());
            product::multiply(a.as_slice(), &wide, transposed, bias, sizes, &mut expected);
            check_same(&name, y.as_slice(), &expected);
        }
    });
}

fn check_scaled(sizes: Sizes, seed: u64) {
    let Sizes { rows, depth, columns } = sizes;
    let (a, b, bias) = (values(rows * depth, seed), values(depth * columns, seed + 1), values(columns, seed + 2));
    let (q, scales) = quantize(&b, columns);
    for (i, value) in b.iter().enumerate() {
        let error = (f32::from(q[i]) * scales[i % columns] - value).abs();
        assert!(error <= 0.501 * scales[i % columns], "weight {i}: {value}, {} * {}", q[i], scales[i % columns]);
    }
    let element = |row: usize, column: usize| {
        let sum: f64 = (0..depth).map(|k| f64::from(a[row * depth + k]) * f64::from(q[k * columns + column]) * f64::from(scales[column])).sum();
        sum + f64::from(bias[column])
    };
    let expected: Vec<f64> = (0..rows * columns).map(|i| element(i / columns, i % columns)).collect();
    on_each_set(|set| {
        let mut y = poisoned(rows * columns);
        multiply_scaled(&a, &q, &scales, Some(&bias), sizes, &mut y);
        check_close(&format!("{} {sizes:?}", set.name()), &y, &expected, 1e-5);
        for row in 0..rows.min(3) {
            let mut alone = poisoned(columns);
            multiply_scaled(&a[row * depth..][..depth], &q, &scales, Some(&bias), Sizes { rows: 1, ..sizes }, &mut alone);
            check_same(set.name(), &alone, &y[row * columns..][..columns]);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn random_sizes(rows in 0usize..20, depth in 0usize..300, columns in 0usize..200, seed in 0u64..1000) {
        let sizes = Sizes { rows, depth, columns };
        check_same_as_wide(f16::from_f32, sizes, seed);
        check_same_as_wide(bf16::from_f32, sizes, seed);
        check_scaled(sizes, seed);
    }
}

#[test]
fn sizes_of_decoding() {
    for (rows, columns) in [(1, 768), (2, 1000), (8, 512), (9, 512)] {
        check_same_as_wide(f16::from_f32, Sizes { rows, depth: 700, columns }, 3);
        check_same_as_wide(bf16::from_f32, Sizes { rows, depth: 700, columns }, 4);
    }
    check_scaled(Sizes { rows: 2, depth: 768, columns: 300 }, 5);
}

#[test]
fn a_column_of_zeros_stays_zero() {
    let (q, scales) = quantize(&[0.0, 1.0, 0.0, -2.0], 2);
    assert_eq!((q, scales), (vec![0, 64, 0, -127], vec![1.0, 2.0 / 127.0]));
}

#[test]
#[should_panic(expected = "expected lengths of (a, b, y, bias) (6, 12, 8, 4), found (6, 12, 7, 4)")]
fn misuse_names_both() {
    multiply(&[0.0; 6], &[bf16::ZERO; 12], false, None, Sizes { rows: 2, depth: 3, columns: 4 }, &mut [0.0; 7]);
}
