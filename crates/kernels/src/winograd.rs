//! Convolution 3x3 with stride 1 by a quarter of the multiplications: F(4x4, 3x3) of Winograd's minimal filtering (Lavin and Gray 2015, 1509.09308).
//!
//! A tile of 6x6 pixels and the 3x3 weights are both taken to 36 values at which polynomials are evaluated; there a convolution is a product, and the way back
//! gives 4x4 pixels. The points are 0, ±3/4, ±3/2 and infinity: with the usual 0, ±1, ±2 rounding errors are four times as large. With these the largest error
//! stays within twice that of the sum as the definition has it (measured for 64 to 512 channels: 1e-6 to 3e-6 of the largest result).
//!
//! Each result is one chain of multiply-adds over the input channels and fixed sums around it: neither threads nor the batch change a bit.

#![allow(clippy::needless_range_loop)] // an index goes through the same place of six columns at once

use crate::convolution::Convolution;
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::product::{Source, pack_panel};
use crate::threads::{count, each};
use crate::vector::{Vector, load, store};
use std::ops::Range;

/// Pixels of a side of the result of a tile, and of what it reads.
const TILE: usize = 4;
const SPAN: usize = 6;
const POINTS: usize = SPAN * SPAN;
/// Tiles of a task: a multiple of every product kernel's rows.
const TILE_STEP: usize = 12;
/// Floats of a task's transformed input, about what the second-level cache holds.
const BLOCK_SIZE: usize = 128 * 1024;
/// Smaller pictures do not earn the transformation of the weights.
const PIXELS_FROM: usize = 256;
/// With fewer input channels the transformations outweigh the products.
const CHANNELS_FROM: usize = 8;

// The points and what follows from them.
const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;
const WEIGHT_A: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
const WEIGHT_B: f32 = 1.0 / (2.0 * B2 * (B2 - A2));

/// A convolution whose input is x [batch, height, width, channels] and whose weights are `weights`' nine taps.
pub(crate) struct Picture<'a> {
    pub x: &'a [f32],
    /// `input_channels` and `output_channels` are those of this pass, and `before` its padding.
    pub shape: Convolution,
    /// Whether the taps come last to first: the gradient for the input.
    pub reversed: bool,
}

/// Whether a pass with this shape is better computed here. The batch plays no part.
pub(crate) fn applies(shape: &Convolution) -> bool {
    let fits =
        shape.kernel_size == 3 && shape.stride == 1 && shape.input_channels >= CHANNELS_FROM && shape.height.min(shape.width) + shape.before + shape.after >= 3;
    fits && shape.output_height() * shape.output_width() >= PIXELS_FROM
}

pub(crate) fn convolve(set: InstructionSet, picture: &Picture, weights: &Source, bias: Option<&[f32]>, y: &mut [f32]) {
    let shape = picture.shape;
    let (rows, columns) = (shape.output_height().div_ceil(TILE), shape.output_width().div_ceil(TILE));
    let total = shape.batch * rows * columns;
    if total == 0 || shape.output_channels == 0 {
        return;
    }
    let panels = transformed_weights(set, weights, picture.reversed);
    // How tiles are shared out changes no element.
    let fitting = BLOCK_SIZE / (POINTS * shape.input_channels) / TILE_STEP * TILE_STEP;
    let fair = total.div_ceil(count()).next_multiple_of(TILE_STEP);
    let block = fitting.clamp(2 * TILE_STEP, 4 * TILE_STEP).min(fair);
    let out = Shared::new(y);
    each(total.div_ceil(block), |index| {
        let tiles = index * block..((index + 1) * block).min(total);
        let mut input = Scratch::new(POINTS * tiles.len() * shape.input_channels);
        let mut products = Scratch::new(POINTS * tiles.len() * set.panel_width());
        set.run(Tiles {
            picture,
            tiles,
            grid: (rows, columns),
            panels: panels.as_slice(),
            bias,
            input: input.as_mut_slice(),
            products: products.as_mut_slice(),
            // SAFETY: only the pixels of this task's tiles are written through it.
            y: unsafe { out.at(0) },
        });
    });
}

