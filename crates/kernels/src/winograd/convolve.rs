//! Forward, and the gradient for the input, which is a convolution with the weights turned around.

use super::by_panels::{self, by_panels};
#[cfg(target_arch = "x86_64")]
use super::fixed_point::FixedPoint;
use super::floats::Floats;
use super::{Grid, LINE, POINTS, Position, TILE, apart, pixels, points_of_column};
use crate::convolution::{Added, Convolution};
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{PAST_CACHES_FROM, Scratch, Shared};
use crate::product::{Source, pack_slice};
use crate::small_weights::Weight;
use crate::threads::{count, each, part};
use crate::vector::{Vector, load, prefetch, settle, store};
use std::ops::Range;

/// Tiles are taken in twice to four times as many: a multiple of every product kernel's rows.
const TILE_STEP: usize = 12;
/// Blocks are made of so many tiles at a time.
const TILE_PART: usize = 4;
/// Depths of a panel of weights that are asked for before they are read.
const DEPTHS_AHEAD: usize = 8;
/// Floats of a task's transformed input, about what the second-level cache holds; with many channels it is more, for fewer tiles would read weights too often.
const BLOCK_SIZE: usize = 128 * 1024;

/// A convolution whose input is x [batch, height, width, channels] and whose weights are `weights`' nine taps.
pub(crate) struct Picture<'a> {
    pub x: &'a [f32],
    /// Whether x may be rounded to bf16 on the way, or come as near as integers do.
    pub rounded: bool,
    /// `input_channels` and `output_channels` are those of this pass, and `before` its padding.
    pub shape: Convolution,
    /// Whether the taps come last to first: the gradient for the input.
    pub reversed: bool,
}

/// How the 36 values of input and weights are kept and multiplied, slice by slice of the depth.
pub(super) trait Arithmetic: Sync {
    /// Input channels of a slice where all weights are transformed first.
    fn slice_of_all(&self, depth: usize) -> usize;
    /// The same where one slice of a panel after the other is: its weights are to stay in the second-level cache.
    fn slice_of_panel(&self) -> usize;
    /// Floats that the values of the input of some tiles take.
    fn input_len(&self, tile_count: usize, depth: usize) -> usize;
    /// Floats that the values of a panel of weights take.
    fn weights_len(&self, depth: usize) -> usize;
    /// Takes some of the block's tiles to their values, slice after slice as far apart as `input_len` says of a whole one.
    /// # Safety
    /// As many floats lie at `out`, where no other task touches the same places.
    unsafe fn input(&self, block: &Block, places: Range<usize>, slice: usize, out: *mut f32);
    /// Takes a panel of weights to their values.
    fn weights(&self, taps: &Taps, out: &mut [f32]);
    /// out [POINTS][tiles][panel's width], each point [`apart`] = the products of a slice, or `out` with these added.
    fn products(&self, input: &[f32], weights: &[f32], sizes: Sizes, add: bool, out: &mut [f32]);
}

/// A panel of weights: its columns for some depths at each of the nine taps.
pub(super) struct Taps<'a> {
    values: &'a [f32],
    /// Where the first tap's first depth begins.
    start: usize,
    /// How far taps are apart; backwards where they come last to first.
    pub tap_stride: isize,
    pub depth_stride: usize,
    pub depth: usize,
}

