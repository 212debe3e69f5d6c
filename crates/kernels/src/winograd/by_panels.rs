//! The same where there are many weights, or few tiles. All 36 values of all weights, four times the weights, would go to memory and come back for every few
//! tiles. So the tiles are taken in large blocks, and for each of them one panel of output channels after the other: slice by slice of the depth, weights become
//! their 36 values in the second-level cache, and the products are added up there.

use super::convolve::{Arithmetic, Block, Picture, Pixels, Sizes, Taps, slices};
use super::{Grid, POINTS, apart};
use crate::convolution::{Added, Convolution};
use crate::instruction_set::InstructionSet;
use crate::memory::{Scratch, Shared};
use crate::product::Source;
use crate::small_weights::Weight;
use crate::threads::{count, each, part};

/// Input channels times output channels from which on the 36 values of all weights, 36 MiB of floats then, no longer stay in the caches.
const MANY: usize = 256 * 1024;
/// Panels for each thread, at least: with fewer some would wait at the end of each block.
const PANELS_PER_THREAD: usize = 2;
/// Tiles of a block, at most: their products take 432 KiB of that cache.
const TILES_OF_BLOCK: usize = 96;
/// Tiles that one task transforms.
const TILE_STEP: usize = 4;

/// Whether all panels would better be transformed for every block of tiles: where there are many weights, or one block. It changes no bit of the result, so the
/// threads may play a part.
pub(super) fn applies<W: Weight>(set: InstructionSet, shape: &Convolution, weights: &Source<W>) -> bool {
    let one_block = shape.batch * Grid::of(shape).tile_count() <= TILES_OF_BLOCK;
    (one_block || weights.depth * weights.columns >= MANY) && weights.columns.div_ceil(set.panel_width()) >= PANELS_PER_THREAD * count()
}

pub(super) fn by_panels<W: Weight>(set: InstructionSet, arithmetic: &dyn Arithmetic, picture: &Picture, weights: &Source<W>, added: Added, y: &mut [f32]) {
    let shape = &picture.shape;
    let (grid, depth, width) = (Grid::of(shape), shape.input_channels, set.panel_width());
    let slice = arithmetic.slice_of_panel();
    let total = shape.batch * grid.tile_count();
    let block_count = total.div_ceil(TILES_OF_BLOCK);
    let out = Shared::new(y);
    for block in 0..block_count {
        let block = Block { picture, grid, tiles: part(total, block_count, block) };
        let tile_count = block.tiles.len();
        let input_len = arithmetic.input_len(tile_count, slice);
        let mut input = Scratch::new(depth.div_ceil(slice) * input_len);
        let input_out = Shared::new(input.as_mut_slice());
        each(tile_count.div_ceil(TILE_STEP), |step| {
            let places = step * TILE_STEP..((step + 1) * TILE_STEP).min(tile_count);
            // SAFETY: only this task's places are written through it.
            unsafe { arithmetic.input(&block, places, slice, input_out.at(0)) };
        });
        let input = input.as_slice();
        each(weights.columns.div_ceil(width), |panel| {
            let mut taps = Scratch::new(9 * slice * width);
            let mut points = Scratch::new(arithmetic.weights_len(slice));
            let mut products = Scratch::new(POINTS * apart(tile_count * width));
            for (index, depths) in slices(depth, slice).enumerate() {
                let sizes = Sizes { tile_count, depth: depths.len() };
                let points = &mut points.as_mut_slice()[..arithmetic.weights_len(depths.len())];
                arithmetic.weights(&Taps::new(set, weights, depths, panel, picture.reversed, taps.as_mut_slice()), points);
                arithmetic.products(&input[index * input_len..][..input_len], points, sizes, index > 0, products.as_mut_slice());
            }
            // SAFETY: only this panel's channels of the block's tiles are written through it.
            set.run(Pixels { products: products.as_slice(), panel, block: &block, added: &added, y: unsafe { out.at(0) } });
        });
    }
}
