//! The gradient for the weights in fixed point. What is summed are tiles, so a row is the tiles of a slice in one channel at one point: the input's and the
//! result's become integers as soon as a slice is transformed, at half the bytes of floats.
//!
//! Tiles are taken in large blocks, and a task brings back the weights between one panel of input channels and one of output channels.

use super::{LANES, ROW_PAIRS, WIDTH, add_in_floats, at_least_smallest, largest_integer, magnitude, side_by_side};
use crate::convolution::Convolution;
use crate::memory::{Scratch, Shared};
use crate::threads::each;
use crate::vector::{Avx512, load, prefetch, store};
use crate::winograd::weight_gradient::{result_points, weights};
use crate::winograd::{Grid, Input, POINTS, Position, SPAN, TILE, pixel_columns, pixel_points, points_of_column};
use std::arch::x86_64::*;
use std::ops::Range;

/// Tiles of a slice: with fewer, taking the sums to floats outweighs the products; with more, a slice of all points no longer lies beside the processor.
const TILES: usize = 32;
const PAIRS: usize = TILES / 2;
/// A slice of a panel at one point: [PAIRS][WIDTH] pairs of integers and [WIDTH] scales.
const CELL: usize = PAIRS * WIDTH + WIDTH;
/// So many tiles ahead the pixels are asked for: a vector of each lies too far from the next to be foreseen by the hardware.
const TILES_AHEAD: usize = 2;
/// How far the values of two points are apart before they become integers: an odd number of cache lines, as [`apart`](crate::winograd::apart) has it.
const POINT_LEN: usize = (TILES + 1) * LANES;
/// Floats of a block's transformed input or result, whichever has more (8 MiB).
const BLOCK_LIMIT: usize = 2 << 20;
/// Panels that one task transforms.
const PANEL_STEP: usize = 4;
/// Rows of a tile of products: two vectors each beside two of columns.
const ROWS: usize = 8;

/// dweight [3, 3, input_channels, output_channels] = sum over all pixels of x outer dy.
///
/// The processor must have the instructions: `InstructionSet::multiplies_pairs_of_integers`.
pub(crate) fn weight_gradient(x: &[f32], dy: &[f32], shape: Convolution, dweight: &mut [f32]) {
    let Convolution { batch, input_channels, output_channels, .. } = shape;
    let grid = Grid::of(&shape);
    let total = batch * grid.tile_count();
    let (input_panels, result_panels) = (input_channels.div_ceil(WIDTH), output_channels.div_ceil(WIDTH));
    // Fixed by the shape, for the order of the sums depends on it.
    let block = (BLOCK_LIMIT / (POINTS * CELL * input_panels.max(result_panels))).max(1) * TILES;
    let out = Shared::new(dweight);
    for start in (0..total).step_by(block) {
        let tiles = start..(start + block).min(total);
        let slice_count = tiles.len().div_ceil(TILES);
        let mut input = Scratch::new(POINTS * input_panels * slice_count * CELL);
        let mut result = Scratch::new(POINTS * result_panels * slice_count * CELL);
        let (input_out, result_out) = (Shared::new(input.as_mut_slice()), Shared::new(result.as_mut_slice()));
        let (input_steps, result_steps) = (input_panels.div_ceil(PANEL_STEP), result_panels.div_ceil(PANEL_STEP));
        each(slice_count * (input_steps + result_steps), |task| {
            let (slice, step) = (task / (input_steps + result_steps), task % (input_steps + result_steps));
            let first = tiles.start + slice * TILES;
            let tiles = first..(first + TILES).min(tiles.end);
            let panels = |step: usize, count: usize| step * PANEL_STEP..((step + 1) * PANEL_STEP).min(count);
            // SAFETY: only this task's slice of its panels is written; the processor has the instructions, as the caller knows.
            unsafe {
                if step < input_steps {
                    let to = Cells { first: input_out.at(0), panel_count: input_panels, slice_count, slice };
                    transform_input(&Input::new(x, &shape), grid, tiles, panels(step, input_panels), &to);
                } else {
                    let to = Cells { first: result_out.at(0), panel_count: result_panels, slice_count, slice };
                    transform_result(dy, &shape, grid, tiles, panels(step - input_steps, result_panels), &to);
                }
            }
        });
        let (input, result) = (input.as_slice(), result.as_slice());
        each(input_panels * result_panels, |task| {
            let (input_panel, result_panel) = (task / result_panels, task % result_panels);
            let mut sums = Scratch::new(POINTS * WIDTH * WIDTH);
            for point in 0..POINTS {
                let rows = &input[(point * input_panels + input_panel) * slice_count * CELL..][..slice_count * CELL];
                let columns = &result[(point * result_panels + result_panel) * slice_count * CELL..][..slice_count * CELL];
                // SAFETY: the lengths are those; the processor has the instructions.
                unsafe { products(rows, columns, &mut sums.as_mut_slice()[point * WIDTH * WIDTH..][..WIDTH * WIDTH]) };
            }
            // SAFETY: only this task's weights are written; the processor has the instructions.
            unsafe { add_weights(sums.as_slice(), &shape, input_panel, result_panel, start > 0, out.at(0)) };
        });
    }
}

