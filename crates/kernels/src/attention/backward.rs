//! The backward pass: a block of query rows at a time, whose scores are computed again from the saved logarithms of their sums.

use super::{Attention, Heads, Plane, Strides};
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::product::{Packed, Rows, by_columns, by_rows_of_panels};
use crate::threads::{count, each};
use crate::vector::{Vector, exp, load, store};
use std::ops::Range;

/// Scores of a block (512 KiB): enough rows that keys and values are not read too often, few enough for the caches.
const BLOCK_SIZE: usize = 128 * 1024;

/// Writes the gradients of query [batch, queries, heads, channels], key and value [batch, keys, heads, channels] (tokens first!)
/// from y and log_sums as `forward` wrote them and dy.
pub fn backward(
    query: Heads,
    key: Heads,
    value: Heads,
    visible: Option<&[f32]>,
    y: Heads,
    log_sums: &[f32],
    dy: Heads,
    shape: Attention,
    dquery: &mut [f32],
    dkey: &mut [f32],
    dvalue: &mut [f32],
) {
    shape.check("attention's gradient", &[query, y, dy], &[key, value], visible);
    let Attention { batch, heads, queries, keys, channels, scale, .. } = shape;
    let lengths = [dquery.len(), dkey.len(), dvalue.len(), log_sums.len()];
    let expected = [batch * heads * queries * channels, batch * heads * keys * channels, batch * heads * keys * channels, batch * heads * queries];
    assert!(lengths == expected, "attention's gradient {shape:?}: expected lengths of [dquery, dkey, dvalue, log_sums] {expected:?}, found {lengths:?}");
    let set = InstructionSet::current();
    // Fixed by the shape, for the sums over queries follow it.
    let block_rows = (BLOCK_SIZE / keys.max(1) / 12 * 12).clamp(12, 252);
    let parallel = batch * heads < count();
    let outs = [Shared::new(dquery), Shared::new(dkey), Shared::new(dvalue)];
    let query_strides = Strides::tokens_first(heads, queries, channels);
    let key_strides = Strides::tokens_first(heads, keys, channels);
    each(batch * heads, |pair| {
        let (b, h) = (pair / heads, pair % heads);
        let visible = visible.map(|visible| &visible[b * keys..][..keys]);
        let [query, key, value, y, dy] = [query, key, value, y, dy].map(|tensor| Plane::new(tensor, b, h));
        let keys_packed = Packed::new(set, &key.transposed(keys, channels), queries, parallel);
        let keys_plain = Packed::new(set, &key.plain(keys, channels), queries, parallel);
        let values_packed = Packed::new(set, &value.transposed(keys, channels), queries, parallel);
        let log_sums = &log_sums[pair * queries..][..queries];
        let block_len = block_rows.min(queries) * keys;
        let (mut scores_scratch, mut gradient_scratch) = (Scratch::new(block_len), Scratch::new(block_len));
        let mut totals = [vec![0.0; keys * channels], vec![0.0; keys * channels]];
        for start in (0..queries).step_by(block_rows) {
            let rows = start..(start + block_rows).min(queries);
            let scores = &mut scores_scratch.as_mut_slice()[..rows.len() * keys];
            let gradients = &mut gradient_scratch.as_mut_slice()[..rows.len() * keys];
            let rows_of = |plane: &Plane, block: Range<usize>, pointers: &mut [*const f32], offsets: &mut [usize]| {
                plane.fill(rows.start, block.clone(), pointers);
                along(block, 0, keys, offsets);
            };
            by_rows_of_panels(set, &keys_packed, &[0], rows.len(), None, &Shared::new(scores), parallel, |block, pointers, offsets| {
                rows_of(&query, block, pointers, offsets)
            });
            by_rows_of_panels(set, &values_packed, &[0], rows.len(), None, &Shared::new(gradients), parallel, |block, pointers, offsets| {
                rows_of(&dy, block, pointers, offsets)
            });
            for ((row, scores), gradients) in rows.clone().zip(scores.chunks_exact_mut(keys.max(1))).zip(gradients.chunks_exact_mut(keys.max(1))) {
                let (y, dy) = (y.row(row, channels), dy.row(row, channels));
                set.run(SoftmaxGradient { scores, gradients, y, dy, log_sum: log_sums[row], limit: shape.limit(row), visible, scale });
            }
            // The sums over queries: dvalue += probabilities^T dy, dkey += score gradients^T query.
            let (scores, gradients) = (&*scores, &*gradients);
            for (total, (a, plane)) in totals.iter_mut().zip([(gradients, &query), (scores, &dy)]) {
                let b = Rows { values: &plane.values[rows.start * plane.stride..], stride: plane.stride };
                by_columns(set, 1, keys, rows.len(), b, channels, total, None, true, parallel, |block, pointers| {
                    for (pointer, row) in pointers.iter_mut().zip(block) {
                        *pointer = a[row * keys..].as_ptr();
                    }
                });
            }
            let first = b * query_strides.batch + h * query_strides.head + rows.start * query_strides.token;
            by_rows_of_panels(set, &keys_plain, &[0], rows.len(), None, &outs[0], parallel, |block, pointers, offsets| {
                for (pointer, row) in pointers.iter_mut().zip(block.clone()) {
                    *pointer = gradients[row * keys..].as_ptr();
                }
                along(block, first, query_strides.token, offsets);
            });
        }
        for (out, total) in outs[1..].iter().zip(&totals) {
            for (token, row) in total.chunks_exact(channels.max(1)).enumerate() {
                // SAFETY: this head's channels of this token belong to this task.
                let to = unsafe { out.slice(b * key_strides.batch + h * key_strides.head + token * key_strides.token, channels) };
                to.copy_from_slice(row);
            }
        }
    });
}

/// Rows that begin at `first`, `stride` apart.
fn along(block: Range<usize>, first: usize, stride: usize, offsets: &mut [usize]) {
    for (offset, row) in offsets.iter_mut().zip(block) {
        *offset = first + row * stride;
    }
}

/// One row: scores become probabilities p, gradients (of the probabilities) become scale * p * (gradient - y . dy), those of the scores.
struct SoftmaxGradient<'a> {
    scores: &'a mut [f32],
    gradients: &'a mut [f32],
    y: &'a [f32],
    dy: &'a [f32],
    log_sum: f32,
    limit: usize,
    visible: Option<&'a [f32]>,
    scale: f32,
}

impl Kernel for SoftmaxGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let len = self.limit;
        self.scores[len..].fill(0.0);
        self.gradients[len..].fill(0.0);
        if let Some(visible) = self.visible {
            for (score, visible) in self.scores[..len].iter_mut().zip(visible) {
                if *visible == 0.0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        let (scores, gradients) = (self.scores.as_mut_ptr(), self.gradients.as_mut_ptr());
        // SAFETY: every access is to the `limit` seen scores and gradients or to the row's channels; parts end there.
        unsafe {
            let mut along = V::zero();
            let mut i = 0;
            while i < self.y.len() {
                let left = self.y.len() - i;
                along = load::<V>(self.y.as_ptr().add(i), left).mul_add(load(self.dy.as_ptr().add(i), left), along);
                i += V::LANES;
            }
            let (along, scale, shift) = (V::splat(along.sum()), V::splat(self.scale), V::splat(-self.log_sum));
            let mut i = 0;
            while i < len {
                let left = len - i;
                let p = exp(load::<V>(scores.add(i), left).mul_add(scale, shift));
                let d = load::<V>(gradients.add(i), left).sub(along).mul(p).mul(scale);
                store(p, scores.add(i), left);
                store(d, gradients.add(i), left);
                i += V::LANES;
            }
        }
    }
}
