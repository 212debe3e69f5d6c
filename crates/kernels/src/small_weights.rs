//! Products with weights stored in 16 or 8 bits: what decoding token by token needs, where reading the weights takes all the time.
//!
//! Weights are widened on the way into registers, which is exact: with f16 or bf16 weights each element is, bit for bit, what `product::multiply` gives
//! for the same weights in f32.

use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::product::{self, Sizes};
use crate::threads::{count, each, part};
use crate::vector::Vector;
use half::{bf16, f16};
use std::ops::Range;

/// Up to so many rows the weights are read where they lie, once for all rows; more rows earn a copy in f32.
pub(crate) const FEW_ROWS: usize = 8;
/// Products with fewer multiply-adds than this stay on one thread.
const PARALLEL_FROM: usize = 64 * 1024;
/// Depths whose weights are in registers together.
const DEPTHS: usize = 4;

/// A narrow number.
pub trait Weight: Copy + Default + Send + Sync + 'static {
    fn widen(self) -> f32;
    #[doc(hidden)]
    #[allow(private_interfaces, private_bounds)]
    unsafe fn load<V: Vector>(from: *const Self) -> V;
}

macro_rules! weight {
    ($type:ty, $load:ident, $widen:expr) => {
        impl Weight for $type {
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
weight!(f16, load_f16, f16::to_f32);
weight!(bf16, load_bf16, bf16::to_f32);
weight!(i8, load_i8, f32::from);

/// y [rows, columns] = a [rows, depth] * b [depth, columns] + bias [columns]; `b_transposed`: b lies as [columns, depth].
pub fn multiply<W: Weight>(a: &[f32], b: &[W], b_transposed: bool, bias: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    check(a, b, bias, sizes, y);
    if sizes.rows > FEW_ROWS || b_transposed {
        return with_wide(b, |wide| product::multiply(a, wide, b_transposed, bias, sizes, y));
    }
    multiply_few(InstructionSet::current(), a, b, bias, None, sizes, y);
}

/// y [rows, columns] = a [rows, depth] * (q [depth, columns] * scales [columns]) + bias [columns]: weights of 8 bits, a scale for each output.
pub fn multiply_scaled(a: &[f32], q: &[i8], scales: &[f32], bias: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    check(a, q, bias, sizes, y);
    assert!(scales.len() == sizes.columns, "multiply_scaled {sizes:?}: expected {} scales, found {}", sizes.columns, scales.len());
    // In blocks of rows, so that a row's result does not depend on how many there are.
    for first in (0..sizes.rows).step_by(FEW_ROWS) {
        let rows = FEW_ROWS.min(sizes.rows - first);
        let (a, y) = (&a[first * sizes.depth..][..rows * sizes.depth], &mut y[first * sizes.columns..][..rows * sizes.columns]);
        multiply_few(InstructionSet::current(), a, q, bias, Some(scales), Sizes { rows, ..sizes }, y);
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

/// Calls `body` with the weights as floats, for operations that have no body for narrow ones; the copy is in memory that is kept between calls.
pub fn with_wide<W: Weight, R>(values: &[W], body: impl FnOnce(&[f32]) -> R) -> R {
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

pub(crate) fn multiply_few<W: Weight>(set: InstructionSet, a: &[f32], b: &[W], bias: Option<&[f32]>, scales: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    let Sizes { rows, depth, columns } = sizes;
    let small = rows * depth * columns < PARALLEL_FROM;
    // Wide shares, so that memory is read in long runs. They change no element.
    let task_count = if small { 1 } else { (2 * count()).clamp(1, columns.div_ceil(64).max(1)) };
    let out = Shared::new(y);
    let task = |task: usize| {
        let whole = part(columns.div_ceil(16), task_count, task);
        let columns = (whole.start * 16).min(columns)..(whole.end * 16).min(columns);
        // SAFETY: each task writes its own columns of y; every row has `sizes.columns` of them.
        set.run(FewRows { a, b, bias, scales, sizes, columns, y: unsafe { out.at(0) } });
    };
    if small { (0..task_count).for_each(task) } else { each(task_count, task) }
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

/// A few rows by a run of columns: sums stay in y, weights pass once, `DEPTHS` rows of them side by side.
struct FewRows<'a, W> {
    a: &'a [f32],
    b: &'a [W],
    bias: Option<&'a [f32]>,
    scales: Option<&'a [f32]>,
    sizes: Sizes,
    columns: Range<usize>,
    y: *mut f32,
}

impl<W: Weight> Kernel for FewRows<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Sizes { rows, depth, columns } = self.sizes;
        let Range { start, end } = self.columns.clone();
        if start >= end {
            return;
        }
        // SAFETY: all accesses are to `rows` rows of a and y, `depth` rows of b, and their columns start..end; the check saw to the lengths.
        unsafe {
            for row in 0..rows {
                let y = std::slice::from_raw_parts_mut(self.y.add(row * columns + start), end - start);
                match self.bias.filter(|_| self.scales.is_none()) {
                    Some(bias) => y.copy_from_slice(&bias[start..end]),
                    None => y.fill(0.0),
                }
            }
            let whole = start + (end - start) / (2 * V::LANES) * (2 * V::LANES);
            let mut d = 0;
            while d + DEPTHS <= depth {
                for column in (start..whole).step_by(2 * V::LANES) {
                    self.step::<V, DEPTHS, 2>(d, column);
                }
                d += DEPTHS;
            }
            while d < depth {
                for column in (start..whole).step_by(2 * V::LANES) {
                    self.step::<V, 1, 2>(d, column);
                }
                d += 1;
            }
            if whole < end {
                self.edge::<V>(whole, end);
            }
            if let Some(scales) = self.scales {
                for row in 0..rows {
                    let y = std::slice::from_raw_parts_mut(self.y.add(row * columns + start), end - start);
                    for (i, value) in y.iter_mut().enumerate() {
                        *value = *value * scales[start + i] + self.bias.map_or(0.0, |bias| bias[start + i]);
                    }
                }
            }
        }
    }
}

impl<W: Weight> FewRows<'_, W> {
    /// D depths by N vectors of columns, for every row.
    #[inline(always)]
    unsafe fn step<V: Vector, const D: usize, const N: usize>(&self, depth: usize, column: usize) {
        let Sizes { rows, columns, .. } = self.sizes;
        // SAFETY: the depths and columns are the matrix's, the caller's promise.
        unsafe {
            let b = self.b.as_ptr().add(depth * columns + column);
            // Plain loops, not `array::from_fn`, whose closure would be compiled without this instruction set.
            let mut weights = [[V::zero(); N]; D];
            for (d, weights) in weights.iter_mut().enumerate() {
                for (n, weight) in weights.iter_mut().enumerate() {
                    *weight = W::load(b.add(d * columns + n * V::LANES));
                }
            }
            for row in 0..rows {
                let a = self.a.as_ptr().add(row * self.sizes.depth + depth);
                let y = self.y.add(row * columns + column);
                let mut sums = [V::zero(); N];
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(y.add(n * V::LANES));
                }
                for (d, weights) in weights.iter().enumerate() {
                    let a = V::splat(*a.add(d));
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum = a.mul_add(*weight, *sum);
                    }
                }
                for (n, sum) in sums.iter().enumerate() {
                    sum.store(y.add(n * V::LANES));
                }
            }
        }
    }

    /// The last columns, fewer than two vectors: through a copy as wide as they are.
    #[inline(always)]
    unsafe fn edge<V: Vector>(&self, first: usize, end: usize) {
        let Sizes { rows, depth, columns } = self.sizes;
        let used = end - first;
        let mut weights = [W::default(); 32];
        // SAFETY: as `run`; the copies hold the widest pair of vectors.
        unsafe {
            for row in 0..rows {
                let y = self.y.add(row * columns + first);
                let mut sums = [0.0f32; 32];
                std::ptr::copy_nonoverlapping(y, sums.as_mut_ptr(), used);
                let mut sums: [V; 2] = [V::load(sums.as_ptr()), V::load(sums.as_ptr().add(V::LANES))];
                for d in 0..depth {
                    std::ptr::copy_nonoverlapping(self.b.as_ptr().add(d * columns + first), weights.as_mut_ptr(), used);
                    let a = V::splat(self.a[row * depth + d]);
                    for (n, sum) in sums.iter_mut().enumerate() {
                        *sum = a.mul_add(W::load(weights.as_ptr().add(n * V::LANES)), *sum);
                    }
                }
                let mut out = [0.0f32; 32];
                sums[0].store(out.as_mut_ptr());
                sums[1].store(out.as_mut_ptr().add(V::LANES));
                std::ptr::copy_nonoverlapping(out.as_ptr(), y, used);
            }
        }
    }
}
