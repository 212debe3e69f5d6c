//! The 36 values as integers of 16 bits, for runs in bf16 on processors that multiply pairs of them and add both products in one instruction (VNNI): twice the
//! multiply-adds of f32.
//!
//! Rounded to bf16, with its 8 significant bits, the values would bring back several times the error of a convolution in bf16: the way back to pixels takes
//! differences of large numbers. Integers with a scale for each row have 12 or 13 bits beside the sign, and as sums of integers round nothing, the result is nearer
//! to the true one than products of bf16 are (`tests` show both).
//!
//! A row is the slice of channels of one tile, or of one output channel's weights, at one point. Its largest magnitude becomes [`largest_integer`], so small
//! that no sum of a slice overflows.

#[cfg(test)]
mod tests;
mod weight_gradient;

pub(crate) use weight_gradient::weight_gradient;

use super::convolve::{Arithmetic, Block, Picture, Sizes, Taps, slices};
use super::{Input, POINTS, SPAN, apart, input_points, weight_column, weight_points};
use crate::memory::Scratch;
use crate::vector::Avx512;
use std::arch::x86_64::*;
use std::ops::Range;

/// Input channels of a slice, at most.
const SLICE: usize = 128;
/// Channels of a row are filled up with zeros to whole vectors.
const LANES: usize = 16;
/// Columns of a panel.
const WIDTH: usize = 32;
/// Rows whose largest magnitude is smaller are taken as if it were this: its inverse must be finite.
const SMALLEST: f32 = 1e-30;

/// Input [POINTS][tiles][pairs], each point [`apart`], then scales [POINTS][tiles]; weights [POINTS][pairs][WIDTH], each point [`apart`], then scales
/// [POINTS][WIDTH]. The sums of a slice become floats before the next is added.
pub(super) struct FixedPoint;

/// The sum of so many pairs of products, each at most its square, is at most i32::MAX. (Rows are whole vectors, so it has no more than 14 bits.)
fn largest_integer(pairs: usize) -> f32 {
    (i32::MAX as usize / (2 * pairs)).isqrt() as f32
}

fn pairs_of(depth: usize) -> usize {
    depth.next_multiple_of(LANES) / 2
}

impl Arithmetic for FixedPoint {
    fn slice_of_all(&self, _depth: usize) -> usize {
        SLICE
    }

    fn slice_of_panel(&self) -> usize {
        SLICE
    }

    fn input_len(&self, tile_count: usize, depth: usize) -> usize {
        POINTS * (apart(tile_count * pairs_of(depth)) + apart(tile_count))
    }

    fn weights_len(&self, depth: usize) -> usize {
        POINTS * (apart(pairs_of(depth) * WIDTH) + WIDTH)
    }

    unsafe fn input(&self, block: &Block, places: Range<usize>, slice: usize, out: *mut f32) {
        // SAFETY: the caller's promise; this arithmetic is chosen where the processor has the instructions.
        unsafe { input(block, places, slice, out) }
    }

    fn weights(&self, taps: &Taps, out: &mut [f32]) {
        assert!(out.len() >= self.weights_len(taps.depth));
        // SAFETY: the length as asserted; this arithmetic is chosen where the processor has the instructions.
        unsafe { if taps.depth == SLICE { weights::<SLICE>(taps, out) } else { weights::<0>(taps, out) } }
    }

    fn products(&self, input: &[f32], weights: &[f32], sizes: Sizes, add: bool, out: &mut [f32]) {
        let Sizes { tile_count, depth } = sizes;
        let fits = input.len() >= self.input_len(tile_count, depth) && weights.len() >= self.weights_len(depth);
        assert!(fits && out.len() >= POINTS * apart(tile_count * WIDTH));
        // SAFETY: lengths as asserted; this arithmetic is chosen where the processor has the instructions.
        unsafe { products(input.as_ptr(), weights.as_ptr(), sizes, add, out.as_mut_ptr()) }
    }
}

