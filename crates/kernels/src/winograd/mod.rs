//! Convolution 3x3 with stride 1 by a quarter of the multiplications: F(4x4, 3x3) of Winograd's minimal filtering (Lavin and Gray 2015, 1509.09308).
//!
//! A tile of 6x6 pixels and the 3x3 weights are both taken to 36 values at which polynomials are evaluated; there a convolution is a product, and the way back
//! gives 4x4 pixels. The points are 0, ±3/4, ±3/2 and infinity: with the usual 0, ±1, ±2 rounding errors are four times as large. With these the largest error
//! stays within twice that of the sum as the definition has it (measured for 64 to 512 channels: 1e-6 to 3e-6 of the largest result).
//!
//! The gradient for the weights is the same backwards: results are taken to the 36 values, products are summed over tiles, and nine weights come back.
//!
//! Each result is one chain of multiply-adds over the input channels (for the weights: over the tiles of a block) and fixed sums around it: the threads
//! change no bit, nor, but for the weights' gradient, the batch.

#![allow(clippy::needless_range_loop)] // an index goes through the same place of six columns at once

mod by_panels;
mod convolve;
mod weight_gradient;

pub(crate) use convolve::{Picture, convolve};
pub(crate) use weight_gradient::weight_gradient;

use crate::convolution::Convolution;
use crate::vector::{Vector, load, store};
use std::ops::Range;

/// Pixels of a side of the result of a tile, and of what it reads.
const TILE: usize = 4;
const SPAN: usize = 6;
const POINTS: usize = SPAN * SPAN;
/// Floats of a cache line.
const LINE: usize = 16;
/// Pictures with fewer pixels in the result do not earn the transformation of the weights ...
const PIXELS_FROM: usize = 256;
/// ... but with so many they do where input channels times output channels are no more than this.
const PIXELS_OF_SMALL_PICTURES: usize = 64;
const WEIGHTS_OF_SMALL_PICTURES: usize = 64 * 1024;
/// With fewer channels the transformations outweigh the products.
const CHANNELS_FROM: usize = 8;
/// With fewer tiles in the whole batch writing the 36 values of each weight outweighs the products.
const TILES_FROM: usize = 32;

// The points and what follows from them.
const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;
const WEIGHT_A: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
const WEIGHT_B: f32 = 1.0 / (2.0 * B2 * (B2 - A2));

/// Whether a forward pass, or an input gradient turned into one, is better computed here. The batch plays no part, for a picture must not know how many stand
/// beside it (the input gradient of a classifier guides pictures, too).
pub(crate) fn applies(shape: &Convolution) -> bool {
    if !fits(shape) {
        return false; // the kernel of a turned shape need not fit
    }
    let pixels = shape.output_height() * shape.output_width();
    let few_weights = shape.input_channels * shape.output_channels <= WEIGHTS_OF_SMALL_PICTURES;
    pixels >= PIXELS_FROM || pixels >= PIXELS_OF_SMALL_PICTURES && few_weights
}

/// Whether the weights' gradient is. It sums over the batch, which does play a part here.
pub(crate) fn applies_to_weight_gradient(shape: &Convolution) -> bool {
    if !fits(shape) || shape.output_channels < CHANNELS_FROM {
        return false;
    }
    // Tiles that hang over the border are worked for nothing, and 36 values for each weight must be written at least once.
    let (pixels, tiles) = (shape.output_height() * shape.output_width(), Grid::of(shape).tile_count());
    8 * tiles <= pixels && shape.batch * tiles >= TILES_FROM
}

fn fits(shape: &Convolution) -> bool {
    shape.kernel_size == 3 && shape.stride == 1 && shape.input_channels >= CHANNELS_FROM && shape.height.min(shape.width) + shape.before + shape.after >= 3
}

/// How far apart the values of two points begin where each point has `len` floats: an odd number of cache lines, for 36 places that are read or written
/// together and lie a power of two apart would all fall upon the same few lines of the cache.
fn apart(len: usize) -> usize {
    (len.div_ceil(LINE) | 1) * LINE
}

/// The tiles of a picture.
#[derive(Clone, Copy)]
struct Grid {
    rows: usize,
    columns: usize,
}

/// A tile: its picture, and the first row and column of its result there.
struct Position {
    picture: usize,
    top: usize,
    left: usize,
}

impl Grid {
    fn of(shape: &Convolution) -> Self {
        Self { rows: shape.output_height().div_ceil(TILE), columns: shape.output_width().div_ceil(TILE) }
    }

    fn tile_count(&self) -> usize {
        self.rows * self.columns
    }

    /// Of a tile counted through all pictures.
    #[inline(always)]
    fn position(&self, tile: usize) -> Position {
        Position { picture: tile / self.tile_count(), top: tile / self.columns % self.rows * TILE, left: tile % self.columns * TILE }
    }
}

// The functions below are all `#[inline(always)]` and work on arrays with plain loops: what a closure or `array::from_fn` does with vectors is compiled
// without the instruction set of the kernel that calls it. Columns are made one beside the other, for an array of zeros to be filled later would be written
// to memory first.

/// The six values of three weights: G of the paper.
#[inline(always)]
fn weight_points<V: Vector>(g: [V; 3]) -> [V; SPAN] {
    let even_a = g[2].mul_add(V::splat(A2 * WEIGHT_A), g[0].mul(V::splat(WEIGHT_A)));
    let even_b = g[2].mul_add(V::splat(B2 * WEIGHT_B), g[0].mul(V::splat(WEIGHT_B)));
    let (odd_a, odd_b) = (g[1].mul(V::splat(A * WEIGHT_A)), g[1].mul(V::splat(B * WEIGHT_B)));
    [g[0].mul(V::splat(1.0 / (A2 * B2))), even_a.add(odd_a), even_a.sub(odd_a), even_b.add(odd_b), even_b.sub(odd_b), g[2]]
}

