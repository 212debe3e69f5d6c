//! Forward, and the gradient for the input, which is a convolution with the weights turned around.

use super::by_panels::{by_panels, many_weights};
use super::{Grid, POINTS, Position, SPAN, TILE, apart, input_points, pixels, points_of_column, weight_points};
use crate::convolution::Convolution;
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::product::{Source, pack_panel};
use crate::threads::{count, each};
use crate::vector::{Vector, load, store};
use std::ops::Range;

/// Tiles of a task: a multiple of every product kernel's rows.
const TILE_STEP: usize = 12;
/// Floats of a task's transformed input, about what the second-level cache holds; with many channels it is more, for fewer tiles would read weights too often.
const BLOCK_SIZE: usize = 128 * 1024;

/// A convolution whose input is x [batch, height, width, channels] and whose weights are `weights`' nine taps.
pub(crate) struct Picture<'a> {
    pub x: &'a [f32],
    /// Whether x is rounded to bf16 on the way.
    pub rounded: bool,
    /// `input_channels` and `output_channels` are those of this pass, and `before` its padding.
    pub shape: Convolution,
    /// Whether the taps come last to first: the gradient for the input.
    pub reversed: bool,
}

pub(crate) fn convolve(set: InstructionSet, picture: &Picture, weights: &Source, bias: Option<&[f32]>, y: &mut [f32]) {
    if picture.shape.batch * Grid::of(&picture.shape).tile_count() == 0 || picture.shape.output_channels == 0 {
        return;
    }
    if many_weights(set, weights) { by_panels(set, picture, weights, bias, y) } else { by_tiles(set, picture, weights, bias, y) }
}

/// All weights are taken to their 36 values first, then tiles few by few from the input to the result.
fn by_tiles(set: InstructionSet, picture: &Picture, weights: &Source, bias: Option<&[f32]>, y: &mut [f32]) {
    let shape = picture.shape;
    let grid = Grid::of(&shape);
    let total = shape.batch * grid.tile_count();
    let panels = transformed_weights(set, weights, picture.reversed);
    // How tiles are shared out changes no element.
    let fitting = BLOCK_SIZE / (POINTS * shape.input_channels) / TILE_STEP * TILE_STEP;
    let fair = total.div_ceil(count()).next_multiple_of(TILE_STEP);
    let block = fitting.clamp(2 * TILE_STEP, 4 * TILE_STEP).min(fair);
    let out = Shared::new(y);
    each(total.div_ceil(block), |index| {
        let tiles = index * block..((index + 1) * block).min(total);
        let mut input = Scratch::new(POINTS * apart(tiles.len() * shape.input_channels));
        let mut products = Scratch::new(POINTS * apart(tiles.len() * set.panel_width()));
        set.run(Tiles {
            picture,
            tiles,
            grid,
            panels: panels.as_slice(),
            bias,
            input: input.as_mut_slice(),
            products: products.as_mut_slice(),
            // SAFETY: only the pixels of this task's tiles are written through it.
            y: unsafe { out.at(0) },
        });
    });
}

/// [panel][point][depth][panel's width], each point [`apart`]
fn transformed_weights(set: InstructionSet, weights: &Source, reversed: bool) -> Scratch {
    let (width, depth) = (set.panel_width(), weights.depth);
    let panel_count = weights.columns.div_ceil(width);
    let panel_len = POINTS * apart(depth * width);
    let mut panels = Scratch::new(panel_count * panel_len);
    let out = Shared::new(panels.as_mut_slice());
    each(panel_count, |panel| {
        let mut taps = Scratch::new(9 * depth * width);
        pack_panel(set, weights, panel * width, width, taps.as_mut_slice());
        // SAFETY: each task writes its own panel.
        let out = unsafe { out.slice(panel * panel_len, panel_len) };
        set.run(Weights { taps: taps.as_slice(), reversed, out });
    });
    panels
}

/// Takes some depths of a panel of weights to their 36 values.
pub(super) struct Weights<'a> {
    /// [9][depth][width]
    pub taps: &'a [f32],
    pub reversed: bool,
    /// [POINTS][depth][width], each point [`apart`]
    pub out: &'a mut [f32],
}

impl Kernel for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let len = self.taps.len() / 9;
        assert!(len.is_multiple_of(V::LANES) && self.out.len() >= POINTS * apart(len));
        for at in (0..len).step_by(V::LANES) {
            // SAFETY: depth times the panel's width is a multiple of the vector's, so whole vectors lie in every tap and point.
            unsafe {
                let taps = self.taps.as_ptr().add(at);
                let columns = [self.column::<V>(taps, len, 0), self.column::<V>(taps, len, 1), self.column::<V>(taps, len, 2)];
                for i in 0..SPAN {
                    let values = weight_points([columns[0][i], columns[1][i], columns[2][i]]);
                    for (j, value) in values.into_iter().enumerate() {
                        value.store(self.out.as_mut_ptr().add((i * SPAN + j) * apart(len) + at));
                    }
                }
            }
        }
    }
}

impl Weights<'_> {
    /// The six values of a column of weights.
    /// # Safety
    /// A vector can be read at each of the nine taps, which lie `len` floats apart.
    #[inline(always)]
    unsafe fn column<V: Vector>(&self, taps: *const f32, len: usize, v: usize) -> [V; SPAN] {
        let mut g = [V::zero(); 3];
        for (u, g) in g.iter_mut().enumerate() {
            let tap = if self.reversed { 8 - (3 * u + v) } else { 3 * u + v };
            // SAFETY: the caller's promise.
            *g = unsafe { V::load(taps.add(tap * len)) };
        }
        weight_points(g)
    }
}

