//! y = A B for so few rows of A that reading B is all that costs: token-by-token decoding.
//!
//! B is read once, where it lies, row by row, and the sums wait in the caches. Each element is the same chain of multiply-adds as in `by_rows`, so a
//! row's result does not depend on how many rows come with it. Weights of 16 or 8 bits are widened on the way into registers, which is exact.

use super::PARALLEL_FROM;
use super::Sizes;
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::small_weights::Weight;
use crate::threads::{count, each, part};
use crate::vector::{Vector, prefetch};
use std::ops::Range;

/// Up to how many rows of A this is faster than packing B first.
pub(crate) const FEW_ROWS: usize = 16;
/// Rows of B that are multiplied before sums go back to memory. Rows of wide matrices lie a power of two apart and share a set of the cache, which has eight
/// places: room for these and those that come next.
const DEPTH_STEP: usize = 4;
/// Rows of A from which on vectors of `WIDEST` lanes take two such steps at once.
const LONG_STEP_FROM: usize = 4;
/// Lanes of the widest vectors.
const WIDEST: usize = STEP / 2;
/// Floats of the sums of a task: 64 KiB, which stay in the second-level cache. Fewer columns would keep them nearer, but then each row of B is read in
/// pieces too short for the hardware to look ahead.
const SUM_SIZE: usize = 16 * 1024;
/// Most columns of a task.
const COLUMN_BLOCK: usize = 4096;
/// Floats of a pair of the widest vectors; tasks meet at multiples of it.
pub(crate) const STEP: usize = 32;
/// Bytes of a cache line.
const LINE: usize = 64;

/// y [rows, columns] (from `offset` on in `out`) = a [rows, depth] * b [depth, columns] + bias, or with a scale for each column a * b * scales + bias.
pub(crate) fn few_rows<W: Weight>(
    set: InstructionSet,
    a: &[f32],
    b: &[W],
    bias: Option<&[f32]>,
    scales: Option<&[f32]>,
    sizes: Sizes,
    out: &Shared<f32>,
    offset: usize,
    parallel: bool,
) {
    let start = bias.filter(|_| scales.is_none());
    share_columns(sizes, start, parallel, |columns_here, sums| {
        set.run(FewRows { a, b, sizes, sums, columns_here: columns_here.clone() });
        for (row, sums) in sums.chunks_exact_mut(columns_here.len().next_multiple_of(STEP)).enumerate() {
            let sums = &mut sums[..columns_here.len()];
            if let Some(scales) = scales {
                for (sum, column) in sums.iter_mut().zip(columns_here.clone()) {
                    *sum = *sum * scales[column] + bias.map_or(0.0, |bias| bias[column]);
                }
            }
            // SAFETY: each task writes its own columns of every row.
            unsafe { out.slice(offset + row * sizes.columns + columns_here.start, columns_here.len()) }.copy_from_slice(sums);
        }
    });
}

/// Calls `task(columns, sums)` for shares of the columns, with sums [rows][columns, rounded up to whole steps] that begin as the bias or zero.
pub(crate) fn share_columns(sizes: Sizes, bias: Option<&[f32]>, parallel: bool, task: impl Fn(Range<usize>, &mut [f32]) + Sync) {
    let Sizes { rows, depth, columns } = sizes;
    if rows == 0 || columns == 0 {
        return;
    }
    let steps = columns.div_ceil(STEP);
    let small = !parallel || rows * depth * columns < PARALLEL_FROM;
    // How the columns are shared out changes no element.
    let block = (SUM_SIZE / rows).min(COLUMN_BLOCK);
    let parts = columns.div_ceil(block).max(if small { 1 } else { count() }).clamp(1, steps);
    let share = |index: usize| {
        let steps = part(steps, parts, index);
        let here = steps.start * STEP..(steps.end * STEP).min(columns);
        let mut sums = Scratch::new(rows * here.len().next_multiple_of(STEP));
        for sums in sums.as_mut_slice().chunks_exact_mut(here.len().next_multiple_of(STEP)) {
            match bias {
                Some(bias) => sums[..here.len()].copy_from_slice(&bias[here.clone()]),
                None => sums[..here.len()].fill(0.0),
            }
            sums[here.len()..].fill(0.0);
        }
        task(here, sums.as_mut_slice());
    };
    if small { (0..parts).for_each(share) } else { each(parts, share) }
}

struct FewRows<'a, W> {
    a: &'a [f32],
    b: &'a [W],
    sizes: Sizes,
    /// [rows][this task's columns, rounded up to whole steps]
    sums: &'a mut [f32],
    columns_here: Range<usize>,
}

impl<W: Weight> Kernel for FewRows<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let mut d = 0;
        // Where there are 32 registers they hold twice as much of B, which halves the way of the sums through the caches; one row has few sums to carry.
        while V::LANES == WIDEST && self.sizes.rows >= LONG_STEP_FROM && d + 2 * DEPTH_STEP <= self.sizes.depth {
            self.step::<V, { 2 * DEPTH_STEP }>(d);
            d += 2 * DEPTH_STEP;
        }
        while d + DEPTH_STEP <= self.sizes.depth {
            self.step::<V, DEPTH_STEP>(d);
            d += DEPTH_STEP;
        }
        while d < self.sizes.depth {
            self.step::<V, 1>(d);
            d += 1;
        }
    }
}

impl<W: Weight> FewRows<'_, W> {
    /// sums += a[.., d..d + K] * b[d..d + K, ..]
    #[inline(always)]
    fn step<V: Vector, const K: usize>(&mut self, d: usize) {
        let Sizes { rows, depth, columns } = self.sizes;
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
                    *b = weight_pair(self.b.as_ptr().add((d + i) * columns + column), width.min(end - column));
                }
                for row in 0..rows {
                    let to = self.sums.as_mut_ptr().add(row * sum_stride + column - start);
                    let a = self.a.as_ptr().add(row * depth + d);
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
                    let next = self.b.as_ptr().wrapping_add((d + K + i) * columns + column);
                    prefetch(next.cast());
                    if width * size_of::<W>() > LINE {
                        prefetch(next.cast::<f32>().wrapping_add(LINE / size_of::<f32>()));
                    }
                }
            }
            column += width;
        }
    }
}

/// Two vectors of weights; zeros beyond `count`, which is at most their lanes together.
#[inline(always)]
unsafe fn weight_pair<V: Vector, W: Weight>(from: *const W, count: usize) -> [V; 2] {
    // SAFETY: the caller's promise; the copy holds the widest pair of vectors.
    unsafe {
        if count == 2 * V::LANES {
            return [W::load(from), W::load(from.add(V::LANES))];
        }
        let mut copy = [W::default(); STEP];
        std::ptr::copy_nonoverlapping(from, copy.as_mut_ptr(), count);
        [W::load(copy.as_ptr()), W::load(copy.as_ptr().add(V::LANES))]
    }
}