impl<'a> Taps<'a> {
    /// Where they lie, if they are whole rows of floats; otherwise they are packed into `room`, [9][depths][width].
    pub fn new<W: Weight>(set: InstructionSet, weights: &Source<'a, W>, depths: Range<usize>, panel: usize, reversed: bool, room: &'a mut [f32]) -> Self {
        let (width, depth) = (set.panel_width(), depths.len());
        let columns = panel * width..(panel + 1) * width;
        let (values, start, tap_stride, depth_stride) = match W::as_floats(weights.values) {
            Some(values) if weights.column_stride == 1 && columns.end <= weights.columns => {
                (values, depths.start * weights.depth_stride + columns.start, weights.tap_stride, weights.depth_stride)
            }
            _ => {
                let room = &mut room[..9 * depth * width];
                pack_slice(set, weights, 0..9, depths, panel..panel + 1, width, room);
                (&*room, 0, depth * width, width)
            }
        };
        assert!(start + 8 * tap_stride + (depth - 1) * depth_stride + width <= values.len(), "the taps reach beyond the weights");
        let (start, tap_stride) = if reversed { (start + 8 * tap_stride, -(tap_stride as isize)) } else { (start, tap_stride as isize) };
        Self { values, start, tap_stride, depth_stride, depth }
    }

    /// A panel's width can be read here, and as often as there are taps and depths every `tap_stride` and `depth_stride` floats.
    pub fn as_ptr(&self) -> *const f32 {
        self.values[self.start..].as_ptr()
    }

    /// Asks for what is read some depths after `d`, for rows of weights lie too far apart to be foreseen by the hardware; `first` is [`Taps::as_ptr`].
    #[inline(always)]
    pub fn ask_for(&self, first: *const f32, d: usize, width: usize) {
        for tap in 0..9 {
            let row = first.wrapping_offset(tap * self.tap_stride).wrapping_add((d + DEPTHS_AHEAD) * self.depth_stride);
            for column in (0..width).step_by(LINE) {
                prefetch(row.wrapping_add(column));
            }
        }
    }
}

/// What is multiplied at once at each point: [tiles, depth] by [depth, panel's width].
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub tile_count: usize,
    pub depth: usize,
}

/// Some of the tiles of all pictures.
pub(super) struct Block<'a> {
    pub picture: &'a Picture<'a>,
    pub grid: Grid,
    pub tiles: Range<usize>,
}

pub(crate) fn convolve<W: Weight>(set: InstructionSet, picture: &Picture, weights: &Source<W>, added: Added, y: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if picture.rounded && set.multiplies_pairs_of_integers() {
        return convolve_in(set, &FixedPoint, picture, weights, added, y);
    }
    convolve_in(set, &Floats(set), picture, weights, added, y);
}

fn convolve_in<W: Weight>(set: InstructionSet, arithmetic: &dyn Arithmetic, picture: &Picture, weights: &Source<W>, added: Added, y: &mut [f32]) {
    if picture.shape.batch * Grid::of(&picture.shape).tile_count() == 0 || picture.shape.output_channels == 0 {
        return;
    }
    // A long residual is read from memory, for which the pieces that tiles want of it are too short.
    let (within, after) = match added.residual {
        Some(_) if y.len() >= PAST_CACHES_FROM => (Added { residual: None, ..added }, Added { residual: added.residual, ..Added::NOTHING }),
        _ => (added, Added::NOTHING),
    };
    if by_panels::applies(set, &picture.shape, weights) {
        by_panels(set, arithmetic, picture, weights, within, y);
    } else {
        by_tiles(set, arithmetic, picture, weights, within, y);
    }
    after.add_to(set, &picture.shape, y);
}

