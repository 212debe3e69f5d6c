//! The forward pass: chunk by chunk of keys with a running maximum and sum (Milakov and Gimelshein 2018, algorithm 3; Dao et al. 2022, algorithm 1),
//! so that scores stay in the first-level cache.
//!
//! Queries lie side by side in the lanes of a panel: maximum, exponentials and sums then need no step across lanes, and both products read one run of
//! memory. Each number of a query is computed by the same operations in the same order whatever lies in the other lanes.

use super::few_queries::{FEW_QUERIES, few_queries};
use super::{Attention, Heads, Plane, Strides};
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::product::{Packed, pack_panel};
use crate::threads::{count, each};
use crate::vector::{Vector, exp2_up_to_zero};
use std::f32::consts::LOG2_E;
use std::ops::Range;
use std::sync::OnceLock;

/// Keys of a chunk: their scores with a panel of queries are 12 KiB. Sums are rescaled chunk by chunk, so results depend on it.
pub(super) const KEY_CHUNK: usize = 192;
/// The largest score before any was seen; finite, so that its distance from others is a number.
pub(super) const NO_SCORE: f32 = -1e30;
/// Vectors of queries in a panel.
const PANEL_VECTORS: usize = 2;
/// Panels that pass over a chunk of keys and values while it is in the second-level cache: a group.
const GROUP_PANELS: usize = 6;
/// Vectors of scores whose exponentials are computed side by side, a multiple of every N below.
const SIDE_BY_SIDE: usize = 4;
/// Lanes of the widest vector.
const MOST_LANES: usize = 16;
/// Heads, each of one picture, for every thread, from which on they are work enough to share out whole. Fewer are shared out group by group, or a
/// thread that comes late would leave the others idle for a whole head; but then the packed values of all are in memory together.
const PAIRS_PER_THREAD: usize = 16;

/// Writes y [batch, queries, heads, channels] (tokens first!) and the logarithm of each row's sum of exponentials [batch, heads, queries].
/// `visible` [batch, keys]: keys whose number is 0 are not seen; a row that sees none becomes 0.
pub fn forward(query: Heads, key: Heads, value: Heads, visible: Option<&[f32]>, shape: Attention, y: &mut [f32], log_sums: &mut [f32]) {
    shape.check("attention", &[query], &[key, value], visible);
    let Attention { batch, heads, queries, keys, channels, .. } = shape;
    let (lengths, expected) = ((y.len(), log_sums.len()), (batch * heads * queries * channels, batch * heads * queries));
    assert!(lengths == expected, "attention {shape:?}: expected lengths of (y, log_sums) {expected:?}, found {lengths:?}");
    if queries == 0 {
        return;
    }
    let set = InstructionSet::current();
    let (y, log_sums) = (Shared::new(y), Shared::new(log_sums));
    let strides = Strides::tokens_first(heads, queries, channels);
    let pairs = batch * heads;
    let pair = |index: usize| {
        let (b, h) = (index / heads, index % heads);
        let planes = [query, key, value].map(|tensor| Plane::new(tensor, b, h));
        let visible = visible.map(|visible| &visible[b * keys..][..keys]);
        let first_out = b * strides.batch + h * strides.head;
        Pair { planes, visible, shape, y: &y, first_out, out_stride: strides.token, log_sums: &log_sums, first_log_sum: index * queries }
    };
    if queries <= FEW_QUERIES {
        return each(pairs, |index| few_queries(set, &pair(index)));
    }
    let group_rows = GROUP_PANELS * PANEL_VECTORS * set.panel_width() / 2;
    let group_count = queries.div_ceil(group_rows);
    let pack = |index: usize| Packed::new(set, &pair(index).planes[2].plain(keys, channels), queries, pairs < count());
    let attend = |index: usize, group: usize, values: &Packed| {
        attend(set, &pair(index), group * group_rows..((group + 1) * group_rows).min(queries), values);
    };
    if pairs < PAIRS_PER_THREAD * count() {
        let packed: Vec<OnceLock<Packed>> = (0..pairs).map(|_| OnceLock::new()).collect();
        each(pairs, |index| drop(packed[index].set(pack(index))));
        each(pairs * group_count, |task| {
            let values = packed[task / group_count].get().expect("every pair was packed");
            attend(task / group_count, task % group_count, values);
        });
    } else {
        each(pairs, |index| {
            let values = pack(index);
            (0..group_count).for_each(|group| attend(index, group, &values));
        });
    }
}

