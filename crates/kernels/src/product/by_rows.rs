//! y = A B with rows of A found through pointers.

use super::packing::{Packed, load_pair, store_pair};
use super::{DEPTH_BLOCK, PARALLEL_FROM};
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::Shared;
use crate::threads::{count, each, part};
use crate::vector::Vector;
use std::ops::Range;

/// Rows of a task: 96 * DEPTH_BLOCK floats stay in the second-level cache.
const ROW_BLOCK: usize = 96;

/// y = A B, see the module. `fill(rows, pointers, offsets)` names for a block of rows where each row's values for `taps[t]` lie (pointers
/// [taps.len()][rows of the block], `depth` floats each) and where in `out` each row of y starts; nothing between the rows is touched.
pub(crate) fn by_rows(
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
        set.run(RowBlock {
            pointers: &pointers,
            offsets: &offsets,
            taps,
            depth: b.depth,
            columns: b.columns,
            base: base.get(),
            panel_stride,
            b_stride,
            panels,
            bias,
            // SAFETY: only elements (row, column) of this task's block and panels are written through it.
            out: unsafe { out.at(0) },
        });
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

struct RowBlock<'a> {
    pointers: &'a [*const f32],
    offsets: &'a [usize],
    taps: &'a [usize],
    depth: usize,
    columns: usize,
    base: *const f32,
    panel_stride: usize,
    b_stride: usize,
    panels: Range<usize>,
    bias: Option<&'a [f32]>,
    out: *mut f32,
}

impl Kernel for RowBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        match V::TILE_ROWS {
            4 => self.blocks::<V, 4>(),
            6 => self.blocks::<V, 6>(),
            _ => self.blocks::<V, 12>(),
        }
    }
}

impl RowBlock<'_> {
    #[inline(always)]
    fn blocks<V: Vector, const M: usize>(&self) {
        // Whole taps while they fit into a block, else slices of one tap. This order is the same for every row.
        let taps_per_block = (DEPTH_BLOCK / self.depth.max(1)).max(1);
        let slice = self.depth.clamp(1, DEPTH_BLOCK);
        for panel in self.panels.clone() {
            if self.taps.is_empty() || self.depth == 0 {
                self.tiles::<V, M>(panel, 0..0, 0..0, true); // an empty sum: the bias alone
            }
            let mut tap = 0;
            while tap < self.taps.len() {
                let taps = tap..(tap + taps_per_block).min(self.taps.len());
                let mut d = 0;
                while d < self.depth {
                    let depths = d..(d + slice).min(self.depth);
                    let first = tap == 0 && d == 0;
                    self.tiles::<V, M>(panel, taps.clone(), depths.clone(), first);
                    d = depths.end;
                }
                tap = taps.end;
            }
        }
    }

    #[inline(always)]
    fn tiles<V: Vector, const M: usize>(&self, panel: usize, taps: Range<usize>, depths: Range<usize>, first: bool) {
        let rows = self.offsets.len();
        let mut row = 0;
        while row < rows {
            // SAFETY: each tile stays within the block: row + its height is at most the number of rows.
            unsafe {
                match rows - row {
                    left if left >= M => {
                        self.tile::<V, M>(panel, row, taps.clone(), depths.clone(), first);
                        row += M;
                    }
                    left if left >= 4 => {
                        self.tile::<V, 4>(panel, row, taps.clone(), depths.clone(), first);
                        row += 4;
                    }
                    left if left >= 2 => {
                        self.tile::<V, 2>(panel, row, taps.clone(), depths.clone(), first);
                        row += 2;
                    }
                    _ => {
                        self.tile::<V, 1>(panel, row, taps.clone(), depths.clone(), first);
                        row += 1;
                    }
                }
            }
        }
    }

    /// M rows by one panel of columns, over some taps and depths: from the bias if `first`, else from what y holds.
    #[inline(always)]
    unsafe fn tile<V: Vector, const M: usize>(&self, panel: usize, row: usize, taps: Range<usize>, depths: Range<usize>, first: bool) {
        let width = 2 * V::LANES;
        let column = panel * width;
        let used = width.min(self.columns - column);
        // SAFETY: `offsets`, `pointers` and the panels hold what `by_rows` was promised; columns beyond `used` are not touched.
        unsafe {
            let out: [*mut f32; M] = std::array::from_fn(|i| self.out.add(*self.offsets.get_unchecked(row + i) + column));
            let mut sums = [[V::zero(); 2]; M];
            if !first {
                // Not `map`, whose closure would be compiled without this instruction set.
                for (sum, out) in sums.iter_mut().zip(out) {
                    *sum = load_pair(out, used);
                }
            } else if let Some(bias) = self.bias {
                sums = [load_pair(bias.as_ptr().add(column), used); M];
            }
            for t in taps {
                let rows: [*const f32; M] = std::array::from_fn(|i| *self.pointers.get_unchecked(t * self.offsets.len() + row + i));
                let tap = *self.taps.get_unchecked(t);
                let mut b = self.base.add(panel * self.panel_stride + (tap * self.depth + depths.start) * self.b_stride);
                for d in depths.clone() {
                    let pair = [V::load(b), V::load(b.add(V::LANES))];
                    for (sum, row) in sums.iter_mut().zip(rows) {
                        let a = V::splat(*row.add(d));
                        *sum = [a.mul_add(pair[0], sum[0]), a.mul_add(pair[1], sum[1])];
                    }
                    b = b.wrapping_add(self.b_stride);
                }
            }
            for (sum, out) in sums.into_iter().zip(out) {
                store_pair(sum, out, used);
            }
        }
    }
}