/// [panel][point][depth][panel's width]
fn transformed_weights(set: InstructionSet, weights: &Source, reversed: bool) -> Scratch {
    let (width, depth) = (set.panel_width(), weights.depth);
    let panel_count = weights.columns.div_ceil(width);
    let mut panels = Scratch::new(panel_count * POINTS * depth * width);
    let out = Shared::new(panels.as_mut_slice());
    each(panel_count, |panel| {
        let mut taps = Scratch::new(9 * depth * width);
        pack_panel(set, weights, panel * width, width, taps.as_mut_slice());
        // SAFETY: each task writes its own panel.
        let out = unsafe { out.slice(panel * POINTS * depth * width, POINTS * depth * width) };
        set.run(Weights { taps: taps.as_slice(), reversed, out });
    });
    panels
}

// The functions below are all `#[inline(always)]` and work on arrays with plain loops: what a closure or `array::from_fn` does with vectors is compiled
// without the instruction set of the kernel that calls it.

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

struct Weights<'a> {
    /// [9][depth][width]
    taps: &'a [f32],
    reversed: bool,
    /// [POINTS][depth][width]
    out: &'a mut [f32],
}

impl Kernel for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let len = self.taps.len() / 9;
        for at in (0..len).step_by(V::LANES) {
            // SAFETY: depth times the panel's width is a multiple of the vector's, so whole vectors lie in every tap and point.
            unsafe {
                let taps = self.taps.as_ptr().add(at);
                let mut columns = [[V::zero(); SPAN]; 3];
                for (v, column) in columns.iter_mut().enumerate() {
                    let mut g = [V::zero(); 3];
                    for (u, g) in g.iter_mut().enumerate() {
                        let tap = if self.reversed { 8 - (3 * u + v) } else { 3 * u + v };
                        *g = V::load(taps.add(tap * len));
                    }
                    *column = weight_points(g);
                }
                for i in 0..SPAN {
                    let values = weight_points([columns[0][i], columns[1][i], columns[2][i]]);
                    for (j, value) in values.into_iter().enumerate() {
                        value.store(self.out.as_mut_ptr().add((i * SPAN + j) * len + at));
                    }
                }
            }
        }
    }
}

struct Tiles<'a> {
    picture: &'a Picture<'a>,
    /// Among those of all pictures.
    tiles: Range<usize>,
    /// Rows and columns of tiles of a picture.
    grid: (usize, usize),
    panels: &'a [f32],
    bias: Option<&'a [f32]>,
    /// [POINTS][tiles][input_channels]
    input: &'a mut [f32],
    /// [POINTS][tiles][panel's width]
    products: &'a mut [f32],
    y: *mut f32,
}

impl Kernel for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        for place in 0..self.tiles.len() {
            self.transform_input::<V>(place);
        }
        let Convolution { input_channels: depth, output_channels, .. } = self.picture.shape;
        let width = 2 * V::LANES;
        for panel in 0..output_channels.div_ceil(width) {
            for point in 0..POINTS {
                let weights = &self.panels[(panel * POINTS + point) * depth * width..][..depth * width];
                match V::TILE_ROWS {
                    4 => self.multiply::<V, 4>(point, weights),
                    6 => self.multiply::<V, 6>(point, weights),
                    _ => self.multiply::<V, 12>(point, weights),
                }
            }
            for place in 0..self.tiles.len() {
                self.transform_output::<V>(panel, place);
            }
        }
    }
}