/// # Safety
/// As [`Arithmetic::input`]; the processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn input(block: &Block, places: Range<usize>, slice: usize, out: *mut f32) {
    let Block { picture: Picture { x, shape, .. }, grid, tiles } = block;
    let (tile_count, slice_len) = (tiles.len(), FixedPoint.input_len(tiles.len(), slice));
    let input = Input::new(x, shape);
    let point_len = apart(slice.min(shape.input_channels).next_multiple_of(LANES));
    let mut values = Scratch::new(POINTS * point_len);
    let values = values.as_mut_slice();
    for place in places {
        let pixels = input.pixels(grid.position(tiles.start + place));
        for (index, depths) in slices(shape.input_channels, slice).enumerate() {
            let pairs = pairs_of(depths.len());
            if 2 * pairs > depths.len() {
                values.fill(0.0); // what lies beyond the channels is never written
            }
            // SAFETY: every point has room for a slice; integers and scales of this place are this task's, the caller's promise.
            unsafe {
                input_points::<Avx512, false>(&input, &pixels, depths, values.as_mut_ptr(), point_len);
                let integers = out.add(index * slice_len);
                let scales = integers.add(POINTS * apart(tile_count * pairs));
                quantise(values, point_len, pairs, integers.add(place * pairs).cast(), apart(tile_count * pairs), scales.add(place), apart(tile_count));
            }
        }
    }
}

/// Takes a row at each point, `pairs` in whole vectors of `values`, to integers and scales.
/// # Safety
/// `values` has that row in each `point_len` floats; as many integers can be written every `pairs_apart` pairs, and a scale every `scales_apart`; the processor
/// has the instructions.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn quantise(values: &[f32], point_len: usize, pairs: usize, integers: *mut i32, pairs_apart: usize, scales: *mut f32, scales_apart: usize) {
    const ROOM: usize = POINTS.next_multiple_of(LANES);
    let limit = _mm512_set1_ps(largest_integer(pairs));
    // SAFETY: the caller's promise.
    unsafe {
        // As bits: among them infinity and NaN are larger than all numbers.
        let mut largest = [0u32; ROOM];
        for (point, largest) in largest.iter_mut().enumerate().take(POINTS) {
            let from = values.as_ptr().add(point * point_len);
            let mut bits = _mm512_setzero_si512();
            for at in (0..2 * pairs).step_by(LANES) {
                bits = _mm512_max_epu32(bits, magnitude(_mm512_loadu_ps(from.add(at))));
            }
            *largest = _mm512_reduce_max_epu32(bits);
        }
        let (mut inverses, mut steps) = ([0.0f32; ROOM], [0.0f32; ROOM]);
        for at in (0..ROOM).step_by(LANES) {
            let largest = at_least_smallest(_mm512_loadu_si512(largest.as_ptr().add(at).cast()));
            _mm512_storeu_ps(inverses.as_mut_ptr().add(at), _mm512_div_ps(limit, largest));
            _mm512_storeu_ps(steps.as_mut_ptr().add(at), _mm512_div_ps(largest, limit));
        }
        for point in 0..POINTS {
            let from = values.as_ptr().add(point * point_len);
            let to = integers.add(point * pairs_apart).cast::<i16>();
            let inverse = _mm512_set1_ps(inverses[point]);
            for at in (0..2 * pairs).step_by(LANES) {
                let rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from.add(at)), inverse));
                _mm256_storeu_si256(to.add(at).cast(), _mm512_cvtepi32_epi16(rounded));
            }
            *scales.add(point * scales_apart) = steps[point];
        }
    }
}

/// The bits of a vector without their signs.
#[inline]
#[target_feature(enable = "avx512f")]
fn magnitude(values: __m512) -> __m512i {
    _mm512_and_si512(_mm512_castps_si512(values), _mm512_set1_epi32(i32::MAX))
}

/// Largest magnitudes as floats whose inverses are finite; infinity and NaN stay, and make all results of their row NaN.
#[inline]
#[target_feature(enable = "avx512f")]
fn at_least_smallest(bits: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_max_epu32(bits, _mm512_set1_epi32(SMALLEST.to_bits() as i32)))
}

/// Pairs of integers: `even` and `odd` times `inverse`, which makes them fit.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn side_by_side(even: __m512, odd: __m512, inverse: __m512) -> __m512i {
    let [even, odd] = [_mm512_cvtps_epi32(_mm512_mul_ps(even, inverse)), _mm512_cvtps_epi32(_mm512_mul_ps(odd, inverse))];
    _mm512_mask_blend_epi16(0xAAAA_AAAA, even, _mm512_slli_epi32::<16>(odd))
}

/// Sums of integers back to floats, behind what is there already.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_in_floats(sums: __m512i, row_scale: __m512, column_scales: __m512, to: __m512) -> __m512 {
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_mul_ps(row_scale, column_scales), to)
}

/// The rows of points that are computed together: those that share a sum and a difference, and with twelve values at a time all stay in registers.
const ROW_PAIRS: [[usize; 2]; 3] = [[0, 5], [1, 2], [3, 4]];
/// Depths that are gone through for one pair of rows after the other, while their taps lie beside the processor.
const DEPTH_STEP: usize = 16;

