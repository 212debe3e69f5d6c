//! y = A B with rows of A found through pointers.

use super::packing::{Packed, Source, load_pair, pack_slice, store_pair};
use super::{PARALLEL_FROM, SLICE_DEPTH};
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::threads::{count, each, part};
use crate::vector::Vector;
use std::ops::Range;

/// Rows of a task: 96 * SLICE_DEPTH floats stay in the second-level cache.
const ROW_BLOCK: usize = 96;

/// Up to so many rows B is copied into panels piece by piece, just before they are multiplied: each piece then waits in the caches, where a copy of all of B
/// would be written to memory and read again for little work.
const ROWS_OF_PIECES: usize = 512;

/// y = A B, see the module, for all taps of B in their order. `fill` as for [`by_rows_of_panels`].
pub(crate) fn by_rows(
    set: InstructionSet,
    b: &Source,
    rows: usize,
    bias: Option<&[f32]>,
    out: &Shared<f32>,
    parallel: bool,
    fill: impl Fn(Range<usize>, &mut [*const f32], &mut [usize]) + Sync,
) {
    let taps: Vec<usize> = (0..b.taps).collect();
    let panel_count = b.columns.div_ceil(set.panel_width());
    let small = !parallel || rows * b.taps * b.depth * b.columns < PARALLEL_FROM;
    // Each piece is copied by one task only, so there must be enough panels for all threads.
    let enough = small || panel_count >= 2 * count();
    if rows > ROWS_OF_PIECES || !enough || b.lies_in_panels(set, rows) {
        return by_rows_of_panels(set, &Packed::new(set, b, rows, parallel), &taps, rows, bias, out, parallel, fill);
    }
    let group_count = if small { 1 } else { 2 * count() };
    let task = |group: usize| {
        let mut pointers = vec![std::ptr::null(); taps.len() * rows];
        let mut offsets = vec![0; rows];
        fill(0..rows, &mut pointers, &mut offsets);
        let panels = part(panel_count, group_count, group);
        // SAFETY: only elements (row, column) of this task's panels are written through it.
        let out = unsafe { out.at(0) };
        let product = RowBlock { pointers: &pointers, offsets: &offsets, taps: &taps, depth: b.depth, columns: b.columns, bias, out };
        set.run(Pieces { set, product, source: b, panels });
    };
    if small { (0..group_count).for_each(task) } else { each(group_count, task) }
}

/// y = A B, see the module. `fill(rows, pointers, offsets)` names for a block of rows where each row's values for `taps[t]` lie (pointers
/// [taps.len()][rows of the block], `depth` floats each) and where in `out` each row of y starts; nothing between the rows is touched.
pub(crate) fn by_rows_of_panels(
    set: InstructionSet,
    b: &Packed,
    taps: &[usize],
    rows: usize,
    bias: Option<&[f32]>,
    out: &Shared<f32>,
    parallel: bool,
    fill: impl Fn(Range<usize>, &mut [*const f32], &mut [usize]) + Sync,
) {
    let width = set.panel_width();
    let panel_count = b.columns.div_ceil(width);
    let block_count = rows.div_ceil(ROW_BLOCK);
    let small = rows * taps.len() * b.depth * b.columns < PARALLEL_FROM;
    // How the columns are shared out changes no element, so it may follow the number of threads.
    let group_count = if small || !parallel { 1 } else { (4 * count()).div_ceil(block_count.max(1)).clamp(1, panel_count.max(1)) };
    let (base, panel_stride, b_stride) = b.layout(width);
    let base = Address(base);
    let task = |index: usize| {
        let block = index / group_count * ROW_BLOCK..((index / group_count + 1) * ROW_BLOCK).min(rows);
        let panels = part(panel_count, group_count, index % group_count);
        let mut pointers = vec![std::ptr::null(); taps.len() * block.len()];
        let mut offsets = vec![0; block.len()];
        fill(block, &mut pointers, &mut offsets);
        // SAFETY: only elements (row, column) of this task's block and panels are written through it.
        let out = unsafe { out.at(0) };
        let product = RowBlock { pointers: &pointers, offsets: &offsets, taps, depth: b.depth, columns: b.columns, bias, out };
        set.run(Panels { product, base: base.get(), panel_stride, b_stride, panels });
    };
    if small || !parallel { (0..block_count * group_count).for_each(task) } else { each(block_count * group_count, task) }
}

/// A pointer for reading that tasks share.
#[derive(Clone, Copy)]
struct Address(*const f32);

// SAFETY: read only, and the slice behind outlives the parallel region.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

impl Address {
    fn get(&self) -> *const f32 {
        self.0
    }
}

/// A block of rows of y and what it is the sum of.
struct RowBlock<'a> {
    pointers: &'a [*const f32],
    offsets: &'a [usize],
    taps: &'a [usize],
    depth: usize,
    columns: usize,
    bias: Option<&'a [f32]>,
    out: *mut f32,
}

/// Taps and depths that are summed before the sums are added to y.
struct Slice {
    taps: Range<usize>,
    depths: Range<usize>,
    /// There is nothing in y yet.
    first: bool,
}

/// A panel's part of a slice: tap t's first depth at base + t * tap_stride.
#[derive(Clone, Copy)]
struct Piece {
    base: *const f32,
    tap_stride: usize,
    b_stride: usize,
}

/// A block of rows times panels that were copied before, or that are read where they lie.
struct Panels<'a> {
    product: RowBlock<'a>,
    base: *const f32,
    panel_stride: usize,
    b_stride: usize,
    panels: Range<usize>,
}