/// One head of one picture.
pub(super) struct Pair<'a> {
    /// Query, key and value.
    pub planes: [Plane<'a>; 3],
    pub visible: Option<&'a [f32]>,
    pub shape: Attention,
    pub y: &'a Shared<f32>,
    /// Where the first query's row of y begins, and how far apart its rows are.
    pub first_out: usize,
    pub out_stride: usize,
    pub log_sums: &'a Shared<f32>,
    pub first_log_sum: usize,
}

impl Pair<'_> {
    /// Makes scores [keys, pitch] of the queries in the first lanes minus infinity where a key is not to be seen.
    pub fn hide(&self, queries: Range<usize>, keys: Range<usize>, pitch: usize, scores: &mut [f32]) {
        if let Some(visible) = self.visible {
            for (row, visible) in scores.chunks_exact_mut(pitch).zip(&visible[keys.clone()]) {
                if *visible == 0.0 {
                    row.fill(f32::NEG_INFINITY);
                }
            }
        }
        for (lane, query) in queries.enumerate() {
            for key in self.shape.limit(query).max(keys.start)..keys.end {
                scores[(key - keys.start) * pitch + lane] = f32::NEG_INFINITY;
            }
        }
    }

    /// Writes a row of y from its sums, and the logarithm of the sum of exponentials.
    pub fn finish(&self, query: usize, sums: &[f32], largest: f32, sum: f32) {
        let seen = sum != 0.0; // not of NaN
        let weight = if seen { 1.0 / sum } else { 0.0 };
        // SAFETY: this row belongs to the task that computed it.
        let row = unsafe { self.y.slice(self.first_out + query * self.out_stride, self.shape.channels) };
        row.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * weight);
        // SAFETY: as above.
        let log_sum = unsafe { self.log_sums.slice(self.first_log_sum + query, 1) };
        // Infinite where nothing was seen: then the backward pass's exponentials vanish as well.
        log_sum[0] = if seen { largest * self.shape.scale + sum.ln() } else { f32::INFINITY };
    }
}

/// Attends from a group of queries.
fn attend(set: InstructionSet, pair: &Pair, rows: Range<usize>, values: &Packed) {
    let (lanes, channels) = (set.panel_width() / 2, pair.shape.channels);
    let (width, out_pitch) = (PANEL_VECTORS * lanes, channels.next_multiple_of(2 * lanes));
    let panels: Vec<Range<usize>> = rows.clone().step_by(width).map(|first| first..(first + width).min(rows.end)).collect();
    let [query, key, _] = &pair.planes;
    let mut packed = Scratch::new(panels.len() * width * channels);
    for (panel, out) in panels.iter().zip(packed.as_mut_slice().chunks_exact_mut((width * channels).max(1))) {
        let pitch = panel.len().next_multiple_of(lanes);
        pack_panel(set, &query.transposed(rows.end, channels), panel.start, pitch, &mut out[..pitch * channels]);
    }
    let (mut scores, mut sums) = (Scratch::new(KEY_CHUNK * width), Scratch::new(panels.len() * width * out_pitch));
    let sums = sums.as_mut_slice();
    sums.fill(0.0);
    let mut running: Vec<Running> = panels.iter().map(|_| Running::new()).collect();
    let mut key_rows = [std::ptr::null(); KEY_CHUNK];
    let end = pair.shape.limit(rows.end - 1);
    for first in (0..end).step_by(KEY_CHUNK) {
        let keys = first..(first + KEY_CHUNK).min(end);
        key.fill(first, 0..keys.len(), &mut key_rows);
        for (index, panel) in panels.iter().enumerate().filter(|(_, panel)| first < pair.shape.limit(panel.end - 1)) {
            set.run(Chunk {
                pair,
                queries: panel.clone(),
                packed: &packed.as_slice()[index * width * channels..],
                keys: keys.clone(),
                key_rows: &key_rows[..keys.len()],
                values,
                scores: scores.as_mut_slice(),
                sums: &mut sums[index * width * out_pitch..][..width * out_pitch],
                out_pitch,
                running: &mut running[index],
            });
        }
    }
    for (index, (panel, running)) in panels.into_iter().zip(&running).enumerate() {
        for (lane, query) in panel.enumerate() {
            pair.finish(query, &sums[(index * width + lane) * out_pitch..][..channels], running.largest[lane], running.sums[lane]);
        }
    }
}

/// What is known of a panel's queries after some chunks: the largest score and the sum of exponentials relative to it.
struct Running {
    largest: [f32; PANEL_VECTORS * MOST_LANES],
    sums: [f32; PANEL_VECTORS * MOST_LANES],
}

impl Running {
    fn new() -> Self {
        Self { largest: [NO_SCORE; _], sums: [0.0; _] }
    }
}

