//! The 36 values as floats.

use super::convolve::{Arithmetic, Block, Picture, Sizes, Taps, slices};
use super::{Input, POINTS, SPAN, apart, input_points, weight_values};
use crate::instruction_set::{InstructionSet, Kernel};
use crate::vector::Vector;
use std::ops::Range;

/// Input [POINTS][tiles][depth] and weights [POINTS][depth][panel's width], each point [`apart`]. Every product is added to the sum before it, so that slices
/// change no bit.
pub(super) struct Floats(pub InstructionSet);

impl Arithmetic for Floats {
    fn slice_of_all(&self, depth: usize) -> usize {
        depth
    }

    fn slice_of_panel(&self) -> usize {
        64 // 288 KiB with the widest panels
    }

    fn input_len(&self, tile_count: usize, depth: usize) -> usize {
        POINTS * apart(tile_count * depth)
    }

    fn weights_len(&self, depth: usize) -> usize {
        POINTS * apart(depth * self.0.panel_width())
    }

    unsafe fn input(&self, block: &Block, places: Range<usize>, slice: usize, out: *mut f32) {
        self.0.run(InputOf { block, places, slice, slice_len: self.input_len(block.tiles.len(), slice), out });
    }

    fn weights(&self, taps: &Taps, out: &mut [f32]) {
        self.0.run(Weights { taps, out });
    }

    fn products(&self, input: &[f32], weights: &[f32], sizes: Sizes, add: bool, out: &mut [f32]) {
        self.0.run(Products { input, weights, sizes, add, out });
    }
}

struct InputOf<'a> {
    block: &'a Block<'a>,
    places: Range<usize>,
    slice: usize,
    /// Floats of a slice.
    slice_len: usize,
    out: *mut f32,
}

impl Kernel for InputOf<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        if self.block.picture.rounded { self.tiles::<V, true>() } else { self.tiles::<V, false>() }
    }
}

impl InputOf<'_> {
    #[inline(always)]
    fn tiles<V: Vector, const ROUNDED: bool>(self) {
        let Block { picture: Picture { x, shape, .. }, grid, tiles } = self.block;
        let input = Input::new(x, shape);
        for place in self.places {
            let pixels = input.pixels(grid.position(tiles.start + place));
            for (index, depths) in slices(shape.input_channels, self.slice).enumerate() {
                let (depth, start) = (depths.len(), index * self.slice_len);
                // SAFETY: every point has a row of the slice's depths for this tile.
                unsafe { input_points::<V, ROUNDED>(&input, &pixels, depths, self.out.add(start + place * depth), apart(tiles.len() * depth)) };
            }
        }
    }
}

struct Weights<'a> {
    taps: &'a Taps<'a>,
    /// [POINTS][depth][width], each point [`apart`]
    out: &'a mut [f32],
}

impl Kernel for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let width = 2 * V::LANES;
        let &Taps { depth, depth_stride, tap_stride, .. } = self.taps;
        let (first, len) = (self.taps.as_ptr(), depth * width);
        assert!(self.out.len() >= POINTS * apart(len));
        for d in 0..depth {
            self.taps.ask_for(first, d, width);
            for half in [0, V::LANES] {
                // SAFETY: rows of the panel's width lie there, and every point has room for as many.
                unsafe {
                    let values = weight_values::<V>(first.add(d * depth_stride + half), tap_stride);
                    for (i, values) in values.into_iter().enumerate() {
                        for (j, value) in values.into_iter().enumerate() {
                            value.store(self.out.as_mut_ptr().add((i * SPAN + j) * apart(len) + d * width + half));
                        }
                    }
                }
            }
        }
    }
}

struct Products<'a> {
    input: &'a [f32],
    weights: &'a [f32],
    sizes: Sizes,
    add: bool,
    out: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (Sizes { tile_count, depth }, width) = (self.sizes, 2 * V::LANES);
        for point in 0..POINTS {
            let input = &self.input[point * apart(tile_count * depth)..][..tile_count * depth];
            let weights = &self.weights[point * apart(depth * width)..][..depth * width];
            multiply::<V>(input, weights, self.add, &mut self.out[point * apart(tile_count * width)..][..tile_count * width]);
        }
    }
}

/// out [tiles, panel's width] = input [tiles, depth] * weights [depth, panel's width], or `out` with that added.
#[inline(always)]
fn multiply<V: Vector>(input: &[f32], weights: &[f32], add: bool, out: &mut [f32]) {
    match V::TILE_ROWS {
        4 => multiply_in_rows_of::<V, 4>(input, weights, add, out),
        6 => multiply_in_rows_of::<V, 6>(input, weights, add, out),
        _ => multiply_in_rows_of::<V, 12>(input, weights, add, out),
    }
}

#[inline(always)]
fn multiply_in_rows_of<V: Vector, const M: usize>(input: &[f32], weights: &[f32], add: bool, out: &mut [f32]) {
    let width = 2 * V::LANES;
    let (depth, tile_count) = (weights.len() / width, out.len() / width);
    assert!(input.len() >= tile_count * depth);
    let mut row = 0;
    while row < tile_count {
        let (from, to) = (&input[row * depth..], &mut out[row * width..]);
        // SAFETY: as many rows as the tile has are left in both.
        unsafe {
            match tile_count - row {
                left if left >= M => {
                    tile::<V, M>(from, weights, depth, add, to);
                    row += M;
                }
                left if left >= 4 => {
                    tile::<V, 4>(from, weights, depth, add, to);
                    row += 4;
                }
                left if left >= 2 => {
                    tile::<V, 2>(from, weights, depth, add, to);
                    row += 2;
                }
                _ => {
                    tile::<V, 1>(from, weights, depth, add, to);
                    row += 1;
                }
            }
        }
    }
}

/// out [M, two vectors] = rows [M, depth] * weights [depth, two vectors], or `out` with that added, product by product.
/// # Safety
/// `rows` holds M * depth floats, `weights` depth and `out` M times two vectors.
#[inline(always)]
unsafe fn tile<V: Vector, const M: usize>(rows: &[f32], weights: &[f32], depth: usize, add: bool, out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        let rows: [*const f32; M] = std::array::from_fn(|i| rows.as_ptr().add(i * depth));
        let mut sums = [[V::zero(); 2]; M];
        if add {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = [V::load(out.as_ptr().add(i * 2 * V::LANES)), V::load(out.as_ptr().add((i * 2 + 1) * V::LANES))];
            }
        }
        let mut b = weights.as_ptr();
        for d in 0..depth {
            let pair = [V::load(b), V::load(b.add(V::LANES))];
            for (sum, row) in sums.iter_mut().zip(rows) {
                let a = V::splat(*row.add(d));
                *sum = [a.mul_add(pair[0], sum[0]), a.mul_add(pair[1], sum[1])];
            }
            b = b.add(2 * V::LANES);
        }
        for (i, sum) in sums.into_iter().enumerate() {
            sum[0].store(out.as_mut_ptr().add(i * 2 * V::LANES));
            sum[1].store(out.as_mut_ptr().add((i * 2 + 1) * V::LANES));
        }
    }
}