/// Cells [POINTS][panels][slices], of which one slice is written.
struct Cells {
    first: *mut f32,
    panel_count: usize,
    slice_count: usize,
    slice: usize,
}

impl Cells {
    fn at(&self, point: usize, panel: usize) -> *mut f32 {
        self.first.wrapping_add(((point * self.panel_count + panel) * self.slice_count + self.slice) * CELL)
    }
}

/// Where the channels of each pixel of a tile begin, column by column: of the input or of the result.
trait Tile: Sized {
    /// A pair of rows of the 36 values of a vector of channels of which `count` are left.
    /// # Safety
    /// `count` floats can be read at each pixel from that channel on; the processor has the instructions.
    unsafe fn values<const PAIR: usize>(&self, channel: usize, count: usize) -> [[Avx512; SPAN]; 2];
    /// Asks for a vector of each pixel.
    fn ask_for(&self, channel: usize);
}

impl Tile for [[*const f32; SPAN]; SPAN] {
    #[inline(always)]
    unsafe fn values<const PAIR: usize>(&self, channel: usize, count: usize) -> [[Avx512; SPAN]; 2] {
        // SAFETY: the caller's promise. What other rows would need is never computed.
        let columns = unsafe { pixel_columns::<Avx512, false>(self, channel, count) };
        let [i, k] = ROW_PAIRS[PAIR];
        [
            pixel_points([columns[0][i], columns[1][i], columns[2][i], columns[3][i], columns[4][i], columns[5][i]]),
            pixel_points([columns[0][k], columns[1][k], columns[2][k], columns[3][k], columns[4][k], columns[5][k]]),
        ]
    }

    #[inline(always)]
    fn ask_for(&self, channel: usize) {
        ask_for(self, channel);
    }
}

impl Tile for [[*const f32; TILE]; TILE] {
    #[inline(always)]
    unsafe fn values<const PAIR: usize>(&self, channel: usize, count: usize) -> [[Avx512; SPAN]; 2] {
        // SAFETY: the caller's promise. What other rows would need is never computed.
        let columns = unsafe {
            [
                result_column(&self[0], channel, count),
                result_column(&self[1], channel, count),
                result_column(&self[2], channel, count),
                result_column(&self[3], channel, count),
            ]
        };
        let [i, k] = ROW_PAIRS[PAIR];
        [
            result_points([columns[0][i], columns[1][i], columns[2][i], columns[3][i]]),
            result_points([columns[0][k], columns[1][k], columns[2][k], columns[3][k]]),
        ]
    }

    #[inline(always)]
    fn ask_for(&self, channel: usize) {
        ask_for(self, channel);
    }
}

/// The six values of a column of the result's pixels.
/// # Safety
/// As [`Tile::values`].
#[inline(always)]
unsafe fn result_column(pixels: &[*const f32; TILE], channel: usize, count: usize) -> [Avx512; SPAN] {
    // SAFETY: the caller's promise.
    unsafe {
        result_points([
            load(pixels[0].add(channel), count),
            load(pixels[1].add(channel), count),
            load(pixels[2].add(channel), count),
            load(pixels[3].add(channel), count),
        ])
    }
}

/// # Safety
/// The cells of the panels can be written; the processor has the instructions.
unsafe fn transform_input(input: &Input, grid: Grid, tiles: Range<usize>, panels: Range<usize>, to: &Cells) {
    let mut pixels_of = [[[input.zeros.as_slice().as_ptr(); SPAN]; SPAN]; TILES];
    for (tile, pixels) in tiles.zip(&mut pixels_of) {
        *pixels = input.pixels(grid.position(tile));
    }
    // SAFETY: the caller's promise; pixels have the channels.
    unsafe { transform(&pixels_of, input.shape.input_channels, panels, to) };
}

