//! Attention from a few queries, as when tokens are decoded one by one: keys lie in the lanes of vectors, and values are read where they are.

use super::Plane;
use super::forward::{KEY_CHUNK, NO_SCORE, Pair};
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::Scratch;
use crate::product::pack_panel;
use crate::vector::{Vector, exp2_up_to_zero, load, prefetch_to_second_level, store};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Up to this many queries go one by one: a panel of them would be mostly empty.
pub(super) const FEW_QUERIES: usize = 4;
/// Vectors of keys or channels that are summed side by side.
const SIDE_BY_SIDE: usize = 4;
/// Keys that are turned at a time: with 64 channels they stay in the first-level cache until their scores are known. A multiple of what the widest vectors hold side by side.
const KEY_GROUP: usize = 64;

/// Attends from all queries of a pair, bit for bit as a panel would.
pub(super) fn few_queries(set: InstructionSet, pair: &Pair) {
    let [query, key, value] = &pair.planes;
    let (channels, queries) = (pair.shape.channels, pair.shape.queries);
    let end = pair.shape.limit(queries - 1);
    let (mut turned, mut sums) = (Scratch::new(channels * KEY_GROUP), Scratch::new(queries * channels));
    let (turned, sums) = (turned.as_mut_slice(), sums.as_mut_slice());
    sums.fill(0.0);
    let mut running = [(NO_SCORE, 0.0); FEW_QUERIES];
    let mut scores = [[0.0; KEY_CHUNK]; FEW_QUERIES];
    for first in (0..end).step_by(KEY_CHUNK) {
        let keys = first..(first + KEY_CHUNK).min(end);
        let seeing = || (0..queries).filter(|i| first < pair.shape.limit(*i));
        for (group, start) in keys.clone().step_by(KEY_GROUP).enumerate() {
            // Memory is slow to begin each page: what comes next is asked for while these keys are turned.
            ask_for(key, start + KEY_GROUP..(start + 2 * KEY_GROUP).min(end), channels);
            ask_for(value, start..(start + KEY_GROUP).min(end), channels);
            pack_panel(set, &key.transposed(end, channels), start, KEY_GROUP, turned);
            for i in seeing() {
                let scores = &mut scores[i][group * KEY_GROUP..][..KEY_GROUP];
                set.run(Scores { query: query.row(i, channels), keys: turned, scores });
            }
        }
        for i in seeing() {
            let scores = &mut scores[i][..keys.len().next_multiple_of(KEY_GROUP)];
            pair.hide(i..i + 1, keys.clone(), 1, &mut scores[..keys.len()]);
            scores[keys.len()..].fill(f32::NEG_INFINITY);
            let factor = set.run(Exponentials { scores, key_count: keys.len(), scale: pair.shape.scale, running: &mut running[i] });
            let (values, stride) = (&value.values[keys.start * value.stride..], value.stride);
            set.run(Values { weights: &scores[..keys.len()], values, stride, factor, sums: &mut sums[i * channels..][..channels] });
        }
    }
    for (i, (largest, sum)) in running[..queries].iter().enumerate() {
        pair.finish(i, &sums[i * channels..][..channels], *largest, *sum);
    }
}

/// Brings some rows of a plane nearer.
fn ask_for(plane: &Plane, rows: Range<usize>, channels: usize) {
    const LINE: usize = 64 / size_of::<f32>();
    for row in rows {
        let row = plane.row(row, channels).as_ptr();
        (0..channels).step_by(LINE).for_each(|c| prefetch_to_second_level(row.wrapping_add(c)));
    }
}

/// Scores of one query with a group of keys [channels, KEY_GROUP].
struct Scores<'a> {
    query: &'a [f32],
    keys: &'a [f32],
    scores: &'a mut [f32],
}

