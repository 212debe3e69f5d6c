//! y = A B for so few rows of A that reading B is all that costs: token-by-token decoding.
//!
//! B is read once, where it lies, row by row, and the sums wait in y, which stays in the first-level cache. Each element is the same chain of multiply-adds
//! as in `by_rows`, so a row's result does not depend on how many rows come with it.

use super::PARALLEL_FROM;
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::Shared;
use crate::threads::{count, each, part};
use crate::vector::{Vector, load, prefetch, store};
use std::ops::Range;

/// Up to how many rows of A this is faster than packing B first.
pub(super) const FEW_ROWS: usize = 16;
/// Rows of B that are multiplied before sums go back to y.
const DEPTH_STEP: usize = 8;
/// Columns of a task: the sums of `FEW_ROWS` rows and two steps of B stay in the first-level cache.
const COLUMN_BLOCK: usize = 512;
/// Floats of a cache line; tasks meet at multiples of it.
const LINE: usize = 16;

/// y [rows, columns] (rows `columns` apart from `out` on) = a [rows, depth] * b [depth, columns] + bias.
pub(super) fn few_rows(
    set: InstructionSet,
    a: &[f32],
    b: &[f32],
    bias: Option<&[f32]>,
    depth: usize,
    columns: usize,
    rows: usize,
    out: &Shared<f32>,
    offset: usize,
    parallel: bool,
) {
    let lines = columns.div_ceil(LINE);
    let small = !parallel || rows * depth * columns < PARALLEL_FROM;
    // How the columns are shared out changes no element.
    let parts = columns.div_ceil(COLUMN_BLOCK).max(if small { 1 } else { 2 * count() }).clamp(1, lines.max(1));
    let task = |index: usize| {
        let lines = part(lines, parts, index);
        let columns_here = lines.start * LINE..(lines.end * LINE).min(columns);
        // SAFETY: only elements (row, column) of this task's columns are touched through it.
        let y = unsafe { out.at(offset) };
        set.run(FewRows { a, b, bias, depth, columns, rows, y, columns_here });
    };
    if small { (0..parts).for_each(task) } else { each(parts, task) }
}

struct FewRows<'a> {
    a: &'a [f32],
    b: &'a [f32],
    bias: Option<&'a [f32]>,
    depth: usize,
    columns: usize,
    rows: usize,
    y: *mut f32,
    columns_here: Range<usize>,
}

impl Kernel for FewRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Range { start, end } = self.columns_here.clone();
        for row in 0..self.rows {
            // SAFETY: this task's columns of y are its own.
            let y = unsafe { std::slice::from_raw_parts_mut(self.y.add(row * self.columns + start), end - start) };
            match self.bias {
                Some(bias) => y.copy_from_slice(&bias[start..end]),
                None => y.fill(0.0),
            }
        }
        let mut d = 0;
        while d + DEPTH_STEP <= self.depth {
            if self.rows == 1 {
                self.step_of_one::<V>(d)
            } else {
                self.step::<V, DEPTH_STEP>(d)
            }
            d += DEPTH_STEP;
        }
        while d < self.depth {
            self.step::<V, 1>(d);
            d += 1;
        }
    }
}

impl FewRows<'_> {
    /// y += a[.., d..d + K] * b[d..d + K, ..]
    #[inline(always)]
    fn step<V: Vector, const K: usize>(&self, d: usize) {
        let Range { start, end } = self.columns_here.clone();
        let mut column = start;
        while column < end {
            // SAFETY: `K` rows of b from `d` on and all rows of a and y have these columns; parts end at the task's last one.
            unsafe {
                if (column - start).is_multiple_of(LINE) {
                    self.prefetch(d + K, K, column);
                }
                let left = end - column;
                // Not `array::from_fn`, whose closure would be compiled without this instruction set.
                let mut b = [V::zero(); K];
                for (i, b) in b.iter_mut().enumerate() {
                    *b = load(self.b.as_ptr().add((d + i) * self.columns + column), left);
                }
                for row in 0..self.rows {
                    let y = self.y.add(row * self.columns + column);
                    let a = self.a.as_ptr().add(row * self.depth + d);
                    let mut sum = load::<V>(y, left);
                    for (i, b) in b.iter().enumerate() {
                        sum = V::splat(*a.add(i)).mul_add(*b, sum);
                    }
                    store(sum, y, left);
                }
            }
            column += V::LANES;
        }
    }

    /// The same for a single row, whose factors stay in registers.
    #[inline(always)]
    fn step_of_one<V: Vector>(&self, d: usize) {
        let Range { start, end } = self.columns_here.clone();
        let mut a = [V::zero(); DEPTH_STEP];
        for (i, a) in a.iter_mut().enumerate() {
            *a = V::splat(self.a[d + i]);
        }
        let mut column = start;
        while column < end {
            // SAFETY: as in `step`.
            unsafe {
                if (column - start).is_multiple_of(LINE) {
                    self.prefetch(d + DEPTH_STEP, DEPTH_STEP, column);
                }
                let left = end - column;
                let y = self.y.add(column);
                let mut sum = load::<V>(y, left);
                for (i, a) in a.iter().enumerate() {
                    sum = a.mul_add(load(self.b.as_ptr().add((d + i) * self.columns + column), left), sum);
                }
                store(sum, y, left);
            }
            column += V::LANES;
        }
    }

    /// The rows of b that come next: each begins on another page, where no hardware looks ahead.
    #[inline(always)]
    fn prefetch(&self, d: usize, count: usize, column: usize) {
        for i in d..d + count {
            prefetch(self.b.as_ptr().wrapping_add(i * self.columns + column));
        }
    }
}
