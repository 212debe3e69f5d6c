//! The gradient for the weights: at each of the 36 points a product of the input's values with the result's, summed over tiles.
//!
//! Tiles are taken in blocks: first the block is transformed, then each point adds the block's products to its sums. Output channels are taken in groups, so
//! that the sums of all points stay small.

use super::{A, A2, B, B2, Grid, Input, POINTS, Position, SPAN, TILE, WEIGHT_A, WEIGHT_B, apart, input_points, points_of_column};
use crate::convolution::Convolution;
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::threads::each;
use crate::vector::{Vector, load, store};
use std::ops::Range;

/// Floats of the sums of a group of output channels (8 MiB).
const SUMS_LIMIT: usize = 2 << 20;
/// Floats of a block of transformed input (4 MiB).
const BLOCK_LIMIT: usize = 1 << 20;
/// Tiles of a block: a panel of that depth stays in the first-level cache.
const BLOCK_RANGE: [usize; 2] = [32, 256];
/// Tiles that are transformed by one task, whose results for the bias are summed together.
const TRANSFORM_STEP: usize = 16;
/// Input channels whose weights one task brings back.
const WEIGHT_STEP: usize = 8;

/// dweight [3, 3, input_channels, output_channels] = sum over all pixels of x outer dy; dbias, if asked for, = sum over all pixels of dy.
pub(crate) fn weight_gradient(set: InstructionSet, x: &[f32], dy: &[f32], shape: Convolution, dweight: &mut [f32], mut dbias: Option<&mut [f32]>) {
    let Convolution { batch, input_channels, output_channels, .. } = shape;
    let (grid, width) = (Grid::of(&shape), set.panel_width());
    let total = batch * grid.tile_count();
    // Fixed by the shape, for the order of the sums depends on it.
    let [least, most] = BLOCK_RANGE;
    let block = (BLOCK_LIMIT / (POINTS * input_channels) / TRANSFORM_STEP * TRANSFORM_STEP).clamp(least, most);
    let group = (SUMS_LIMIT / (POINTS * input_channels) / width).max(1) * width;
    if let Some(dbias) = &mut dbias {
        dbias.fill(0.0);
    }
    let out = Shared::new(dweight);
    for first_channel in (0..output_channels).step_by(group) {
        let channels = first_channel..(first_channel + group).min(output_channels);
        let panel_count = channels.len().div_ceil(width);
        let mut sums = Scratch::new(POINTS * apart(input_channels * panel_count * width));
        for start in (0..total).step_by(block) {
            let tiles = start..(start + block).min(total);
            let step_count = tiles.len().div_ceil(TRANSFORM_STEP);
            let mut input = Scratch::new(POINTS * apart(tiles.len() * input_channels));
            let mut result = Scratch::new(POINTS * apart(tiles.len() * panel_count * width));
            let mut pixel_sums = Scratch::new(step_count * panel_count * width);
            let (input_out, result_out, pixel_sums_out) =
                (Shared::new(input.as_mut_slice()), Shared::new(result.as_mut_slice()), Shared::new(pixel_sums.as_mut_slice()));
            each(step_count, |step| {
                let places = step * TRANSFORM_STEP..((step + 1) * TRANSFORM_STEP).min(tiles.len());
                set.run(Transform {
                    x,
                    dy,
                    shape: &shape,
                    grid,
                    channels: channels.clone(),
                    tiles: tiles.clone(),
                    places,
                    // SAFETY: only this task's places are written through the first two, and its own sums through the third.
                    input: unsafe { input_out.at(0) },
                    // SAFETY: as above.
                    result: unsafe { result_out.at(0) },
                    // SAFETY: as above.
                    pixel_sums: unsafe { pixel_sums_out.slice(step * panel_count * width, panel_count * width) },
                });
            });
            if let Some(dbias) = &mut dbias {
                for step in pixel_sums.as_slice().chunks_exact(panel_count * width) {
                    dbias[channels.clone()].iter_mut().zip(step).for_each(|(sum, value)| *sum += value);
                }
            }
            let sums_out = Shared::new(sums.as_mut_slice());
            let (input_len, result_len, sums_len) = (tiles.len() * input_channels, tiles.len() * panel_count * width, input_channels * panel_count * width);
            each(POINTS, |point| {
                set.run(Products {
                    input: &input.as_slice()[point * apart(input_len)..][..input_len],
                    result: &result.as_slice()[point * apart(result_len)..][..result_len],
                    tile_count: tiles.len(),
                    input_channels,
                    first: start == 0,
                    // SAFETY: each task writes the sums of its own point.
                    sums: unsafe { sums_out.slice(point * apart(sums_len), sums_len) },
                });
            });
        }
        each(input_channels.div_ceil(WEIGHT_STEP), |step| {
            set.run(Weights {
                sums: sums.as_slice(),
                input_channels,
                rows: step * WEIGHT_STEP..((step + 1) * WEIGHT_STEP).min(input_channels),
                channels: channels.clone(),
                output_channels,
                // SAFETY: each task writes the weights of its own input channels.
                out: unsafe { out.at(0) },
            });
        });
    }
}

