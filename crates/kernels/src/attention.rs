//! Scaled dot-product attention (Vaswani et al. 2017, equation 1): softmax(query key^T * scale) value, a block of query rows at a time, so that
//! no more than a block of scores is in memory. The backward pass computes the scores again from the saved logarithms of their sums.
//!
//! A query's result is the same bits whether it is computed alone (with a key-value cache) or among others.

use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::product::{Packed, Rows, Source, by_columns, by_rows};
use crate::threads::{count, each};
use crate::vector::{Vector, exp, load, store};
use std::ops::Range;

/// Scores of a block (512 KiB): enough rows that keys and values are not read too often, few enough for the caches.
const BLOCK_SIZE: usize = 128 * 1024;

/// query [batch, heads, queries, channels], key and value [batch, heads, keys, channels].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub batch: usize,
    pub heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub channels: usize,
    pub scale: f32,
    /// Query i sees keys 0..=i + keys - queries only.
    pub causal: bool,
}

/// A tensor [batch, heads, tokens, channels] whose channels lie one behind the other and whose other axes have any stride.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    pub values: &'a [f32],
    pub strides: Strides,
}

/// Distances in floats between neighbours on the axes batch, heads and tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    pub batch: usize,
    pub head: usize,
    pub token: usize,
}

impl Strides {
    /// Those of a tensor stored as [batch, tokens, heads, channels], as a linear layer before or behind has it.
    pub fn tokens_first(heads: usize, tokens: usize, channels: usize) -> Self {
        Self { batch: tokens * heads * channels, head: channels, token: heads * channels }
    }

    fn extent(&self, batch: usize, heads: usize, tokens: usize, channels: usize) -> usize {
        if batch * heads * tokens * channels == 0 {
            return 0;
        }
        (batch - 1) * self.batch + (heads - 1) * self.head + (tokens - 1) * self.token + channels
    }
}

impl Attention {
    fn check(&self, name: &str, query_side: &[Heads], key_side: &[Heads], visible: Option<&[f32]>) {
        let Self { batch, heads, queries, keys, channels, causal, .. } = *self;
        for (side, tokens) in [(query_side, queries), (key_side, keys)] {
            for heads_of in side {
                let extent = heads_of.strides.extent(batch, heads, tokens, channels);
                assert!(heads_of.values.len() >= extent, "{name} {self:?}: expected at least {extent} values, found {}", heads_of.values.len());
            }
        }
        if let Some(visible) = visible {
            assert!(visible.len() == batch * keys, "{name} {self:?}: expected a mask of {}, found {}", batch * keys, visible.len());
        }
        assert!(!causal || keys >= queries, "{name} {self:?}: a causal mask needs at least as many keys as queries");
    }

    /// Query rows whose scores are in memory at a time; fixed by the shape, for the sums over queries follow it.
    fn block(&self) -> usize {
        (BLOCK_SIZE / self.keys.max(1) / 12 * 12).clamp(12, 252)
    }

    /// How many keys, from the first on, query `i` may see.
    fn limit(&self, i: usize) -> usize {
        if self.causal { i + 1 + self.keys - self.queries } else { self.keys }
    }
}