struct Tiles<'a> {
    picture: &'a Picture<'a>,
    /// Among those of all pictures.
    tiles: Range<usize>,
    grid: Grid,
    panels: &'a [f32],
    bias: Option<&'a [f32]>,
    /// [POINTS][tiles][input_channels], each point [`apart`]
    input: &'a mut [f32],
    /// [POINTS][tiles][panel's width], each point [`apart`]
    products: &'a mut [f32],
    y: *mut f32,
}

impl Kernel for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Convolution { input_channels: depth, output_channels, .. } = self.picture.shape;
        for place in 0..self.tiles.len() {
            let at = self.grid.position(self.tiles.start + place);
            // SAFETY: every point has a row of `depth` floats for this tile.
            unsafe {
                let to = self.input[place * depth..].as_mut_ptr();
                input_points::<V>(self.picture.x, self.picture.rounded, &self.picture.shape, at, 0..depth, to, apart(self.tiles.len() * depth));
            }
        }
        let (tile_count, width) = (self.tiles.len(), 2 * V::LANES);
        let destination = Destination { shape: &self.picture.shape, grid: self.grid, tiles: self.tiles.clone(), bias: self.bias, y: self.y };
        for panel in 0..output_channels.div_ceil(width) {
            for point in 0..POINTS {
                let weights = &self.panels[(panel * POINTS + point) * apart(depth * width)..][..depth * width];
                let input = &self.input[point * apart(tile_count * depth)..][..tile_count * depth];
                multiply::<V>(input, weights, false, &mut self.products[point * apart(tile_count * width)..][..tile_count * width]);
            }
            for place in 0..tile_count {
                destination.write::<V>(self.products, panel, place);
            }
        }
    }
}

/// out [tiles, panel's width] = input [tiles, depth] * weights [depth, panel's width], or `out` with that added.
#[inline(always)]
pub(super) fn multiply<V: Vector>(input: &[f32], weights: &[f32], add: bool, out: &mut [f32]) {
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

/// Where the products of some tiles go.
pub(super) struct Destination<'a> {
    pub shape: &'a Convolution,
    pub grid: Grid,
    /// Among those of all pictures.
    pub tiles: Range<usize>,
    pub bias: Option<&'a [f32]>,
    pub y: *mut f32,
}

impl Destination<'_> {
    /// Takes the products of a tile, [POINTS][tiles][panel's width], each point [`apart`], back to pixels.
    #[inline(always)]
    pub fn write<V: Vector>(&self, products: &[f32], panel: usize, place: usize) {
        let (height, width, channels) = (self.shape.output_height(), self.shape.output_width(), self.shape.output_channels);
        let Position { picture: b, top, left } = self.grid.position(self.tiles.start + place);
        let panel_width = 2 * V::LANES;
        let point_len = apart(self.tiles.len() * panel_width);
        assert!(products.len() >= POINTS * point_len);
        for half in 0..2 {
            let start = panel * panel_width + half * V::LANES;
            if start >= channels {
                break;
            }
            let count = channels - start;
            // SAFETY: every point has a row of the panel's width for this tile; pixels inside the result have `channels` floats, where parts end.
            unsafe {
                let products = products.as_ptr().add(place * panel_width + half * V::LANES);
                let bias = match self.bias {
                    Some(bias) => load(bias.as_ptr().add(start), count),
                    None => V::zero(),
                };
                let columns = [
                    pixels(points_of_column::<V>(products, point_len, 0)),
                    pixels(points_of_column::<V>(products, point_len, 1)),
                    pixels(points_of_column::<V>(products, point_len, 2)),
                    pixels(points_of_column::<V>(products, point_len, 3)),
                    pixels(points_of_column::<V>(products, point_len, 4)),
                    pixels(points_of_column::<V>(products, point_len, 5)),
                ];
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Several slices of the depth and panels, the last of each not full, and blocks of 73 and 74 tiles, no multiple of what is multiplied together.
    #[test]
    fn panels_one_by_one_give_the_same_bits() {
        let values = |count: usize, step: usize| -> Vec<f32> { (0..count).map(|i| ((i * step) % 1009) as f32 / 504.5 - 1.0).collect() };
        let (input_channels, output_channels) = (150, 70);
        let shape = Convolution { batch: 3, height: 27, width: 25, input_channels, output_channels, kernel_size: 3, stride: 1, before: 1, after: 1 };
        let (x, weight, bias) =
            (values(3 * 27 * 25 * input_channels, 7919), values(9 * input_channels * output_channels, 104_729), values(output_channels, 31));
        let turned = Convolution { input_channels: output_channels, output_channels: input_channels, ..shape };
        for &set in InstructionSet::available() {
            for (rounded, reversed, source, bias) in [(false, false, shape.weights(&weight), Some(&*bias)), (true, true, turned.weights_turned(&weight), None)]
            {
                let picture = Picture { x: &x, rounded, shape, reversed };
                let (mut expected, mut found) = (vec![f32::NAN; 3 * 27 * 25 * output_channels], vec![f32::NAN; 3 * 27 * 25 * output_channels]);
                by_tiles(set, &picture, &source, bias, &mut expected);
                by_panels(set, &picture, &source, bias, &mut found);
                assert!(expected == found, "{}, reversed: {reversed}", set.name()); // NaN, where nothing was written, is not equal to itself
            }
        }
    }
}
