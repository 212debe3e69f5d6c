//! y = A B for so few rows of A that reading B is all that costs: token-by-token decoding.
//!
//! B is read once, where it lies. With one row or two, not too many columns and slices enough for all threads each slice of the depth is a task, which reads
//! whole rows of B one behind the other, as memory likes it best; else some columns are, in all slices. Sums wait in the caches, and slices are added in order.
//! Each element is the same sum as in `by_rows`, so a row's result does not depend on how many rows come with it. Weights of 16 or 8 bits are widened on the
//! way into registers, which is exact.

use super::{PARALLEL_FROM, SLICE_DEPTH, Sizes};
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::small_weights::Weight;
use crate::threads::{count, each, part};
use crate::vector::{Vector, prefetch_to_second_level};
use std::ops::Range;

/// Up to how many rows of A this is faster than packing B first.
pub(crate) const FEW_ROWS: usize = 16;
/// Rows of B that are multiplied before sums go back to memory; vectors of `WIDEST` lanes, which come with 32 registers, take two such steps at once. Rows of wide
/// matrices lie a power of two apart and share a set of the cache, which has eight places.
const DEPTH_STEP: usize = 4;
/// Lanes of the widest vectors.
const WIDEST: usize = STEP / 2;
/// Up to so many rows of A, and sums, a task reads whole rows of B: what is read from end to end comes from memory twice as fast as short pieces. More sums would
/// not stay in the first-level cache meanwhile.
const ROWS_OF_WHOLE: usize = 2;
const SUMS_OF_WHOLE: usize = 4096;
/// Floats of the sums of a task: 64 KiB, and as much of the slice at work, which stay in the second-level cache.
const SUM_SIZE: usize = 16 * 1024;
/// Most columns of a task.
const COLUMN_BLOCK: usize = 4096;
/// Floats of a pair of the widest vectors; tasks meet at multiples of it.
pub(crate) const STEP: usize = 32;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of B that a task asks for before they are needed: what memory brings in the time that its next rows take. They are asked into the second-level cache,
/// for the first waits for too few lines at a time.
const AHEAD: usize = 16 * 1024;

/// How many rows of B, `row_bytes` of each, that is: whole steps of rows, one at least.
pub(crate) fn rows_ahead(row_bytes: usize, step: usize) -> usize {
    (AHEAD / row_bytes.max(1)).next_multiple_of(step).max(step)
}

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
    in_slices(
        sizes,
        SLICE_DEPTH,
        start,
        parallel,
        |share| set.run(FewRows { a, b, sizes, share }),
        |row, columns, sums| {
            if let Some(scales) = scales {
                for (sum, column) in sums.iter_mut().zip(columns.clone()) {
                    *sum = *sum * scales[column] + bias.map_or(0.0, |bias| bias[column]);
                }
            }
            // SAFETY: each row's columns are handed out once.
            unsafe { out.slice(offset + row * sizes.columns + columns.start, columns.len()) }.copy_from_slice(sums);
        },
    );
}

/// A slice of the depth and some columns of a task.
pub(crate) struct Share {
    pub depths: Range<usize>,
    pub columns: Range<usize>,
    /// Where the depths end that the same task goes on with.
    pub end: usize,
    /// Rows of sums, `stride` apart, with room for whole steps of columns.
    sums: *mut f32,
    stride: usize,
    /// Whether the sums begin with what they hold; else with zero.
    begun: bool,
    /// Where the sums of earlier slices are, to which these are added when they are complete; null: they stay where they are.
    total: *mut f32,
}

/// How a step of a share takes up its sums and where it leaves them.
#[derive(Clone, Copy)]
pub(crate) struct Carry {
    /// Null: zeros.
    pub from: *const f32,
    pub to: *mut f32,
    /// Added to what is there.
    pub add: bool,
    pub stride: usize,
}

impl Share {
    /// For the depths of one step.
    #[inline(always)]
    pub fn carry(&self, step: Range<usize>) -> Carry {
        let from = if step.start == self.depths.start && !self.begun { std::ptr::null() } else { self.sums.cast_const() };
        let add = step.end == self.depths.end && !self.total.is_null();
        Carry { from, to: if add { self.total } else { self.sums }, add, stride: self.stride }
    }
}