/// All weights are taken to their 36 values first, then tiles few by few from the input to the result.
fn by_tiles<W: Weight>(set: InstructionSet, arithmetic: &dyn Arithmetic, picture: &Picture, weights: &Source<W>, added: Added, y: &mut [f32]) {
    let shape = &picture.shape;
    let (grid, depth, width) = (Grid::of(shape), shape.input_channels, set.panel_width());
    let total = shape.batch * grid.tile_count();
    let slice = arithmetic.slice_of_all(depth);
    let panels = transformed_weights(set, arithmetic, weights, picture.reversed);
    let panels = panels.as_slice();
    // How tiles are shared out changes no element: as many blocks for each thread, all of nearly the same size.
    let fitting = (BLOCK_SIZE * TILE_STEP / arithmetic.input_len(TILE_STEP, depth)).clamp(2 * TILE_STEP, 4 * TILE_STEP);
    let part_count = total.div_ceil(TILE_PART);
    let block_count = total.div_ceil(fitting).next_multiple_of(count()).min(part_count);
    let out = Shared::new(y);
    each(block_count, |index| {
        let parts = part(part_count, block_count, index);
        let block = Block { picture, grid, tiles: parts.start * TILE_PART..(parts.end * TILE_PART).min(total) };
        let tile_count = block.tiles.len();
        let input_len = arithmetic.input_len(tile_count, slice);
        let mut input = Scratch::new(depth.div_ceil(slice) * input_len);
        // SAFETY: all of it is this task's.
        unsafe { arithmetic.input(&block, 0..tile_count, slice, input.as_mut_slice().as_mut_ptr()) };
        let mut products = Scratch::new(POINTS * apart(tile_count * width));
        let mut weights_start = 0;
        for panel in 0..weights.columns.div_ceil(width) {
            for (index, depths) in slices(depth, slice).enumerate() {
                let (sizes, weights_len) = (Sizes { tile_count, depth: depths.len() }, arithmetic.weights_len(depths.len()));
                let (input, weights) = (&input.as_slice()[index * input_len..][..input_len], &panels[weights_start..][..weights_len]);
                arithmetic.products(input, weights, sizes, index > 0, products.as_mut_slice());
                weights_start += weights_len;
            }
            // SAFETY: only the pixels of this task's tiles are written through it.
            set.run(Pixels { products: products.as_slice(), panel, block: &block, added: &added, y: unsafe { out.at(0) } });
        }
    });
}

/// The depth cut into slices.
pub(super) fn slices(depth: usize, slice: usize) -> impl Iterator<Item = Range<usize>> {
    (0..depth).step_by(slice).map(move |first| first..(first + slice).min(depth))
}

/// Panel by panel, slice by slice.
fn transformed_weights<W: Weight>(set: InstructionSet, arithmetic: &dyn Arithmetic, weights: &Source<W>, reversed: bool) -> Scratch {
    let (width, depth) = (set.panel_width(), weights.depth);
    let slice = arithmetic.slice_of_all(depth);
    let panel_count = weights.columns.div_ceil(width);
    let panel_len: usize = slices(depth, slice).map(|depths| arithmetic.weights_len(depths.len())).sum();
    let mut panels = Scratch::new(panel_count * panel_len);
    let out = Shared::new(panels.as_mut_slice());
    each(panel_count, |panel| {
        let mut taps = Scratch::new(9 * slice.min(depth) * width);
        // SAFETY: each task writes its own panel.
        let mut out = unsafe { out.slice(panel * panel_len, panel_len) };
        for depths in slices(depth, slice) {
            let to;
            (to, out) = out.split_at_mut(arithmetic.weights_len(depths.len()));
            arithmetic.weights(&Taps::new(set, weights, depths, panel, reversed, taps.as_mut_slice()), to);
        }
    });
    panels
}

/// Takes the products of a panel back to pixels.
pub(super) struct Pixels<'a> {
    /// [POINTS][tiles][panel's width], each point [`apart`]
    pub products: &'a [f32],
    pub panel: usize,
    pub block: &'a Block<'a>,
    pub added: &'a Added<'a>,
    pub y: *mut f32,
}

impl Kernel for Pixels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let shape = &self.block.picture.shape;
        let len = shape.batch * shape.output_height() * shape.output_width() * shape.output_channels;
        // Every vector then begins at a multiple of its size.
        let aligned = (self.y as usize).is_multiple_of(V::LANES * size_of::<f32>()) && shape.output_channels.is_multiple_of(V::LANES);
        // Branches stay outside of the tiles.
        match self.added.residual {
            Some(residual) => self.tiles::<V, false, true>(residual),
            None if len >= PAST_CACHES_FROM && aligned => {
                self.tiles::<V, true, false>(&[]);
                settle();
            }
            None => self.tiles::<V, false, false>(&[]),
        }
    }
}