/// # Safety
/// As `transform_input`.
unsafe fn transform_result(dy: &[f32], shape: &Convolution, grid: Grid, tiles: Range<usize>, panels: Range<usize>, to: &Cells) {
    let (height, width, channels) = (shape.output_height(), shape.output_width(), shape.output_channels);
    let mut zeros = Scratch::new(channels);
    zeros.as_mut_slice().fill(0.0);
    let mut pixels_of = [[[zeros.as_slice().as_ptr(); TILE]; TILE]; TILES];
    for (tile, pixels) in tiles.zip(&mut pixels_of) {
        let Position { picture, top, left } = grid.position(tile);
        for (j, pixels) in pixels.iter_mut().enumerate() {
            for (i, pixel) in pixels.iter_mut().enumerate() {
                if top + i < height && left + j < width {
                    *pixel = dy[((picture * height + top + i) * width + left + j) * channels..].as_ptr();
                }
            }
        }
    }
    // SAFETY: the caller's promise; pixels have the channels.
    unsafe { transform(&pixels_of, channels, panels, to) };
}

/// # Safety
/// Pixels have `channels` floats and the cells of the panels can be written; the processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn transform<T: Tile>(slice: &[T; TILES], channels: usize, panels: Range<usize>, to: &Cells) {
    let mut values = Scratch::new(2 * SPAN * POINT_LEN);
    let values = values.as_mut_slice();
    for channel in (panels.start * WIDTH..panels.end * WIDTH).step_by(LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            transform_rows::<T, 0>(slice, channel, channels, values, to);
            transform_rows::<T, 1>(slice, channel, channels, values, to);
            transform_rows::<T, 2>(slice, channel, channels, values, to);
        }
    }
}

/// A vector of channels and a pair of rows of [`transform`], whose values lie beside the processor until they are integers.
/// # Safety
/// As `transform`; `values` has twelve points.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn transform_rows<T: Tile, const PAIR: usize>(slice: &[T; TILES], channel: usize, channels: usize, values: &mut [f32], to: &Cells) {
    for (place, tile) in slice.iter().enumerate() {
        if PAIR == 0 {
            slice[(place + TILES_AHEAD) % TILES].ask_for(channel);
        }
        // SAFETY: the channels that are left are read, none behind the last; the rest is the caller's promise.
        unsafe {
            if channel + LANES <= channels {
                keep(tile.values::<PAIR>(channel, LANES), values, place);
            } else {
                keep(tile.values::<PAIR>(channel.min(channels), channels.saturating_sub(channel)), values, place);
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { take_to_cells::<PAIR>(values, channel, to) };
}

#[inline(always)]
fn ask_for<const N: usize>(pixels: &[[*const f32; N]; N], channel: usize) {
    for pixel in pixels.as_flattened() {
        prefetch(pixel.wrapping_add(channel));
    }
}

/// Puts two rows of the values of a tile to its place in `values` [2 * SPAN][TILES][LANES], points POINT_LEN apart.
/// # Safety
/// The place is one of a slice's tiles, and `values` has that length; the processor has the instructions.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn keep(rows: [[Avx512; SPAN]; 2], values: &mut [f32], place: usize) {
    for (i, row) in rows.into_iter().enumerate() {
        for (j, value) in row.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr().add((i * SPAN + j) * POINT_LEN + place * LANES), value.0) };
        }
    }
}

/// Writes a vector of channels of a slice, `values` as [`keep`] fills them, as integers and scales to the cells of its panel.
/// # Safety
/// `values` has that length and the cells can be written; the processor has the instructions.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn take_to_cells<const PAIR: usize>(values: &[f32], channel: usize, to: &Cells) {
    let limit = _mm512_set1_ps(largest_integer(PAIRS));
    for kept in 0..2 * SPAN {
        let point = ROW_PAIRS[PAIR][kept / SPAN] * SPAN + kept % SPAN;
        // SAFETY: the caller's promise.
        unsafe {
            let from = values.as_ptr().add(kept * POINT_LEN);
            let cell = to.at(point, channel / WIDTH).add(channel % WIDTH);
            let mut largest = _mm512_setzero_si512();
            for tile in 0..TILES {
                largest = _mm512_max_epu32(largest, magnitude(_mm512_loadu_ps(from.add(tile * LANES))));
            }
            let largest = at_least_smallest(largest);
            let inverse = _mm512_div_ps(limit, largest);
            _mm512_storeu_ps(cell.add(PAIRS * WIDTH), _mm512_div_ps(largest, limit));
            for pair in 0..PAIRS {
                let [even, odd] = [_mm512_loadu_ps(from.add(2 * pair * LANES)), _mm512_loadu_ps(from.add((2 * pair + 1) * LANES))];
                _mm512_storeu_si512(cell.add(pair * WIDTH).cast(), side_by_side(even, odd, inverse));
            }
        }
    }
}