/// Calls `task` for every share of the sums, then `done(row, columns, sums)` for runs of columns of every row with the sums of all slices, each `slice_depth` deep.
pub(crate) fn in_slices(
    sizes: Sizes,
    slice_depth: usize,
    bias: Option<&[f32]>,
    parallel: bool,
    task: impl Fn(Share) + Sync,
    done: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
) {
    let Sizes { rows, depth, columns } = sizes;
    if rows == 0 || columns == 0 {
        return;
    }
    let small = !parallel || rows * depth * columns < PARALLEL_FROM;
    let threads = if small { 1 } else { count() };
    let slices = depth.div_ceil(slice_depth).max(1);
    let depths = |slice: usize| slice * slice_depth..((slice + 1) * slice_depth).min(depth);
    // An odd number of cache lines, for rows a power of two apart would share a set of the cache.
    let stride = |columns: usize| columns.next_multiple_of(STEP) + LINE / size_of::<f32>();
    let begin = |sums: &mut [f32], columns: Range<usize>, bias: Option<&[f32]>| {
        for row in sums.chunks_exact_mut(stride(columns.len())) {
            row.fill(0.0);
            if let Some(bias) = bias {
                row[..columns.len()].copy_from_slice(&bias[columns.clone()]);
            }
        }
    };
    // How the work is shared out changes no element.
    if rows <= ROWS_OF_WHOLE && rows * columns <= SUMS_OF_WHOLE && slices >= threads {
        let (stride, all) = (stride(columns), 0..columns);
        let mut sums = Scratch::new(slices * rows * stride);
        let shared = Shared::new(sums.as_mut_slice());
        // Slices in a row, so that what comes next can be asked for ahead.
        let run = |slices: Range<usize>| {
            let end = depths(slices.end - 1).end;
            for slice in slices {
                // SAFETY: each slice is one task's.
                let sums = unsafe { shared.slice(slice * rows * stride, rows * stride) };
                begin(sums, all.clone(), bias.filter(|_| slice == 0));
                let depths = depths(slice);
                task(Share { end, depths, columns: all.clone(), sums: sums.as_mut_ptr(), stride, begun: true, total: std::ptr::null_mut() });
            }
        };
        if small {
            run(0..slices)
        } else {
            each(threads, |thread| run(part(slices, threads, thread)))
        }
        let (total, others) = sums.as_mut_slice().split_at_mut(rows * stride);
        for sums in others.chunks_exact(rows * stride) {
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += *sum);
        }
        total.chunks_exact_mut(stride).enumerate().for_each(|(row, sums)| done(row, all.clone(), &mut sums[..columns]));
        return;
    }
    let steps = columns.div_ceil(STEP);
    let parts = columns.div_ceil((SUM_SIZE / rows).min(COLUMN_BLOCK)).max(threads).clamp(1, steps);
    let run = |index: usize| {
        let steps = part(steps, parts, index);
        let columns = steps.start * STEP..(steps.end * STEP).min(columns);
        let stride = stride(columns.len());
        let mut scratch = Scratch::new(2 * rows * stride);
        let (total, sums) = scratch.as_mut_slice().split_at_mut(rows * stride);
        begin(total, columns.clone(), bias);
        let sums = sums.as_mut_ptr();
        for slice in 0..slices {
            let total = total.as_mut_ptr();
            let (sums, total) = if slice == 0 { (total, std::ptr::null_mut()) } else { (sums, total) };
            task(Share { depths: depths(slice), columns: columns.clone(), end: depth, sums, stride, begun: slice == 0, total });
        }
        total.chunks_exact_mut(stride).enumerate().for_each(|(row, sums)| done(row, columns.clone(), &mut sums[..columns.len()]));
    };
    if small { (0..parts).for_each(run) } else { each(parts, run) }
}

struct FewRows<'a, W> {
    a: &'a [f32],
    b: &'a [W],
    sizes: Sizes,
    share: Share,
}

impl<W: Weight> Kernel for FewRows<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let Range { start: mut d, end } = self.share.depths;
        while V::LANES == WIDEST && d + 2 * DEPTH_STEP <= end {
            self.step::<V, { 2 * DEPTH_STEP }>(d);
            d += 2 * DEPTH_STEP;
        }
        while d + DEPTH_STEP <= end {
            self.step::<V, DEPTH_STEP>(d);
            d += DEPTH_STEP;
        }
        while d < end {
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
        let Range { start, end } = self.share.columns.clone();
        let (width, carry) = (2 * V::LANES, self.share.carry(d..d + K));
        let next = d + rows_ahead((end - start) * size_of::<W>(), K);
        let ask = K > 1 && next + K <= self.share.end;
        let whole = end - start == columns;
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
                    let at = row * carry.stride + column - start;
                    let a = self.a.as_ptr().add(row * depth + d);
                    let mut sum = [V::zero(); 2];
                    if !carry.from.is_null() {
                        sum = [V::load(carry.from.add(at)), V::load(carry.from.add(at + V::LANES))];
                    }
                    for (i, b) in b.iter().enumerate() {
                        let a = V::splat(*a.add(i));
                        sum = [a.mul_add(b[0], sum[0]), a.mul_add(b[1], sum[1])];
                    }
                    let to = carry.to.add(at);
                    if carry.add {
                        sum = [V::load(to).add(sum[0]), V::load(to.add(V::LANES)).add(sum[1])];
                    }
                    sum[0].store(to);
                    sum[1].store(to.add(V::LANES));
                }
                // Asked for last, so that it takes the place of what is done with; whole rows from end to end.
                if ask && whole {
                    let first = self.b.as_ptr().wrapping_add(next * columns + (column - start) * K);
                    for line in 0..(K * width * size_of::<W>()).div_ceil(LINE) {
                        prefetch_to_second_level(first.cast::<f32>().wrapping_add(line * (LINE / size_of::<f32>())));
                    }
                } else if ask {
                    for i in 0..K {
                        let next = self.b.as_ptr().wrapping_add((next + i) * columns + column);
                        prefetch_to_second_level(next.cast());
                        if width * size_of::<W>() > LINE {
                            prefetch_to_second_level(next.cast::<f32>().wrapping_add(LINE / size_of::<f32>()));
                        }
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
