//! y = A B for so few rows of A that reading B is all that costs: token-by-token decoding.
//!
//! B is read once, where it lies, row by row, and the sums wait in the caches. Each element is the same chain of multiply-adds as in `by_rows`, so a
//! row's result does not depend on how many rows come with it.

use super::PARALLEL_FROM;
use super::packing::load_pair;
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::threads::{count, each, part};
use crate::vector::{Vector, prefetch};
use std::ops::Range;

/// Up to how many rows of A this is faster than packing B first.
pub(super) const FEW_ROWS: usize = 16;
/// Rows of B that are multiplied before sums go back to memory. Rows of wide matrices lie a power of two apart and share a set of the cache, which has eight
/// places: room for these and those that come next.
const DEPTH_STEP: usize = 4;
/// Floats of the sums of a task: 64 KiB, which stay in the second-level cache. Fewer columns would keep them nearer, but then each row of B is read in
/// pieces too short for the hardware to look ahead.
const SUM_SIZE: usize = 16 * 1024;
/// Most columns of a task.
const COLUMN_BLOCK: usize = 4096;
/// Floats of a pair of the widest vectors; tasks meet at multiples of it.
const STEP: usize = 32;

/// y [rows, columns] (from `offset` on in `out`) = a [rows, depth] * b [depth, columns] + bias.
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
    let steps = columns.div_ceil(STEP);
    let small = !parallel || rows * depth * columns < PARALLEL_FROM;
    // How the columns are shared out changes no element.
    let block = (SUM_SIZE / rows.max(1)).min(COLUMN_BLOCK);
    let parts = columns.div_ceil(block).max(if small { 1 } else { count() }).clamp(1, steps.max(1));
    let task = |index: usize| {
        let steps = part(steps, parts, index);
        let columns_here = steps.start * STEP..(steps.end * STEP).min(columns);
        let len = columns_here.len();
        let mut sums = Scratch::new(rows * len.next_multiple_of(STEP));
        // SAFETY: each task writes its own columns of every row.
        let write = |row: usize| unsafe { out.slice(offset + row * columns + columns_here.start, len) };
        set.run(FewRows { a, b, bias, depth, columns, rows, sums: sums.as_mut_slice(), columns_here: columns_here.clone() });
        for (row, sums) in sums.as_slice().chunks_exact(len.next_multiple_of(STEP)).enumerate() {
            write(row).copy_from_slice(&sums[..len]);
        }
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
    /// [rows][this task's columns, rounded up to whole steps]
    sums: &'a mut [f32],
    columns_here: Range<usize>,
}

impl Kernel for FewRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let here = self.columns_here.clone();
        for sums in self.sums.chunks_exact_mut(here.len().next_multiple_of(STEP)) {
            match self.bias {
                Some(bias) => sums[..here.len()].copy_from_slice(&bias[here.clone()]),
                None => sums[..here.len()].fill(0.0),
            }
            sums[here.len()..].fill(0.0);
        }
        let mut d = 0;
        while d + DEPTH_STEP <= self.depth {
            self.step::<V, DEPTH_STEP>(d);
            d += DEPTH_STEP;
        }
        while d < self.depth {
            self.step::<V, 1>(d);
            d += 1;
        }
    }
}

impl FewRows<'_> {
    /// sums += a[.., d..d + K] * b[d..d + K, ..]
    #[inline(always)]
    fn step<V: Vector, const K: usize>(&mut self, d: usize) {
        let Range { start, end } = self.columns_here.clone();
        let width = 2 * V::LANES;
        let sum_stride = (end - start).next_multiple_of(STEP);
        let mut column = start;
        while column < end {
            // SAFETY: `K` rows of b from `d` on and all rows of a have these columns, where parts end; sums have room for whole pairs.
            unsafe {
                // Not `array::from_fn`, whose closure would be compiled without this instruction set.
                let mut b = [[V::zero(); 2]; K];
                for (i, b) in b.iter_mut().enumerate() {
                    *b = load_pair(self.b.as_ptr().add((d + i) * self.columns + column), width.min(end - column));
                }
                for row in 0..self.rows {
                    let to = self.sums.as_mut_ptr().add(row * sum_stride + column - start);
                    let a = self.a.as_ptr().add(row * self.depth + d);
                    let mut sum = [V::load(to), V::load(to.add(V::LANES))];
                    for (i, b) in b.iter().enumerate() {
                        let a = V::splat(*a.add(i));
                        sum = [a.mul_add(b[0], sum[0]), a.mul_add(b[1], sum[1])];
                    }
                    sum[0].store(to);
                    sum[1].store(to.add(V::LANES));
                }
                // What comes next lies on other pages, where no hardware looks ahead; asked for last, so that it takes the place of what is done with.
                for i in 0..K {
                    let next = self.b.as_ptr().wrapping_add((d + K + i) * self.columns + column);
                    prefetch(next);
                    if width > 16 {
                        prefetch(next.wrapping_add(16));
                    }
                }
            }
            column += width;
        }
    }
}