/// `DEPTH` is that of the taps, or 0 where the compiler need not know it; so many places to be written lie at distances that are part of the instructions.
/// # Safety
/// `out` has `weights_len`; the processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn weights<const DEPTH: usize>(taps: &Taps, out: &mut [f32]) {
    let depth = if DEPTH > 0 { DEPTH } else { taps.depth };
    let pairs = pairs_of(depth);
    let limit = _mm512_set1_ps(largest_integer(pairs));
    let (integers, scales) = (out.as_mut_ptr().cast::<i32>(), out.as_mut_ptr().wrapping_add(POINTS * apart(pairs * WIDTH)));
    for half in [0, LANES] {
        // SAFETY: vectors of all taps lie at every depth, and of all points at every pair, the caller's promise.
        unsafe {
            let panel = Panel::<DEPTH> { first: taps.as_ptr().add(half), taps };
            let mut largest = [_mm512_setzero_si512(); POINTS];
            for first in (0..depth).step_by(DEPTH_STEP) {
                let depths = first..(first + DEPTH_STEP).min(depth);
                if half == 0 {
                    for d in depths.clone() {
                        taps.ask_for(taps.as_ptr(), d, WIDTH);
                    }
                }
                panel.largest::<0>(depths.clone(), &mut largest);
                panel.largest::<1>(depths.clone(), &mut largest);
                panel.largest::<2>(depths, &mut largest);
            }
            let mut inverses = [_mm512_setzero_ps(); POINTS];
            for (point, inverse) in inverses.iter_mut().enumerate() {
                let largest = at_least_smallest(largest[point]);
                *inverse = _mm512_div_ps(limit, largest);
                _mm512_storeu_ps(scales.add(point * WIDTH + half), _mm512_div_ps(largest, limit));
            }
            for first in (0..pairs).step_by(DEPTH_STEP / 2) {
                let some = first..(first + DEPTH_STEP / 2).min(pairs);
                panel.quantise::<0>(some.clone(), &inverses, integers.add(half));
                panel.quantise::<1>(some.clone(), &inverses, integers.add(half));
                panel.quantise::<2>(some, &inverses, integers.add(half));
            }
        }
    }
}

/// Half a panel of weights: a vector at each tap and depth.
struct Panel<'a, const DEPTH: usize> {
    first: *const f32,
    taps: &'a Taps<'a>,
}

impl<const DEPTH: usize> Panel<'_, DEPTH> {
    #[inline(always)]
    fn depth(&self) -> usize {
        if DEPTH > 0 { DEPTH } else { self.taps.depth }
    }

    /// Raises `largest` to the magnitudes of some depths in a pair of rows.
    /// # Safety
    /// The taps can be read; the processor has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn largest<const PAIR: usize>(&self, depths: Range<usize>, largest: &mut [__m512i; POINTS]) {
        let rows = ROW_PAIRS[PAIR];
        let mut here = [[_mm512_setzero_si512(); SPAN]; 2];
        for d in depths {
            // SAFETY: the caller's promise.
            let values = unsafe { self.values::<PAIR>(d) };
            for i in 0..2 {
                for j in 0..SPAN {
                    here[i][j] = _mm512_max_epu32(here[i][j], magnitude(values[i][j].0));
                }
            }
        }
        for i in 0..2 {
            for j in 0..SPAN {
                let point = rows[i] * SPAN + j;
                largest[point] = _mm512_max_epu32(largest[point], here[i][j]);
            }
        }
    }

    /// Writes a pair of rows as pairs of integers, as far apart as [`FixedPoint`] has them.
    /// # Safety
    /// The taps can be read and the pairs written; the processor has the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn quantise<const PAIR: usize>(&self, pairs: Range<usize>, inverses: &[__m512; POINTS], integers: *mut i32) {
        let point_len = apart(pairs_of(self.depth()) * WIDTH);
        let rows = ROW_PAIRS[PAIR];
        for pair in pairs {
            // SAFETY: the caller's promise.
            unsafe {
                let (even, odd) = (self.values_or_zeros::<PAIR>(2 * pair), self.values_or_zeros::<PAIR>(2 * pair + 1));
                for i in 0..2 {
                    for j in 0..SPAN {
                        let point = rows[i] * SPAN + j;
                        let to = integers.add(point * point_len + pair * WIDTH);
                        _mm512_storeu_si512(to.cast(), side_by_side(even[i][j].0, odd[i][j].0, inverses[point]));
                    }
                }
            }
        }
    }

    /// # Safety
    /// As `values`, for depths before the end.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn values_or_zeros<const PAIR: usize>(&self, d: usize) -> [[Avx512; SPAN]; 2] {
        // SAFETY: the caller's promise.
        if d < self.depth() { unsafe { self.values::<PAIR>(d) } } else { [[Avx512(_mm512_setzero_ps()); SPAN]; 2] }
    }

    /// The values of a pair of rows at one depth.
    /// # Safety
    /// The taps can be read there; the processor has the instructions.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn values<const PAIR: usize>(&self, d: usize) -> [[Avx512; SPAN]; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let (taps, tap_stride) = (self.first.add(d * self.taps.depth_stride), self.taps.tap_stride);
            let [first, second, third] =
                [weight_column::<Avx512>(taps, tap_stride, 0), weight_column::<Avx512>(taps, tap_stride, 1), weight_column::<Avx512>(taps, tap_stride, 2)];
            // What other rows would need is never computed.
            let [i, k] = ROW_PAIRS[PAIR];
            [weight_points([first[i], second[i], third[i]]), weight_points([first[k], second[k], third[k]])]
        }
    }
}