/// The six values of four pixels of the result: A of the paper.
#[inline(always)]
pub(super) fn result_points<V: Vector>(d: [V; TILE]) -> [V; SPAN] {
    let (even_a, odd_a) = (d[2].mul_add(V::splat(A2), d[0]), d[3].mul_add(V::splat(A2), d[1]).mul(V::splat(A)));
    let (even_b, odd_b) = (d[2].mul_add(V::splat(B2), d[0]), d[3].mul_add(V::splat(B2), d[1]).mul(V::splat(B)));
    [d[0], even_a.add(odd_a), even_a.sub(odd_a), even_b.add(odd_b), even_b.sub(odd_b), d[3]]
}

/// Three weights from six values: the transpose of the paper's G.
#[inline(always)]
pub(super) fn weights<V: Vector>(u: [V; SPAN]) -> [V; 3] {
    let (sum_a, difference_a) = (u[1].add(u[2]).mul(V::splat(WEIGHT_A)), u[1].sub(u[2]).mul(V::splat(WEIGHT_A)));
    let (sum_b, difference_b) = (u[3].add(u[4]).mul(V::splat(WEIGHT_B)), u[3].sub(u[4]).mul(V::splat(WEIGHT_B)));
    [
        u[0].mul_add(V::splat(1.0 / (A2 * B2)), sum_a.add(sum_b)),
        difference_a.mul_add(V::splat(A), difference_b.mul(V::splat(B))),
        sum_a.mul_add(V::splat(A2), sum_b.mul_add(V::splat(B2), u[5])),
    ]
}

struct Transform<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    shape: &'a Convolution,
    grid: Grid,
    /// Of the result.
    channels: Range<usize>,
    /// The block's, among those of all pictures.
    tiles: Range<usize>,
    /// This task's, among the block's.
    places: Range<usize>,
    /// [POINTS][tiles][input_channels], each point [`apart`]
    input: *mut f32,
    /// [POINTS][panels][tiles][panel's width], each point [`apart`]
    result: *mut f32,
    /// [panels][panel's width]: the sum over the pixels of the task's tiles.
    pixel_sums: &'a mut [f32],
}

impl Kernel for Transform<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        self.pixel_sums.fill(0.0);
        let (input_channels, tile_count, width) = (self.shape.input_channels, self.tiles.len(), 2 * V::LANES);
        let input = Input::new(self.x, self.shape);
        for place in self.places.clone() {
            let tile = self.tiles.start + place;
            // SAFETY: every point has a row of the input's channels for this tile.
            unsafe {
                input_points::<V, false>(
                    &input,
                    &input.pixels(self.grid.position(tile)),
                    0..input_channels,
                    self.input.add(place * input_channels),
                    apart(tile_count * input_channels),
                )
            };
            for start in (0..self.pixel_sums.len()).step_by(V::LANES) {
                // SAFETY: every point has the panel's width for this tile in each panel, of which a vector begins here; so do the sums.
                unsafe {
                    let out = self.result.add((start / width * tile_count + place) * width + start % width);
                    let sum = self.result_points_of::<V>(tile, start, out);
                    let to = self.pixel_sums.as_mut_ptr().add(start);
                    V::load(to).add(sum).store(to);
                }
            }
        }
    }
}

impl Transform<'_> {
    /// Takes a vector of the group's channels of a tile of dy to its 36 values (zeros beyond the picture and the channels) and returns the sum of its pixels.
    /// # Safety
    /// A vector can be written at `out` and where each of the 35 other points has that place.
    #[inline(always)]
    unsafe fn result_points_of<V: Vector>(&self, tile: usize, start: usize, out: *mut f32) -> V {
        let at = self.grid.position(tile);
        let point_len = apart(self.pixel_sums.len() * self.tiles.len());
        let count = self.channels.len().saturating_sub(start);
        let mut sum = V::zero();
        // SAFETY: `count` floats of the group's channels begin at the start; the caller's promise.
        unsafe {
            let columns = [
                self.column::<V>(&at, 0, start, count, &mut sum),
                self.column::<V>(&at, 1, start, count, &mut sum),
                self.column::<V>(&at, 2, start, count, &mut sum),
                self.column::<V>(&at, 3, start, count, &mut sum),
            ];
            for i in 0..SPAN {
                let values = result_points([columns[0][i], columns[1][i], columns[2][i], columns[3][i]]);
                for (j, value) in values.into_iter().enumerate() {
                    value.store(out.add((i * SPAN + j) * point_len));
                }
            }
        }
        sum
    }

    /// The six values of column `j` of a tile of dy, whose pixels are added to `sum`.
    /// # Safety
    /// `count` of the group's channels lie behind the start.
    #[inline(always)]
    unsafe fn column<V: Vector>(&self, at: &Position, j: usize, start: usize, count: usize, sum: &mut V) -> [V; SPAN] {
        let (height, width, channels) = (self.shape.output_height(), self.shape.output_width(), self.shape.output_channels);
        let mut d = [V::zero(); TILE];
        for (i, d) in d.iter_mut().enumerate() {
            if count > 0 && at.top + i < height && at.left + j < width {
                let pixel = (at.picture * height + at.top + i) * width + at.left + j;
                // SAFETY: pixels inside the picture have `channels` floats; the caller's promise.
                *d = unsafe { load(self.dy.as_ptr().add(pixel * channels + self.channels.start + start), count) };
                *sum = sum.add(*d);
            }
        }
        result_points(d)
    }
}

