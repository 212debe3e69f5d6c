//! Scaled dot-product attention (Vaswani et al. 2017, equation 1): softmax(query key^T * scale) value, without the matrix of scores in memory.
//!
//! A query's result is the same bits whether it is computed alone (with a key-value cache) or among others, where values are finite: one that is hidden from a
//! query weighs 0, and 0 times infinity is no number.

mod backward;
mod few_queries;
mod forward;

use crate::product::Source;
use std::ops::Range;

pub use backward::backward;
pub use forward::forward;

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
        let Self { batch, heads, queries, keys, channels, scale, causal } = *self;
        assert!(scale > 0.0, "{name} {self:?}: the scale must be above 0, for hidden keys have scores of minus infinity");
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

    /// How many keys, from the first on, query `i` may see.
    fn limit(&self, i: usize) -> usize {
        if self.causal { i + 1 + self.keys - self.queries } else { self.keys }
    }
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