/// A panel of queries over a chunk of keys.
struct Chunk<'a> {
    pair: &'a Pair<'a>,
    queries: Range<usize>,
    /// [channels][lanes]
    packed: &'a [f32],
    keys: Range<usize>,
    /// Where each key's channels begin. (Computed in the tiles, these addresses would be computed anew for each channel.)
    key_rows: &'a [*const f32],
    values: &'a Packed<'a>,
    /// [keys][lanes]
    scores: &'a mut [f32],
    /// Sums of weighted values so far, [lanes][out_pitch].
    sums: &'a mut [f32],
    out_pitch: usize,
    running: &'a mut Running,
}

impl Kernel for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        match V::TILE_ROWS {
            4 => self.panel::<V, 4>(),
            6 => self.panel::<V, 6>(),
            _ => self.panel::<V, 12>(),
        }
    }
}

impl Chunk<'_> {
    /// Tiles are M keys or queries high.
    #[inline(always)]
    fn panel<V: Vector, const M: usize>(self) {
        if self.queries.len() <= V::LANES { self.vectors::<V, 1, M>() } else { self.vectors::<V, 2, M>() }
    }

    #[inline(always)]
    fn vectors<V: Vector, const N: usize, const M: usize>(mut self) {
        let pitch = N * V::LANES;
        let key_count = self.key_rows.len();
        assert!(self.packed.len() >= self.pair.shape.channels * pitch && self.scores.len() >= key_count * pitch);
        assert!(self.sums.len() >= self.queries.len() * self.out_pitch);
        let mut k = 0;
        while k < key_count {
            // SAFETY: each tile stays within the chunk: k + its height is at most the number of keys.
            unsafe {
                match key_count - k {
                    left if left >= M => {
                        self.score_tile::<V, N, M>(k);
                        k += M;
                    }
                    left if left >= 4 => {
                        self.score_tile::<V, N, 4>(k);
                        k += 4;
                    }
                    _ => {
                        self.score_tile::<V, N, 1>(k);
                        k += 1;
                    }
                }
            }
        }
        self.pair.hide(self.queries.clone(), self.keys.clone(), pitch, &mut self.scores[..key_count * pitch]);
        let mut factors = [0.0; PANEL_VECTORS * MOST_LANES];
        // SAFETY: the scores of all lanes and keys were written above.
        unsafe { self.exponentials::<V, N>(&mut factors) };
        let channels = self.pair.shape.channels;
        for column in (0..channels).step_by(2 * V::LANES) {
            if channels - column > V::LANES {
                self.value_tiles::<V, 2, M>(column, pitch, &factors);
            } else {
                self.value_tiles::<V, 1, M>(column, pitch, &factors);
            }
        }
    }

    /// Adds the chunk's weighted values to the sums of all queries, in C vectors of channels.
    #[inline(always)]
    fn value_tiles<V: Vector, const C: usize, const M: usize>(&mut self, column: usize, pitch: usize, factors: &[f32]) {
        let mut row = 0;
        while row < self.queries.len() {
            // SAFETY: each tile stays within the queries: row + its height is at most their number.
            unsafe {
                match self.queries.len() - row {
                    left if left >= M => {
                        self.value_tile::<V, C, M>(column, row, pitch, factors);
                        row += M;
                    }
                    left if left >= 4 => {
                        self.value_tile::<V, C, 4>(column, row, pitch, factors);
                        row += 4;
                    }
                    left if left >= 2 => {
                        self.value_tile::<V, C, 2>(column, row, pitch, factors);
                        row += 2;
                    }
                    _ => {
                        self.value_tile::<V, C, 1>(column, row, pitch, factors);
                        row += 1;
                    }
                }
            }
        }
    }

    /// Scores of M keys with N vectors of queries.
    #[inline(always)]
    unsafe fn score_tile<V: Vector, const N: usize, const M: usize>(&mut self, k: usize) {
        // SAFETY: `M` keys follow, each `channels` long; the panel and the scores are as long as `vectors` made sure.
        unsafe {
            let rows: [*const f32; M] = std::array::from_fn(|i| *self.key_rows.get_unchecked(k + i));
            let mut sums = [[V::zero(); N]; M];
            let mut queries = self.packed.as_ptr();
            for d in 0..self.pair.shape.channels {
                let mut vectors = [V::zero(); N];
                for (n, vector) in vectors.iter_mut().enumerate() {
                    *vector = V::load(queries.add(n * V::LANES));
                }
                for (sums, row) in sums.iter_mut().zip(rows) {
                    let key = V::splat(*row.add(d));
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        *sum = key.mul_add(vector, *sum);
                    }
                }
                queries = queries.add(N * V::LANES);
            }
            let out = self.scores.as_mut_ptr().add(k * N * V::LANES);
            for (i, sums) in sums.into_iter().enumerate() {
                for (n, sum) in sums.into_iter().enumerate() {
                    sum.store(out.add((i * N + n) * V::LANES));
                }
            }
        }
    }

    /// Scores become exponentials relative to the largest score so far; `factors` takes what was summed before to the same.
    #[inline(always)]
    unsafe fn exponentials<V: Vector, const N: usize>(&mut self, factors: &mut [f32]) {
        // SAFETY: the panel's lanes lie in the arrays, and its scores are as long as `vectors` made sure.
        unsafe {
            let (pitch, key_count) = (N * V::LANES, self.keys.len());
            let scale = V::splat(self.pair.shape.scale * LOG2_E);
            let scores = self.scores.as_mut_ptr();
            let (mut largest, mut sums) = ([V::zero(); N], [V::zero(); N]);
            for (n, largest) in largest.iter_mut().enumerate() {
                *largest = V::load(self.running.largest.as_ptr().add(n * V::LANES));
                for k in 0..key_count {
                    *largest = V::load(scores.add(k * pitch + n * V::LANES)).max(*largest);
                }
            }
            let mut shifts = [V::zero(); N];
            for n in 0..N {
                let before = self.running.largest.as_mut_ptr().add(n * V::LANES);
                let [factor] = exp2_up_to_zero([V::load(before).sub(largest[n]).mul(scale)]);
                factor.store(factors.as_mut_ptr().add(n * V::LANES));
                sums[n] = V::load(self.running.sums.as_ptr().add(n * V::LANES)).mul(factor);
                shifts[n] = V::zero().sub(largest[n].mul(scale));
                largest[n].store(before);
            }
            // Vector i holds scores of the panel's vector i % N.
            let mut i = 0;
            while i < key_count * N {
                let at = scores.add(i * V::LANES);
                if key_count * N - i >= SIDE_BY_SIDE {
                    let mut weights = [V::zero(); SIDE_BY_SIDE];
                    for (j, weight) in weights.iter_mut().enumerate() {
                        *weight = V::load(at.add(j * V::LANES)).mul_add(scale, shifts[j % N]);
                    }
                    weights = exp2_up_to_zero(weights);
                    for (j, weight) in weights.into_iter().enumerate() {
                        weight.store(at.add(j * V::LANES));
                        sums[j % N] = sums[j % N].add(weight);
                    }
                    i += SIDE_BY_SIDE;
                } else {
                    let [weight] = exp2_up_to_zero([V::load(at).mul_add(scale, shifts[i % N])]);
                    weight.store(at);
                    sums[i % N] = sums[i % N].add(weight);
                    i += 1;
                }
            }
            for (n, sum) in sums.into_iter().enumerate() {
                sum.store(self.running.sums.as_mut_ptr().add(n * V::LANES));
            }
        }
    }

    /// Adds the chunk's weighted values to the sums of M queries, in C vectors of channels.
    #[inline(always)]
    unsafe fn value_tile<V: Vector, const C: usize, const M: usize>(&mut self, column: usize, row: usize, pitch: usize, factors: &[f32]) {
        let (base, panel_stride, stride) = self.values.layout(2 * V::LANES);
        // SAFETY: M rows of sums and lanes of scores follow, and the values of every key of the chunk are packed.
        unsafe {
            let out = self.sums.as_mut_ptr().add(row * self.out_pitch + column);
            let mut sums = [[V::zero(); C]; M];
            for (i, sums) in sums.iter_mut().enumerate() {
                let factor = V::splat(*factors.as_ptr().add(row + i));
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(out.add(i * self.out_pitch + c * V::LANES)).mul(factor);
                }
            }
            let mut values = base.add(column / (2 * V::LANES) * panel_stride + self.keys.start * stride);
            let mut weights = self.scores.as_ptr().add(row);
            for _ in 0..self.keys.len() {
                let mut vectors = [V::zero(); C];
                for (c, vector) in vectors.iter_mut().enumerate() {
                    *vector = V::load(values.add(c * V::LANES));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let weight = V::splat(*weights.add(i));
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        *sum = weight.mul_add(vector, *sum);
                    }
                }
                values = values.wrapping_add(stride);
                weights = weights.wrapping_add(pitch);
            }
            for (i, sums) in sums.into_iter().enumerate() {
                for (c, sum) in sums.into_iter().enumerate() {
                    sum.store(out.add(i * self.out_pitch + c * V::LANES));
                }
            }
        }
    }
}