impl Tiles<'_> {
    /// The picture of the tile at `place`, and the first row and column of its result.
    #[inline(always)]
    fn position(&self, place: usize) -> (usize, usize, usize) {
        let (tile, (rows, columns)) = (self.tiles.start + place, self.grid);
        (tile / (rows * columns), tile / columns % rows * TILE, tile % columns * TILE)
    }

    #[inline(always)]
    fn transform_input<V: Vector>(&mut self, place: usize) {
        let Convolution { height, width, input_channels: channels, before, .. } = self.picture.shape;
        let (b, top, left) = self.position(place);
        let point_len = self.tiles.len() * channels;
        let x = &self.picture.x[b * height * width * channels..][..height * width * channels];
        // Where each pixel begins in x, or beyond x in the padding: before the first row or column, subtraction gives a number beyond any picture.
        let mut offsets = [[usize::MAX; SPAN]; SPAN];
        for (i, offsets) in offsets.iter_mut().enumerate() {
            let row = (top + i).wrapping_sub(before);
            for (j, offset) in offsets.iter_mut().enumerate() {
                let column = (left + j).wrapping_sub(before);
                if row < height && column < width {
                    *offset = (row * width + column) * channels;
                }
            }
        }
        let out = self.input[place * channels..].as_mut_ptr();
        for start in (0..channels).step_by(V::LANES) {
            let count = channels - start;
            // SAFETY: pixels inside the picture have `channels` floats, as has each point's row of this tile; parts end there.
            unsafe {
                let mut columns = [[V::zero(); SPAN]; SPAN];
                for (j, column) in columns.iter_mut().enumerate() {
                    let mut d = [V::zero(); SPAN];
                    for (i, d) in d.iter_mut().enumerate() {
                        let offset = offsets[i][j];
                        if offset != usize::MAX {
                            *d = load(x.as_ptr().add(offset + start), count);
                        }
                    }
                    *column = pixel_points(d);
                }
                for i in 0..SPAN {
                    let values = pixel_points([columns[0][i], columns[1][i], columns[2][i], columns[3][i], columns[4][i], columns[5][i]]);
                    for (j, value) in values.into_iter().enumerate() {
                        store(value, out.add((i * SPAN + j) * point_len + start), count);
                    }
                }
            }
        }
    }

    /// The products of one point for one panel of output channels.
    #[inline(always)]
    fn multiply<V: Vector, const M: usize>(&mut self, point: usize, weights: &[f32]) {
        let (depth, tiles, width) = (self.picture.shape.input_channels, self.tiles.len(), 2 * V::LANES);
        let input = &self.input[point * tiles * depth..][..tiles * depth];
        let out = &mut self.products[point * tiles * width..][..tiles * width];
        let mut row = 0;
        while row < tiles {
            let (from, to) = (&input[row * depth..], &mut out[row * width..]);
            // SAFETY: as many rows as the tile has are left in both.
            unsafe {
                match tiles - row {
                    left if left >= M => {
                        tile::<V, M>(from, weights, depth, to);
                        row += M;
                    }
                    left if left >= 4 => {
                        tile::<V, 4>(from, weights, depth, to);
                        row += 4;
                    }
                    left if left >= 2 => {
                        tile::<V, 2>(from, weights, depth, to);
                        row += 2;
                    }
                    _ => {
                        tile::<V, 1>(from, weights, depth, to);
                        row += 1;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn transform_output<V: Vector>(&mut self, panel: usize, place: usize) {
        let shape = self.picture.shape;
        let (height, width, channels) = (shape.output_height(), shape.output_width(), shape.output_channels);
        let (b, top, left) = self.position(place);
        let panel_width = 2 * V::LANES;
        let point_len = self.tiles.len() * panel_width;
        for half in 0..2 {
            let start = panel * panel_width + half * V::LANES;
            if start >= channels {
                break;
            }
            let count = channels - start;
            // SAFETY: every point has a row of the panel's width for this tile; pixels inside the result have `channels` floats, where parts end.
            unsafe {
                let products = self.products.as_ptr().add(place * panel_width + half * V::LANES);
                let bias = match self.bias {
                    Some(bias) => load(bias.as_ptr().add(start), count),
                    None => V::zero(),
                };
                let mut columns = [[V::zero(); TILE]; SPAN];
                for (j, column) in columns.iter_mut().enumerate() {
                    let mut m = [V::zero(); SPAN];
                    for (i, m) in m.iter_mut().enumerate() {
                        *m = V::load(products.add((i * SPAN + j) * point_len));
                    }
                    *column = pixels(m);
                }
                for i in 0..TILE.min(height - top) {
                    let values = pixels([columns[0][i], columns[1][i], columns[2][i], columns[3][i], columns[4][i], columns[5][i]]);
                    let line = self.y.add(((b * height + top + i) * width + left) * channels + start);
                    for (j, value) in values.into_iter().enumerate().take(width - left) {
                        store(value.add(bias), line.add(j * channels), count);
                    }
                }
            }
        }
    }
}

/// out [M, two vectors] = rows [M, depth] * weights [depth, two vectors].
/// # Safety
/// `rows` holds M * depth floats, `weights` depth and `out` M times two vectors.
#[inline(always)]
unsafe fn tile<V: Vector, const M: usize>(rows: &[f32], weights: &[f32], depth: usize, out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        let rows: [*const f32; M] = std::array::from_fn(|i| rows.as_ptr().add(i * depth));
        let mut sums = [[V::zero(); 2]; M];
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