impl Kernel for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for (first, scores) in self.scores.chunks_exact_mut(SIDE_BY_SIDE * V::LANES).enumerate() {
            let mut sums = [V::zero(); SIDE_BY_SIDE];
            for (query, keys) in self.query.iter().zip(self.keys.chunks_exact(KEY_GROUP)) {
                let query = V::splat(*query);
                let keys = &keys[first * SIDE_BY_SIDE * V::LANES..][..SIDE_BY_SIDE * V::LANES];
                for (n, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the vectors lie side by side in `keys`.
                    *sum = query.mul_add(unsafe { V::load(keys.as_ptr().add(n * V::LANES)) }, *sum);
                }
            }
            for (n, sum) in sums.into_iter().enumerate() {
                // SAFETY: the same for the scores.
                unsafe { sum.store(scores.as_mut_ptr().add(n * V::LANES)) };
            }
        }
    }
}

/// Scores become exponentials relative to the largest so far; answers the factor that takes what was summed before to the same.
struct Exponentials<'a> {
    scores: &'a mut [f32],
    key_count: usize,
    scale: f32,
    /// The largest score, and the sum of exponentials relative to it.
    running: &'a mut (f32, f32),
}

impl Kernel for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        let (before, sum) = *self.running;
        let mut now = V::splat(before);
        for scores in self.scores.chunks_exact(V::LANES) {
            // SAFETY: each piece is one vector.
            now = unsafe { V::load(scores.as_ptr()) }.max(now);
        }
        let largest = now.largest();
        let (scale, now) = (V::splat(self.scale * LOG2_E), V::splat(largest));
        let shift = V::zero().sub(now.mul(scale));
        for scores in self.scores.chunks_exact_mut(V::LANES) {
            // SAFETY: each piece is one vector.
            unsafe {
                let [weight] = exp2_up_to_zero([V::load(scores.as_ptr()).mul_add(scale, shift)]);
                weight.store(scores.as_mut_ptr());
            }
        }
        let mut factor = [0.0; 16];
        let [vector] = exp2_up_to_zero([V::splat(before).sub(now).mul(scale)]);
        // SAFETY: the array holds the widest vector.
        unsafe { vector.store(factor.as_mut_ptr()) };
        // One after the other, as in a lane of a panel.
        let sum = self.scores[..self.key_count].iter().fold(sum * factor[0], |sum, e| sum + e);
        *self.running = (largest, sum);
        factor[0]
    }
}

/// Adds a chunk's weighted values to sums taken times `factor`.
struct Values<'a> {
    weights: &'a [f32],
    /// From the first key's on, rows `stride` apart.
    values: &'a [f32],
    stride: usize,
    factor: f32,
    sums: &'a mut [f32],
}

impl Kernel for Values<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let mut columns = 0..self.sums.len();
        while columns.len() >= SIDE_BY_SIDE * V::LANES {
            self.columns::<V, SIDE_BY_SIDE>(columns.start, SIDE_BY_SIDE * V::LANES);
            columns.start += SIDE_BY_SIDE * V::LANES;
        }
        while !columns.is_empty() {
            let used = columns.len().min(V::LANES);
            self.columns::<V, 1>(columns.start, used);
            columns.start += used;
        }
    }
}

impl Values<'_> {
    /// N vectors of channels from `first` on, of which `used` channels exist.
    #[inline(always)]
    fn columns<V: Vector, const N: usize>(&mut self, first: usize, used: usize) {
        let out = &mut self.sums[first..first + used];
        let last_row = self.weights.len().saturating_sub(1) * self.stride;
        assert!(self.values.len() >= last_row + first + used);
        // SAFETY: `used` channels of each row and of the sums lie in their slices; vectors beyond them are read and written in part.
        unsafe {
            let factor = V::splat(self.factor);
            let mut sums = [V::zero(); N];
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = load::<V>(out.as_ptr().add(n * V::LANES), used - n * V::LANES).mul(factor);
            }
            for (k, weight) in self.weights.iter().enumerate() {
                let row = self.values.as_ptr().add(k * self.stride + first);
                let weight = V::splat(*weight);
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = weight.mul_add(load(row.add(n * V::LANES), used - n * V::LANES), *sum);
                }
            }
            for (n, sum) in sums.into_iter().enumerate() {
                store(sum, out.as_mut_ptr().add(n * V::LANES), used - n * V::LANES);
            }
        }
    }
}