/// The six values of six pixels: the transpose of the paper's B.
#[inline(always)]
fn pixel_points<V: Vector>(d: [V; SPAN]) -> [V; SPAN] {
    let (product, sum) = (V::splat(A2 * B2), V::splat(-(A2 + B2)));
    let (minus_a2, minus_b2) = (V::splat(-A2), V::splat(-B2));
    let (even_a, odd_a) = (d[2].mul_add(minus_b2, d[4]), d[1].mul_add(minus_b2, d[3]).mul(V::splat(A)));
    let (even_b, odd_b) = (d[2].mul_add(minus_a2, d[4]), d[1].mul_add(minus_a2, d[3]).mul(V::splat(B)));
    let first = d[2].mul_add(sum, d[0].mul_add(product, d[4]));
    let last = d[3].mul_add(sum, d[1].mul_add(product, d[5]));
    [first, even_a.add(odd_a), even_a.sub(odd_a), even_b.add(odd_b), even_b.sub(odd_b), last]
}

/// Four pixels from six values: the transpose of the paper's A.
#[inline(always)]
fn pixels<V: Vector>(m: [V; SPAN]) -> [V; TILE] {
    let (sum_a, difference_a, sum_b, difference_b) = (m[1].add(m[2]), m[1].sub(m[2]), m[3].add(m[4]), m[3].sub(m[4]));
    [
        m[0].add(sum_a).add(sum_b),
        difference_a.mul_add(V::splat(A), difference_b.mul(V::splat(B))),
        sum_a.mul_add(V::splat(A2), sum_b.mul(V::splat(B2))),
        difference_a.mul_add(V::splat(A * A2), difference_b.mul_add(V::splat(B * B2), m[5])),
    ]
}

/// Takes `some` channels of a tile of x [batch, height, width, input_channels], `rounded` to bf16 if so asked, to their 36 values, zeros where it reaches
/// beyond the picture.
/// # Safety
/// The input has those channels. As many floats can be written at `out` and at each of the 35 places `point_len` floats apart behind it.
#[inline(always)]
unsafe fn input_points<V: Vector>(x: &[f32], rounded: bool, shape: &Convolution, at: Position, some: Range<usize>, out: *mut f32, point_len: usize) {
    let &Convolution { height, width, input_channels: channels, before, .. } = shape;
    let x = &x[at.picture * height * width * channels..][..height * width * channels];
    // Where each pixel begins in x, column by column, or beyond x in the padding: before the first row or column, subtraction gives a number beyond any picture.
    let mut offsets = [[usize::MAX; SPAN]; SPAN];
    for (j, offsets) in offsets.iter_mut().enumerate() {
        let column = (at.left + j).wrapping_sub(before);
        for (i, offset) in offsets.iter_mut().enumerate() {
            let row = (at.top + i).wrapping_sub(before);
            if row < height && column < width {
                *offset = (row * width + column) * channels;
            }
        }
    }
    for start in (0..some.len()).step_by(V::LANES) {
        let count = some.len() - start;
        // SAFETY: pixels inside the picture have these channels, as has each point, the caller's promise; parts end there.
        unsafe {
            let x = x.as_ptr().wrapping_add(some.start + start); // x is empty where there is only padding
            let columns = [
                input_column::<V>(x, rounded, &offsets[0], count),
                input_column::<V>(x, rounded, &offsets[1], count),
                input_column::<V>(x, rounded, &offsets[2], count),
                input_column::<V>(x, rounded, &offsets[3], count),
                input_column::<V>(x, rounded, &offsets[4], count),
                input_column::<V>(x, rounded, &offsets[5], count),
            ];
            for i in 0..SPAN {
                let values = pixel_points([columns[0][i], columns[1][i], columns[2][i], columns[3][i], columns[4][i], columns[5][i]]);
                for (j, value) in values.into_iter().enumerate() {
                    store(value, out.add((i * SPAN + j) * point_len + start), count);
                }
            }
        }
    }
}

/// The six values of a column of pixels that lie at `offsets`.
/// # Safety
/// `count` floats can be read at each offset that is not `usize::MAX`.
#[inline(always)]
unsafe fn input_column<V: Vector>(x: *const f32, rounded: bool, offsets: &[usize; SPAN], count: usize) -> [V; SPAN] {
    let mut d = [V::zero(); SPAN];
    for (d, &offset) in d.iter_mut().zip(offsets) {
        if offset != usize::MAX {
            // SAFETY: the caller's promise.
            *d = unsafe { load(x.wrapping_add(offset), count) };
            if rounded {
                *d = d.rounded_to_bf16();
            }
        }
    }
    pixel_points(d)
}

/// Column `j` of the 36 values, a vector of each.
/// # Safety
/// A vector can be read at `from` and at each of the 35 places `point_len` floats apart behind it.
#[inline(always)]
unsafe fn points_of_column<V: Vector>(from: *const f32, point_len: usize, j: usize) -> [V; SPAN] {
    let mut values = [V::zero(); SPAN];
    for (i, value) in values.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *value = unsafe { V::load(from.add((i * SPAN + j) * point_len)) };
    }
    values
}