/// One point of a block: sums [input_channels, panels of output channels] += input^T result.
struct Products<'a> {
    /// [tiles][input_channels]
    input: &'a [f32],
    /// [panels][tiles][panel's width]
    result: &'a [f32],
    tile_count: usize,
    input_channels: usize,
    /// Nothing stands in the sums yet.
    first: bool,
    /// [panels][input_channels][panel's width]
    sums: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        match V::TILE_ROWS {
            4 => self.panels::<V, 4>(),
            6 => self.panels::<V, 6>(),
            _ => self.panels::<V, 12>(),
        }
    }
}

impl Products<'_> {
    #[inline(always)]
    fn panels<V: Vector, const M: usize>(self) {
        let width = 2 * V::LANES;
        for (result, sums) in self.result.chunks_exact(self.tile_count * width).zip(self.sums.chunks_exact_mut(self.input_channels * width)) {
            let mut row = 0;
            while row < self.input_channels {
                let (from, to) = (&self.input[row..], &mut sums[row * width..]);
                // SAFETY: as many rows as the tile has are left in both.
                unsafe {
                    match self.input_channels - row {
                        left if left >= M => {
                            add_products::<V, M>(from, self.input_channels, result, self.first, to);
                            row += M;
                        }
                        left if left >= 4 => {
                            add_products::<V, 4>(from, self.input_channels, result, self.first, to);
                            row += 4;
                        }
                        left if left >= 2 => {
                            add_products::<V, 2>(from, self.input_channels, result, self.first, to);
                            row += 2;
                        }
                        _ => {
                            add_products::<V, 1>(from, self.input_channels, result, self.first, to);
                            row += 1;
                        }
                    }
                }
            }
        }
    }
}

/// sums [M, two vectors] += the first M columns of input [tiles, stride] times result [tiles, two vectors].
/// # Safety
/// `input` holds M floats every `stride`, as often as `result` two vectors; `sums` M times two vectors.
#[inline(always)]
unsafe fn add_products<V: Vector, const M: usize>(input: &[f32], stride: usize, result: &[f32], first: bool, sums: &mut [f32]) {
    let width = 2 * V::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals = [[V::zero(); 2]; M];
        let (mut a, mut b) = (input.as_ptr(), result.as_ptr());
        for _ in 0..result.len() / width {
            let pair = [V::load(b), V::load(b.add(V::LANES))];
            for (i, total) in totals.iter_mut().enumerate() {
                let a = V::splat(*a.add(i));
                *total = [a.mul_add(pair[0], total[0]), a.mul_add(pair[1], total[1])];
            }
            a = a.wrapping_add(stride);
            b = b.add(width);
        }
        for (i, total) in totals.into_iter().enumerate() {
            let to = sums.as_mut_ptr().add(i * width);
            let old = if first { [V::zero(); 2] } else { [V::load(to), V::load(to.add(V::LANES))] };
            old[0].add(total[0]).store(to);
            old[1].add(total[1]).store(to.add(V::LANES));
        }
    }
}

/// The weights of some input channels from the sums of the 36 points.
struct Weights<'a> {
    /// [POINTS][panels][input_channels][panel's width], each point [`apart`]
    sums: &'a [f32],
    input_channels: usize,
    /// Input channels.
    rows: Range<usize>,
    /// Output channels of the group.
    channels: Range<usize>,
    output_channels: usize,
    /// [9][input_channels][output_channels]
    out: *mut f32,
}

impl Kernel for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (width, point_len) = (2 * V::LANES, self.sums.len() / POINTS);
        for row in self.rows {
            for start in (0..self.channels.len()).step_by(V::LANES) {
                let from = &self.sums[(start / width * self.input_channels + row) * width + start % width..];
                // SAFETY: a vector lies at that place of every point; parts of weights end where the group's channels do.
                unsafe {
                    let from = from.as_ptr();
                    let columns = [
                        weights(points_of_column::<V>(from, point_len, 0)),
                        weights(points_of_column::<V>(from, point_len, 1)),
                        weights(points_of_column::<V>(from, point_len, 2)),
                        weights(points_of_column::<V>(from, point_len, 3)),
                        weights(points_of_column::<V>(from, point_len, 4)),
                        weights(points_of_column::<V>(from, point_len, 5)),
                    ];
                    for i in 0..3 {
                        let values = weights([columns[0][i], columns[1][i], columns[2][i], columns[3][i], columns[4][i], columns[5][i]]);
                        for (j, value) in values.into_iter().enumerate() {
                            let weight = ((3 * i + j) * self.input_channels + row) * self.output_channels + self.channels.start + start;
                            store(value, self.out.add(weight), self.channels.len() - start);
                        }
                    }
                }
            }
        }
    }
}
