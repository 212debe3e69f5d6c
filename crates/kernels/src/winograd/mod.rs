//! Convolution 3x3 with stride 1 by a quarter of the multiplications: F(4x4, 3x3) of Winograd's minimal filtering (Lavin and Gray 2015, 1509.09308).
//!
//! A tile of 6x6 pixels and the 3x3 weights are both taken to 36 values at which polynomials are evaluated; there a convolution is a product, and the way back
//! gives 4x4 pixels. The points are 0, ±3/4, ±3/2 and infinity: with the usual 0, ±1, ±2 rounding errors are four times as large. With these the largest error
//! stays within twice that of the sum as the definition has it (measured for 64 to 512 channels: 1e-6 to 3e-6 of the largest result).
//!
//! In runs in bf16 the values become integers where the processor multiplies pairs of these: `fixed_point`. Elsewhere they are `floats`.
//!
//! The gradient for the weights is the same backwards: results are taken to the 36 values, products are summed over tiles, and nine weights come back.
//!
//! Each result is one chain of multiply-adds over the input channels (for the weights: over the tiles of a block) and fixed sums around it: the threads
//! change no bit, nor, but for the weights' gradient, the batch.

#![allow(clippy::needless_range_loop)] // an index goes through the same place of six columns at once

mod by_panels;
mod convolve;
#[cfg(target_arch = "x86_64")]
mod fixed_point;
mod floats;
mod weight_gradient;

pub(crate) use convolve::{Picture, convolve};
#[cfg(target_arch = "x86_64")]
pub(crate) use fixed_point::weight_gradient as weight_gradient_in_fixed_point;
pub(crate) use weight_gradient::weight_gradient;

use crate::convolution::Convolution;
use crate::memory::Scratch;
use crate::vector::{Vector, load, prefetch_to_second_level, store};
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
pub(crate) fn applies(shape: &Convolution, in_fixed_point: bool) -> bool {
    if !fits(shape) {
        return false; // the kernel of a turned shape need not fit
    }
    let pixels = shape.output_height() * shape.output_width();
    let few_weights = in_fixed_point || shape.input_channels * shape.output_channels <= WEIGHTS_OF_SMALL_PICTURES;
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

/// The 36 values of a vector of weights, row by row.
/// # Safety
/// A vector can be read at each of the nine taps, which lie `tap_stride` floats apart.
#[inline(always)]
unsafe fn weight_values<V: Vector>(taps: *const f32, tap_stride: isize) -> [[V; SPAN]; SPAN] {
    // SAFETY: the caller's promise.
    let columns = unsafe { [weight_column::<V>(taps, tap_stride, 0), weight_column(taps, tap_stride, 1), weight_column(taps, tap_stride, 2)] };
    let mut values = [[V::zero(); SPAN]; SPAN];
    for i in 0..SPAN {
        values[i] = weight_points([columns[0][i], columns[1][i], columns[2][i]]);
    }
    values
}

/// The six values of a column of weights.
/// # Safety
/// As `weight_values`.
#[inline(always)]
unsafe fn weight_column<V: Vector>(taps: *const f32, tap_stride: isize, v: usize) -> [V; SPAN] {
    let mut g = [V::zero(); 3];
    for (u, g) in g.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *g = unsafe { V::load(taps.offset((3 * u + v) as isize * tap_stride)) };
    }
    weight_points(g)
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

/// What the pixels of tiles are read from.
struct Input<'a> {
    /// [batch, height, width, input_channels] of the shape.
    x: &'a [f32],
    shape: &'a Convolution,
    /// What is read beyond the picture, as many as there are channels.
    zeros: Scratch,
}

impl<'a> Input<'a> {
    fn new(x: &'a [f32], shape: &'a Convolution) -> Self {
        let mut zeros = Scratch::new(shape.input_channels);
        zeros.as_mut_slice().fill(0.0);
        Self { x, shape, zeros }
    }
}

/// Where the channels of each pixel of a tile begin, column by column.
type Pixels = [[*const f32; SPAN]; SPAN];