/// # Safety
/// The pointers hold what [`FixedPoint`] says of these sizes; the processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn products(input: *const f32, weights: *const f32, sizes: Sizes, add: bool, out: *mut f32) {
    let Sizes { tile_count, depth } = sizes;
    let pairs = pairs_of(depth);
    // SAFETY: the caller's promise; a tile of rows ends where the rows do.
    unsafe {
        let (row_scales, column_scales) = (input.add(POINTS * apart(tile_count * pairs)), weights.add(POINTS * apart(pairs * WIDTH)));
        for point in 0..POINTS {
            let weights = weights.add(point * apart(pairs * WIDTH)).cast::<i32>();
            let column_scales = column_scales.add(point * WIDTH);
            let mut row = 0;
            while row < tile_count {
                let rows = input.add(point * apart(tile_count * pairs) + row * pairs).cast::<i32>();
                let row_scales = row_scales.add(point * apart(tile_count) + row);
                let out = out.add(point * apart(tile_count * WIDTH) + row * WIDTH);
                match tile_count - row {
                    12.. => {
                        tile::<12>(rows, row_scales, weights, column_scales, pairs, add, out);
                        row += 12;
                    }
                    4.. => {
                        tile::<4>(rows, row_scales, weights, column_scales, pairs, add, out);
                        row += 4;
                    }
                    2.. => {
                        tile::<2>(rows, row_scales, weights, column_scales, pairs, add, out);
                        row += 2;
                    }
                    _ => {
                        tile::<1>(rows, row_scales, weights, column_scales, pairs, add, out);
                        row += 1;
                    }
                }
            }
        }
    }
}

/// out [M, WIDTH] = rows [M, pairs] * weights [pairs, WIDTH] * scales, or `out` with that added.
/// # Safety
/// The pointers hold that much; the processor has the instructions.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tile<const M: usize>(
    rows: *const i32,
    row_scales: *const f32,
    mut weights: *const i32,
    column_scales: *const f32,
    pairs: usize,
    add: bool,
    out: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let rows: [*const i32; M] = std::array::from_fn(|i| rows.add(i * pairs));
        let mut sums = [[_mm512_setzero_si512(); 2]; M];
        for pair in 0..pairs {
            let b = [_mm512_loadu_si512(weights.cast()), _mm512_loadu_si512(weights.add(LANES).cast())];
            for (sum, row) in sums.iter_mut().zip(rows) {
                let a = _mm512_set1_epi32(*row.add(pair));
                *sum = [_mm512_dpwssd_epi32(sum[0], a, b[0]), _mm512_dpwssd_epi32(sum[1], a, b[1])];
            }
            weights = weights.add(WIDTH);
        }
        let column_scales = [_mm512_loadu_ps(column_scales), _mm512_loadu_ps(column_scales.add(LANES))];
        for (i, sum) in sums.into_iter().enumerate() {
            let row_scale = _mm512_set1_ps(*row_scales.add(i));
            for half in 0..2 {
                let to = out.add(i * WIDTH + half * LANES);
                let old = if add { _mm512_loadu_ps(to) } else { _mm512_setzero_ps() };
                _mm512_storeu_ps(to, add_in_floats(sum[half], row_scale, column_scales[half], old));
            }
        }
    }
}
