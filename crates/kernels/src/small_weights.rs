//! Products with weights stored in 16 or 8 bits: what decoding token by token needs, where reading the weights takes all the time.
//!
//! Weights are widened on the way into registers, which is exact: with f16 or bf16 weights each element is, bit for bit, what `product::multiply` gives
//! for the same weights in f32.

use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::product::{self, FEW_ROWS, Sizes, few_rows};
use crate::threads::{each, part};
use crate::vector::Vector;
use half::{bf16, f16};

/// What weights are stored as.
pub trait Weight: Copy + Default + Send + Sync + 'static {
    fn widen(self) -> f32;
    /// The same slice, where nothing is to be widened.
    fn as_floats(_values: &[Self]) -> Option<&[f32]> {
        None
    }
    #[doc(hidden)]
    #[allow(private_interfaces, private_bounds)]
    unsafe fn load<V: Vector>(from: *const Self) -> V;
}

macro_rules! weight {
    ($type:ty, $load:ident, $widen:expr $(, $as_floats:item)?) => {
        impl Weight for $type {
            $($as_floats)?
            #[inline(always)]
            fn widen(self) -> f32 {
                $widen(self)
            }
            #[inline(always)]
            #[allow(private_interfaces, private_bounds)]
            unsafe fn load<V: Vector>(from: *const Self) -> V {
                // SAFETY: the caller's promise.
                unsafe { V::$load(from) }
            }
        }
    };
}
weight!(
    f32,
    load,
    std::convert::identity,
    fn as_floats(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
);
weight!(f16, load_f16, f16::to_f32);
weight!(bf16, load_bf16, bf16::to_f32);
weight!(i8, load_i8, f32::from);

/// y [rows, columns] = a [rows, depth] * b [depth, columns] + bias [columns]; `b_transposed`: b lies as [columns, depth].
pub fn multiply<W: Weight>(a: &[f32], b: &[W], b_transposed: bool, bias: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    check(a, b, bias, sizes, y);
    multiply_on(InstructionSet::current(), a, b, b_transposed, bias, sizes, y);
}

/// As `multiply`, unchecked: few rows read the weights where they lie, once for all; more rows earn a copy in f32.
pub(crate) fn multiply_on<W: Weight>(set: InstructionSet, a: &[f32], b: &[W], b_transposed: bool, bias: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    if sizes.rows > FEW_ROWS || b_transposed {
        return with_wide(b, |wide| product::multiply_on(set, a, wide, b_transposed, bias, sizes, y));
    }
    few_rows(set, a, b, bias, None, sizes, &Shared::new(y), 0, true);
}

/// y [rows, columns] = a [rows, depth] * (q [depth, columns] * scales [columns]) + bias [columns]: weights of 8 bits, a scale for each output.
pub fn multiply_scaled(a: &[f32], q: &[i8], scales: &[f32], bias: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    check(a, q, bias, sizes, y);
    assert!(scales.len() == sizes.columns, "multiply_scaled {sizes:?}: expected {} scales, found {}", sizes.columns, scales.len());
    // In blocks of rows, so that a row's result does not depend on how many there are.
    for first in (0..sizes.rows).step_by(FEW_ROWS) {
        let rows = FEW_ROWS.min(sizes.rows - first);
        let (a, y) = (&a[first * sizes.depth..][..rows * sizes.depth], &mut y[first * sizes.columns..][..rows * sizes.columns]);
        few_rows(InstructionSet::current(), a, q, bias, Some(scales), Sizes { rows, ..sizes }, &Shared::new(y), 0, true);
    }
}

/// Weights [depth, columns] as 8-bit numbers and a scale for each column: the largest magnitude of a column becomes 127.
pub fn quantize(weights: &[f32], columns: usize) -> (Vec<i8>, Vec<f32>) {
    let mut largest = vec![0.0f32; columns];
    for row in weights.chunks_exact(columns.max(1)) {
        largest.iter_mut().zip(row).for_each(|(largest, value)| *largest = largest.max(value.abs()));
    }
    let scales: Vec<f32> = largest.into_iter().map(|largest| if largest > 0.0 { largest / 127.0 } else { 1.0 }).collect();
    let quantized = weights.iter().enumerate().map(|(i, value)| (value / scales[i % columns]).round() as i8).collect(); // `as` saturates
    (quantized, scales)
}

/// Calls `body` with the weights as floats, for operations that have no body for narrow ones: where they lie, or a copy in memory that is kept between calls.
pub fn with_wide<W: Weight, R>(values: &[W], body: impl FnOnce(&[f32]) -> R) -> R {
    if let Some(values) = W::as_floats(values) {
        return body(values);
    }
    let mut wide = Scratch::new(values.len());
    widen(values, wide.as_mut_slice());
    body(wide.as_slice())
}

fn widen<W: Weight>(values: &[W], out: &mut [f32]) {
    const TASK_LEN: usize = 64 * 1024;
    let out = Shared::new(out);
    let task_count = values.len().div_ceil(TASK_LEN);
    each(task_count, |task| {
        let range = part(values.len(), task_count, task);
        // SAFETY: tasks have ranges of their own.
        let out = unsafe { out.slice(range.start, range.len()) };
        InstructionSet::current().run(Widen { values: &values[range], out });
    });
}

fn check<W>(a: &[f32], b: &[W], bias: Option<&[f32]>, sizes: Sizes, y: &[f32]) {
    let Sizes { rows, depth, columns } = sizes;
    let lengths = (a.len(), b.len(), y.len(), bias.map_or(columns, <[f32]>::len));
    let expected = (rows * depth, depth * columns, rows * columns, columns);
    assert!(lengths == expected, "multiply of small weights {sizes:?}: expected lengths of (a, b, y, bias) {expected:?}, found {lengths:?}");
}

struct Widen<'a, W> {
    values: &'a [W],
    out: &'a mut [f32],
}

impl<W: Weight> Kernel for Widen<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let whole = self.values.len() / V::LANES * V::LANES;
        for i in (0..whole).step_by(V::LANES) {
            // SAFETY: `LANES` numbers lie from i on, on both sides.
            unsafe { W::load::<V>(self.values.as_ptr().add(i)).store(self.out.as_mut_ptr().add(i)) };
        }
        self.out[whole..].iter_mut().zip(&self.values[whole..]).for_each(|(to, value)| *to = value.widen());
    }
}