impl Pixels<'_> {
    #[inline(always)]
    fn tiles<V: Vector, const PAST_CACHES: bool, const ONTO: bool>(&self, residual: &[f32]) {
        for place in 0..self.block.tiles.len() {
            self.tile::<V, PAST_CACHES, ONTO>(residual, place);
        }
    }

    /// `residual` is as long as y, or empty where nothing is added.
    #[inline(always)]
    fn tile<V: Vector, const PAST_CACHES: bool, const ONTO: bool>(&self, residual: &[f32], place: usize) {
        let Block { picture: Picture { shape, .. }, grid, tiles } = self.block;
        let (height, width, channels) = (shape.output_height(), shape.output_width(), shape.output_channels);
        let Position { picture: b, top, left } = grid.position(tiles.start + place);
        let panel_width = 2 * V::LANES;
        let point_len = apart(tiles.len() * panel_width);
        assert!(self.products.len() >= POINTS * point_len);
        for half in 0..2 {
            let start = self.panel * panel_width + half * V::LANES;
            if start >= channels {
                break;
            }
            let count = channels - start;
            // SAFETY: every point has a row of the panel's width for this tile; pixels inside the result, and of what is added, have `channels` floats, where
            // parts end.
            unsafe {
                let products = self.products.as_ptr().add(place * panel_width + half * V::LANES);
                let bias = match self.added.bias_of(b, channels) {
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
                let whole = count >= V::LANES && height - top >= TILE && width - left >= TILE;
                for i in 0..TILE.min(height - top) {
                    let values = pixels([columns[0][i], columns[1][i], columns[2][i], columns[3][i], columns[4][i], columns[5][i]]);
                    let first = ((b * height + top + i) * width + left) * channels + start;
                    let line = self.y.add(first);
                    let residual = residual.as_ptr().wrapping_add(first);
                    if whole {
                        for (j, value) in values.into_iter().enumerate() {
                            let (mut value, to) = (value.add(bias), line.add(j * channels));
                            if ONTO {
                                value = value.add(V::load(residual.add(j * channels)));
                            }
                            if PAST_CACHES { value.store_past_caches(to) } else { value.store(to) }
                        }
                    } else {
                        for (j, value) in values.into_iter().enumerate().take(width - left) {
                            let mut value = value.add(bias);
                            if ONTO {
                                value = value.add(load(residual.add(j * channels), count));
                            }
                            store(value, line.add(j * channels), count);
                        }
                    }
                }
            }
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
        let (x, weight) = (values(3 * 27 * 25 * input_channels, 7919), values(9 * input_channels * output_channels, 104_729));
        let (bias, residual) = (values(3 * output_channels, 31), values(3 * 27 * 25 * output_channels, 613));
        let added = Added { shifts: Some(&bias), residual: Some(&residual), ..Added::NOTHING };
        let turned = Convolution { input_channels: output_channels, output_channels: input_channels, ..shape };
        for &set in InstructionSet::available() {
            for (rounded, reversed, source, added) in
                [(false, false, shape.weights(&weight), added), (true, true, turned.weights_turned(&weight), Added::NOTHING)]
            {
                let picture = Picture { x: &x, rounded, shape, reversed };
                let check = |arithmetic: &dyn Arithmetic| {
                    let (mut expected, mut found) = (vec![f32::NAN; 3 * 27 * 25 * output_channels], vec![f32::NAN; 3 * 27 * 25 * output_channels]);
                    by_tiles(set, arithmetic, &picture, &source, added, &mut expected);
                    by_panels(set, arithmetic, &picture, &source, added, &mut found);
                    assert!(expected == found, "{}, reversed: {reversed}", set.name()); // NaN, where nothing was written, is not equal to itself
                };
                check(&Floats(set));
                #[cfg(target_arch = "x86_64")]
                if set.multiplies_pairs_of_integers() {
                    check(&FixedPoint);
                }
            }
        }
    }
}