impl Input<'_> {
    #[inline(always)]
    fn pixels(&self, at: Position) -> Pixels {
        let &Convolution { height, width, input_channels: channels, before, .. } = self.shape;
        let x = &self.x[at.picture * height * width * channels..][..height * width * channels];
        let mut pixels = [[self.zeros.as_slice().as_ptr(); SPAN]; SPAN];
        for (j, pixels) in pixels.iter_mut().enumerate() {
            // Before the first row or column, subtraction gives a number beyond any picture.
            let column = (at.left + j).wrapping_sub(before);
            for (i, pixel) in pixels.iter_mut().enumerate() {
                let row = (at.top + i).wrapping_sub(before);
                if row < height && column < width {
                    *pixel = x[(row * width + column) * channels..].as_ptr();
                }
            }
        }
        pixels
    }
}

/// Takes `some` channels of a tile, `ROUNDED` to bf16 if so asked, to their 36 values.
/// # Safety
/// The pixels are the input's. As many floats can be written at `out` and at each of the 35 places `point_len` floats apart behind it.
#[inline(always)]
unsafe fn input_points<V: Vector, const ROUNDED: bool>(input: &Input, pixels: &Pixels, some: Range<usize>, out: *mut f32, point_len: usize) {
    let channels = input.shape.input_channels;
    assert!(some.end <= channels);
    for channel in some.clone().step_by(V::LANES) {
        // Rows of the tile after the next lie too far apart to be foreseen by the hardware.
        for column in &pixels[SPAN - TILE..] {
            for pixel in column {
                prefetch_to_second_level(pixel.wrapping_add(2 * TILE * channels + channel));
            }
        }
        // SAFETY: pixels have these channels, as has each point, the caller's promise; parts end there.
        unsafe {
            let out = out.add(channel - some.start);
            let count = some.end - channel;
            if count >= V::LANES {
                store_points(pixel_values::<V, ROUNDED>(pixels, channel, V::LANES), out, point_len, V::LANES);
            } else {
                store_points(pixel_values::<V, ROUNDED>(pixels, channel, count), out, point_len, count);
            }
        }
    }
}

/// # Safety
/// `count` floats can be written at `out` and at each of the 35 places `point_len` floats apart behind it.
#[inline(always)]
unsafe fn store_points<V: Vector>(values: [[V; SPAN]; SPAN], out: *mut f32, point_len: usize, count: usize) {
    for (i, values) in values.into_iter().enumerate() {
        for (j, value) in values.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { store(value, out.add((i * SPAN + j) * point_len), count) };
        }
    }
}

/// The 36 values, row by row, of a vector of channels of which `count` are left.
/// # Safety
/// `count` floats can be read at each pixel from that channel on.
#[inline(always)]
unsafe fn pixel_values<V: Vector, const ROUNDED: bool>(pixels: &Pixels, channel: usize, count: usize) -> [[V; SPAN]; SPAN] {
    // SAFETY: the caller's promise.
    let columns = unsafe { pixel_columns::<V, ROUNDED>(pixels, channel, count) };
    let mut values = [[V::zero(); SPAN]; SPAN];
    for i in 0..SPAN {
        values[i] = pixel_points([columns[0][i], columns[1][i], columns[2][i], columns[3][i], columns[4][i], columns[5][i]]);
    }
    values
}

/// The six values of each column of pixels.
/// # Safety
/// As `pixel_values`.
#[inline(always)]
unsafe fn pixel_columns<V: Vector, const ROUNDED: bool>(pixels: &Pixels, channel: usize, count: usize) -> [[V; SPAN]; SPAN] {
    // SAFETY: the caller's promise.
    unsafe {
        [
            pixel_column::<V, ROUNDED>(&pixels[0], channel, count),
            pixel_column::<V, ROUNDED>(&pixels[1], channel, count),
            pixel_column::<V, ROUNDED>(&pixels[2], channel, count),
            pixel_column::<V, ROUNDED>(&pixels[3], channel, count),
            pixel_column::<V, ROUNDED>(&pixels[4], channel, count),
            pixel_column::<V, ROUNDED>(&pixels[5], channel, count),
        ]
    }
}

/// The six values of a column of pixels.
/// # Safety
/// As `pixel_values`.
#[inline(always)]
unsafe fn pixel_column<V: Vector, const ROUNDED: bool>(pixels: &[*const f32; SPAN], channel: usize, count: usize) -> [V; SPAN] {
    let mut d = [V::zero(); SPAN];
    for (d, &pixel) in d.iter_mut().zip(pixels) {
        // SAFETY: the caller's promise.
        *d = unsafe { load(pixel.add(channel), count) };
        if ROUNDED {
            *d = d.rounded_to_bf16();
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