/// sums [WIDTH, WIDTH] = the sum over all slices, of which there is one at least, of rows^T columns.
/// # Safety
/// Both are as many whole cells, `sums` has that length, the processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn products(rows: &[f32], columns: &[f32], sums: &mut [f32]) {
    for (slice, (rows, columns)) in rows.chunks_exact(CELL).zip(columns.chunks_exact(CELL)).enumerate() {
        for row in (0..WIDTH).step_by(ROWS) {
            // SAFETY: a cell holds pairs and scales of WIDTH channels; the caller's promise.
            unsafe {
                let (mut a, mut b) = (rows.as_ptr().add(row).cast::<i32>(), columns.as_ptr().cast::<i32>());
                let mut totals = [[_mm512_setzero_si512(); 2]; ROWS];
                for _ in 0..PAIRS {
                    let pairs = [_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(LANES).cast())];
                    for (i, total) in totals.iter_mut().enumerate() {
                        let a = _mm512_set1_epi32(*a.add(i));
                        *total = [_mm512_dpwssd_epi32(total[0], a, pairs[0]), _mm512_dpwssd_epi32(total[1], a, pairs[1])];
                    }
                    (a, b) = (a.add(WIDTH), b.add(WIDTH));
                }
                // Both lie behind the pairs now, at the scales.
                let (row_scales, column_scales) = (a.cast::<f32>(), b.cast::<f32>());
                let column_scales = [_mm512_loadu_ps(column_scales), _mm512_loadu_ps(column_scales.add(LANES))];
                for (i, total) in totals.into_iter().enumerate() {
                    let row_scale = _mm512_set1_ps(*row_scales.add(i));
                    for half in 0..2 {
                        let sum = sums.as_mut_ptr().add((row + i) * WIDTH + half * LANES);
                        let before = if slice == 0 { _mm512_setzero_ps() } else { _mm512_loadu_ps(sum) };
                        _mm512_storeu_ps(sum, add_in_floats(total[half], row_scale, column_scales[half], before));
                    }
                }
            }
        }
    }
}

/// Takes the sums of all points, [POINTS][WIDTH][WIDTH], back to weights between two panels of channels: `dweight` becomes these, or has them added.
/// # Safety
/// No other task touches these weights; the processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn add_weights(sums: &[f32], shape: &Convolution, input_panel: usize, result_panel: usize, add: bool, dweight: *mut f32) {
    let &Convolution { input_channels, output_channels, .. } = shape;
    for row in 0..WIDTH.min(input_channels - input_panel * WIDTH) {
        for start in (0..WIDTH.min(output_channels - result_panel * WIDTH)).step_by(LANES) {
            let (input, output) = (input_panel * WIDTH + row, result_panel * WIDTH + start);
            let count = output_channels - output;
            // SAFETY: a vector lies at that place of every point; parts of weights end where the channels do.
            unsafe {
                let from = sums.as_ptr().add(row * WIDTH + start);
                let mut columns = [[Avx512(_mm512_setzero_ps()); 3]; SPAN];
                for (j, column) in columns.iter_mut().enumerate() {
                    *column = weights(points_of_column::<Avx512>(from, WIDTH * WIDTH, j));
                }
                for i in 0..3 {
                    let values = weights([columns[0][i], columns[1][i], columns[2][i], columns[3][i], columns[4][i], columns[5][i]]);
                    for (j, value) in values.into_iter().enumerate() {
                        let to = dweight.add(((3 * i + j) * input_channels + input) * output_channels + output);
                        let old = if add { load::<Avx512>(to, count) } else { Avx512(_mm512_setzero_ps()) };
                        store(Avx512(_mm512_add_ps(old.0, value.0)), to, count);
                    }
                }
            }
        }
    }
}