/// Writes y [batch, queries, heads, channels] (tokens first!) and the logarithm of each row's sum of exponentials [batch, heads, queries].
/// `visible` [batch, keys]: keys whose number is 0 are not seen; a row that sees none becomes 0.
pub fn forward(query: Heads, key: Heads, value: Heads, visible: Option<&[f32]>, shape: Attention, y: &mut [f32], log_sums: &mut [f32]) {
    shape.check("attention", &[query], &[key, value], visible);
    let Attention { batch, heads, queries, keys, channels, .. } = shape;
    let (lengths, expected) = ((y.len(), log_sums.len()), (batch * heads * queries * channels, batch * heads * queries));
    assert!(lengths == expected, "attention {shape:?}: expected lengths of (y, log_sums) {expected:?}, found {lengths:?}");
    let set = InstructionSet::current();
    let parallel = batch * heads < count();
    let (out, log_sums_out) = (Shared::new(y), Shared::new(log_sums));
    let out_strides = Strides::tokens_first(heads, queries, channels);
    each(batch * heads, |pair| {
        let (b, h) = (pair / heads, pair % heads);
        let visible = visible.map(|visible| &visible[b * keys..][..keys]);
        let (query, key, value) = (Plane::new(query, b, h), Plane::new(key, b, h), Plane::new(value, b, h));
        let keys_packed = Packed::new(set, &key.transposed(keys, channels), queries, parallel);
        let values_packed = Packed::new(set, &value.plain(keys, channels), queries, parallel);
        // SAFETY: each pair has rows of its own.
        let log_sums = unsafe { log_sums_out.slice(pair * queries, queries) };
        let mut scratch = Scratch::new(shape.block().min(queries) * keys);
        let mut weights = vec![0.0; shape.block().min(queries)];
        for start in (0..queries).step_by(shape.block()) {
            let rows = start..(start + shape.block()).min(queries);
            let scores = &mut scratch.as_mut_slice()[..rows.len() * keys];
            by_rows(set, &keys_packed, &[0], rows.len(), None, &Shared::new(scores), parallel, |block, pointers, offsets| {
                query.fill(rows.start, block.clone(), pointers);
                along(block, 0, keys, offsets);
            });
            for ((row, weight), scores) in rows.clone().zip(&mut weights).zip(scores.chunks_exact_mut(keys.max(1))) {
                (log_sums[row], *weight) = set.run(Exponentials { scores, limit: shape.limit(row), visible, scale: shape.scale });
            }
            let first = b * out_strides.batch + h * out_strides.head + rows.start * out_strides.token;
            let scores = &*scores;
            by_rows(set, &values_packed, &[0], rows.len(), None, &out, parallel, |block, pointers, offsets| {
                for (pointer, row) in pointers.iter_mut().zip(block.clone()) {
                    *pointer = scores[row * keys..].as_ptr();
                }
                along(block, first, out_strides.token, offsets);
            });
            // Divided by the sums of the exponentials only here, where a row is short.
            for (i, weight) in weights[..rows.len()].iter().enumerate() {
                // SAFETY: this row belongs to this task, and the product above is done.
                let row = unsafe { out.slice(first + i * out_strides.token, channels) };
                row.iter_mut().for_each(|value| *value *= weight);
            }
        }
    });
}

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
        let block_len = shape.block().min(queries) * keys;
        let (mut scores_scratch, mut gradient_scratch) = (Scratch::new(block_len), Scratch::new(block_len));
        let mut totals = [vec![0.0; keys * channels], vec![0.0; keys * channels]];
        for start in (0..queries).step_by(shape.block()) {
            let rows = start..(start + shape.block()).min(queries);
            let scores = &mut scores_scratch.as_mut_slice()[..rows.len() * keys];
            let gradients = &mut gradient_scratch.as_mut_slice()[..rows.len() * keys];
            let rows_of = |plane: &Plane, block: Range<usize>, pointers: &mut [*const f32], offsets: &mut [usize]| {
                plane.fill(rows.start, block.clone(), pointers);
                along(block, 0, keys, offsets);
            };
            by_rows(set, &keys_packed, &[0], rows.len(), None, &Shared::new(scores), parallel, |block, pointers, offsets| {
                rows_of(&query, block, pointers, offsets)
            });
            by_rows(set, &values_packed, &[0], rows.len(), None, &Shared::new(gradients), parallel, |block, pointers, offsets| {
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
            by_rows(set, &keys_plain, &[0], rows.len(), None, &outs[0], parallel, |block, pointers, offsets| {
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

/// Rows `stride` apart of one head of one picture.
struct Plane<'a> {
    values: &'a [f32],
    stride: usize,
}

impl<'a> Plane<'a> {
    fn new(tensor: Heads<'a>, batch: usize, head: usize) -> Self {
        let start = batch * tensor.strides.batch + head * tensor.strides.head;
        Self { values: &tensor.values[start.min(tensor.values.len())..], stride: tensor.strides.token }
    }

    fn row(&self, row: usize, channels: usize) -> &'a [f32] {
        &self.values[row * self.stride..][..channels]
    }

    /// As B [tokens, channels].
    fn plain(&self, tokens: usize, channels: usize) -> Source<'a> {
        Source { values: self.values, taps: 1, tap_stride: 0, depth: tokens, depth_stride: self.stride, columns: channels, column_stride: 1 }
    }

    /// As B [channels, tokens].
    fn transposed(&self, tokens: usize, channels: usize) -> Source<'a> {
        Source { values: self.values, taps: 1, tap_stride: 0, depth: channels, depth_stride: 1, columns: tokens, column_stride: self.stride }
    }

    fn fill(&self, first: usize, block: Range<usize>, pointers: &mut [*const f32]) {
        for (pointer, row) in pointers.iter_mut().zip(block) {
            *pointer = self.values[(first + row) * self.stride..].as_ptr();
        }
    }
}

/// Rows that begin at `first`, `stride` apart.
fn along(block: Range<usize>, first: usize, stride: usize, offsets: &mut [usize]) {
    for (offset, row) in offsets.iter_mut().zip(block) {
        *offset = first + row * stride;
    }
}

/// One row of scores becomes exponentials, of which the largest is 1; answers the logarithm of the sum of the scores' own exponentials, and the
/// factor that makes what was written probabilities.
struct Exponentials<'a> {
    scores: &'a mut [f32],
    limit: usize,
    visible: Option<&'a [f32]>,
    scale: f32,
}

impl Kernel for Exponentials<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<V: Vector>(self) -> (f32, f32) {
        let (seen, hidden) = self.scores.split_at_mut(self.limit);
        hidden.fill(0.0);
        if let Some(visible) = self.visible {
            for (score, visible) in seen.iter_mut().zip(visible) {
                if *visible == 0.0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        let len = seen.len();
        let at = seen.as_mut_ptr();
        // SAFETY: every access is to the `len` seen scores; parts end there.
        unsafe {
            let mut largest = V::splat(f32::NEG_INFINITY);
            let mut i = 0;
            while i + V::LANES <= len {
                largest = largest.max(V::load(at.add(i)));
                i += V::LANES;
            }
            let mut largest = largest.largest();
            for score in &seen[i..] {
                if *score > largest || score.is_nan() {
                    largest = *score;
                }
            }
            if largest == f32::NEG_INFINITY {
                seen.fill(0.0);
                return (f32::INFINITY, 0.0); // then the backward pass's exponentials vanish as well
            }
            let (scale, shift) = (V::splat(self.scale), V::splat(-largest * self.scale));
            let mut sum = V::zero();
            let mut i = 0;
            while i + V::LANES <= len {
                let e = exp(V::load(at.add(i)).mul_add(scale, shift));
                e.store(at.add(i));
                sum = sum.add(e);
                i += V::LANES;
            }
            if i < len {
                let left = len - i;
                exp(V::load_part(at.add(i), left).mul_add(scale, shift)).store_part(at.add(i), left);
                sum = sum.add(V::load_part(at.add(i), left)); // read back: lanes beyond the end must not count
            }
            let sum = sum.sum();
            (largest * self.scale + sum.ln(), 1.0 / sum)
        }
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
