//! The same where there are many weights. All 36 values of all weights, four times the weights, would go to memory and come back for every few tiles. So the
//! tiles are taken in large blocks, and for each of them one panel of output channels after the other: slice by slice of the depth, weights become their 36
//! values in the second-level cache, and the products are added up there.

use super::convolve::{Destination, Picture, Weights, multiply};
use super::{Grid, POINTS, apart, input_points};
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::product::{Source, pack_slice};
use crate::threads::{count, each, part};
use crate::vector::Vector;
use std::ops::Range;

/// Input channels times output channels from which on the 36 values of all weights, 36 MiB then, no longer stay in the caches.
const MANY: usize = 256 * 1024;
/// Panels for each thread, at least: with fewer some would wait at the end of each block.
const PANELS_PER_THREAD: usize = 2;
/// Input channels whose weights lie transformed in the second-level cache: 288 KiB with the widest panels.
const SLICE: usize = 64;
/// Tiles of a block, at most: their products take 432 KiB of that cache.
const TILES_OF_BLOCK: usize = 96;
/// Tiles that one task transforms.
const TILE_STEP: usize = 4;

/// Whether all panels would better be transformed for every block of tiles. It changes no bit of the result, so the threads may play a part.
pub(super) fn many_weights(set: InstructionSet, weights: &Source) -> bool {
    weights.depth * weights.columns >= MANY && weights.columns.div_ceil(set.panel_width()) >= PANELS_PER_THREAD * count()
}

pub(super) fn by_panels(set: InstructionSet, picture: &Picture, weights: &Source, bias: Option<&[f32]>, y: &mut [f32]) {
    let shape = &picture.shape;
    let (grid, depth, width) = (Grid::of(shape), shape.input_channels, set.panel_width());
    let total = shape.batch * grid.tile_count();
    let block_count = total.div_ceil(TILES_OF_BLOCK);
    let out = Shared::new(y);
    for block in 0..block_count {
        let tiles = part(total, block_count, block);
        let tile_count = tiles.len();
        let mut input = Scratch::new(POINTS * apart(tile_count * depth));
        let input_out = Shared::new(input.as_mut_slice());
        each(tile_count.div_ceil(TILE_STEP), |step| {
            let places = step * TILE_STEP..((step + 1) * TILE_STEP).min(tile_count);
            // SAFETY: only this task's places are written through it.
            set.run(Input { picture, grid, tiles: tiles.clone(), places, out: unsafe { input_out.at(0) } });
        });
        let input = input.as_slice();
        each(weights.columns.div_ceil(width), |panel| {
            let mut taps = Scratch::new(9 * SLICE * width);
            let mut points = Scratch::new(POINTS * apart(SLICE * width));
            let mut products = Scratch::new(POINTS * apart(tile_count * width));
            let products = products.as_mut_slice();
            for first in (0..depth).step_by(SLICE) {
                let depths = first..(first + SLICE).min(depth);
                let taps = &mut taps.as_mut_slice()[..9 * depths.len() * width];
                pack_slice(set, weights, 0..9, depths.clone(), panel..panel + 1, width, taps);
                let points = &mut points.as_mut_slice()[..POINTS * apart(depths.len() * width)];
                set.run(Weights { taps, reversed: picture.reversed, out: points });
                set.run(Products { input, depths, depth, tile_count, weights: points, out: products });
            }
            // SAFETY: only this panel's channels of the block's tiles are written through it.
            let destination = Destination { shape, grid, tiles: tiles.clone(), bias, y: unsafe { out.at(0) } };
            set.run(Pixels { products, panel, destination });
        });
    }
}

/// Where a slice of the depth begins in the values of a point, [slices][tiles][depths of the slice].
fn slice_start(first: usize, tile_count: usize) -> usize {
    first * tile_count
}

/// Takes some of the block's tiles to their 36 values.
struct Input<'a> {
    picture: &'a Picture<'a>,
    grid: Grid,
    /// The block's, among those of all pictures.
    tiles: Range<usize>,
    /// This task's, among the block's.
    places: Range<usize>,
    /// [POINTS][slices][tiles][depths of the slice], each point [`apart`]
    out: *mut f32,
}

impl Kernel for Input<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Picture { x, rounded, shape, .. } = self.picture;
        let (depth, tile_count) = (shape.input_channels, self.tiles.len());
        for place in self.places {
            for first in (0..depth).step_by(SLICE) {
                let depths = first..(first + SLICE).min(depth);
                let start = slice_start(first, tile_count) + place * depths.len();
                let at = self.grid.position(self.tiles.start + place);
                // SAFETY: every point has a row of the slice's depths for this tile.
                unsafe { input_points::<V>(x, *rounded, shape, at, depths, self.out.add(start), apart(tile_count * depth)) };
            }
        }
    }
}

/// Adds the products of a slice of the depth; the first slice begins the sums.
struct Products<'a> {
    /// As [`Input`] writes it.
    input: &'a [f32],
    depths: Range<usize>,
    depth: usize,
    tile_count: usize,
    /// [POINTS][depths][panel's width], each point [`apart`]
    weights: &'a [f32],
    /// [POINTS][tiles][panel's width], each point [`apart`]
    out: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (len, width) = (self.depths.len(), 2 * V::LANES);
        for point in 0..POINTS {
            let start = point * apart(self.tile_count * self.depth) + slice_start(self.depths.start, self.tile_count);
            let input = &self.input[start..][..self.tile_count * len];
            let weights = &self.weights[point * apart(len * width)..][..len * width];
            let out = &mut self.out[point * apart(self.tile_count * width)..][..self.tile_count * width];
            multiply::<V>(input, weights, self.depths.start > 0, out);
        }
    }
}

/// Takes the sums of a panel back to pixels.
struct Pixels<'a> {
    products: &'a [f32],
    panel: usize,
    destination: Destination<'a>,
}

impl Kernel for Pixels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for place in 0..self.destination.tiles.len() {
            self.destination.write::<V>(self.products, self.panel, place);
        }
    }
}