impl Kernel for Panels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for panel in self.panels.clone() {
            for slice in self.product.slices() {
                // Wrapping, for there may be no B at all.
                let base = self.base.wrapping_add(panel * self.panel_stride + slice.depths.start * self.b_stride);
                let piece = Piece { base, tap_stride: self.product.depth * self.b_stride, b_stride: self.b_stride };
                self.product.multiply::<V>(panel, &slice, piece);
            }
        }
    }
}

/// All rows times panels that are copied a slice at a time.
struct Pieces<'a> {
    set: InstructionSet,
    product: RowBlock<'a>,
    source: &'a Source<'a>,
    panels: Range<usize>,
}

impl Kernel for Pieces<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let width = 2 * V::LANES;
        for slice in self.product.slices() {
            let (depth, taps) = (slice.depths.len(), slice.taps.len());
            let mut copies = Scratch::new(self.panels.len() * taps * depth * width);
            pack_slice(self.set, self.source, slice.taps.clone(), slice.depths.clone(), self.panels.clone(), width, copies.as_mut_slice());
            for (index, panel) in self.panels.clone().enumerate() {
                let tap_stride = depth * width;
                // Taps are numbered from the first of all on.
                let base = copies.as_slice().as_ptr().wrapping_add(index * taps * tap_stride).wrapping_sub(slice.taps.start * tap_stride);
                self.product.multiply::<V>(panel, &slice, Piece { base, tap_stride, b_stride: width });
            }
        }
    }
}

impl RowBlock<'_> {
    /// Whole taps while they fit into a slice, else slices of one tap; of an empty sum one empty slice. This order is the same for every row.
    #[inline(always)]
    fn slices(&self) -> impl Iterator<Item = Slice> + use<> {
        let (depth, tap_count) = (self.depth, self.taps.len());
        let depth_step = depth.clamp(1, SLICE_DEPTH);
        let tap_step = (SLICE_DEPTH / depth.max(1)).max(1);
        let (depth_count, count) = (depth.div_ceil(depth_step), if depth == 0 { 0 } else { tap_count.div_ceil(tap_step) * depth.div_ceil(depth_step) });
        (0..count.max(1)).map(move |index| {
            let (tap, d) = (index / depth_count.max(1) * tap_step, index % depth_count.max(1) * depth_step);
            let taps = if count == 0 { 0..0 } else { tap..(tap + tap_step).min(tap_count) };
            Slice { taps, depths: d..(d + depth_step).min(depth), first: index == 0 }
        })
    }

    #[inline(always)]
    fn multiply<V: Vector>(&self, panel: usize, slice: &Slice, piece: Piece) {
        match V::TILE_ROWS {
            4 => self.tiles::<V, 4>(panel, slice, piece),
            6 => self.tiles::<V, 6>(panel, slice, piece),
            _ => self.tiles::<V, 12>(panel, slice, piece),
        }
    }

    #[inline(always)]
    fn tiles<V: Vector, const M: usize>(&self, panel: usize, slice: &Slice, piece: Piece) {
        let rows = self.offsets.len();
        let mut row = 0;
        while row < rows {
            // SAFETY: each tile stays within the block: row + its height is at most the number of rows.
            unsafe {
                match rows - row {
                    left if left >= M => {
                        self.tile::<V, M>(panel, row, slice, piece);
                        row += M;
                    }
                    left if left >= 8 && M > 8 => {
                        self.tile::<V, 8>(panel, row, slice, piece);
                        row += 8;
                    }
                    left if left >= 4 => {
                        self.tile::<V, 4>(panel, row, slice, piece);
                        row += 4;
                    }
                    left if left >= 2 => {
                        self.tile::<V, 2>(panel, row, slice, piece);
                        row += 2;
                    }
                    _ => {
                        self.tile::<V, 1>(panel, row, slice, piece);
                        row += 1;
                    }
                }
            }
        }
    }

    /// M rows by one panel of columns, over a slice: from the bias if it is the first, else added to what y holds.
    #[inline(always)]
    unsafe fn tile<V: Vector, const M: usize>(&self, panel: usize, row: usize, slice: &Slice, piece: Piece) {
        let width = 2 * V::LANES;
        let column = panel * width;
        let used = width.min(self.columns - column);
        // SAFETY: `offsets`, `pointers` and the panels hold what `by_rows` was promised; columns beyond `used` are not touched.
        unsafe {
            let out: [*mut f32; M] = std::array::from_fn(|i| self.out.add(*self.offsets.get_unchecked(row + i) + column));
            let mut sums = [[V::zero(); 2]; M];
            if let Some(bias) = self.bias.filter(|_| slice.first) {
                sums = [load_pair(bias.as_ptr().add(column), used); M];
            }
            for t in slice.taps.clone() {
                let rows: [*const f32; M] = std::array::from_fn(|i| *self.pointers.get_unchecked(t * self.offsets.len() + row + i));
                let tap = *self.taps.get_unchecked(t);
                let mut b = piece.base.wrapping_add(tap * piece.tap_stride);
                for d in slice.depths.clone() {
                    let pair = [V::load(b), V::load(b.add(V::LANES))];
                    for (sum, row) in sums.iter_mut().zip(rows) {
                        let a = V::splat(*row.add(d));
                        *sum = [a.mul_add(pair[0], sum[0]), a.mul_add(pair[1], sum[1])];
                    }
                    b = b.wrapping_add(piece.b_stride);
                }
            }
            for (mut sum, out) in sums.into_iter().zip(out) {
                if !slice.first {
                    let before = load_pair::<V>(out, used);
                    sum = [before[0].add(sum[0]), before[1].add(sum[1])];
                }
                store_pair(sum, out, used);
            }
        }
    }
}
