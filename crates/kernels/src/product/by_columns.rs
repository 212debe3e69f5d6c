//! y = A^T B, a sum over rows.

use super::packing::{Rows, Source, load_pair, pack_panel, store_pair};
use super::{DEPTH_BLOCK, PARALLEL_FROM};
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::threads::{count, each, part};
use crate::vector::Vector;
use std::ops::Range;

/// Upper bound of the partial sums in floats (8 MiB), which bounds the number of parts.
const PARTIAL_LIMIT: usize = 2 << 20;
/// Parts of the sum; more threads than this share the rows of y.
const PART_COUNT: usize = 8;
/// Rows of y that one unit of work holds.
const UNIT_HEIGHT: usize = 48;

/// y [taps * height, columns] = sum over k of a(tap, k) [height] outer b [k, columns], see the module. `fill(ks, pointers)` names for a run of k
/// where the values of every tap lie: pointers [taps][run], `height` floats each. `column_sums` becomes the sum of the rows of b.
/// With `add` the sum (of one block at most) is added to what y holds.
pub(crate) fn by_columns(
    set: InstructionSet,
    taps: usize,
    height: usize,
    depth: usize,
    b: Rows,
    columns: usize,
    y: &mut [f32],
    column_sums: Option<&mut [f32]>,
    add: bool,
    parallel: bool,
    fill: impl Fn(Range<usize>, &mut [*const f32]) + Sync,
) {
    let size = taps * height * columns;
    let chunk_count = depth.div_ceil(DEPTH_BLOCK);
    assert!(!add || depth <= DEPTH_BLOCK, "by_columns: only one block of the sum can be added to what y holds, found a depth of {depth}");
    if chunk_count == 0 {
        if !add {
            y.fill(0.0);
        }
        column_sums.into_iter().for_each(|sums| sums.fill(0.0));
        return;
    }
    // Fixed by the sizes, for the order of the sum depends on it.
    let part_count = PART_COUNT.min(chunk_count).min((PARTIAL_LIMIT / size.max(1)).max(1));
    let small = !parallel || size * depth < PARALLEL_FROM;
    // How the rows of y are shared out changes no element.
    let units = taps * height.div_ceil(UNIT_HEIGHT);
    let group_count = if small { 1 } else { (4 * count()).div_ceil(part_count).clamp(1, units.max(1)) };
    let summed = if column_sums.is_some() { columns } else { 0 };
    let mut partial = Scratch::new(if part_count == 1 { 0 } else { part_count * size });
    let mut partial_sums = vec![0.0; part_count * summed];
    {
        let sums = Shared::new(&mut partial_sums);
        let out = if part_count == 1 { Shared::new(y) } else { Shared::new(partial.as_mut_slice()) };
        let task = |index: usize| {
            let (p, group) = (index / group_count, index % group_count);
            let chunks = part(chunk_count, part_count, p);
            let units = part(units, group_count, group);
            // SAFETY: each task writes its own rows of its own part.
            let out = unsafe { out.at(p * size) };
            // SAFETY: only the first group of a part sums its columns.
            let sums = (group == 0).then(|| unsafe { sums.slice(p * summed, summed) });
            column_task(set, taps, height, depth, b, columns, chunks, units, add, out, sums, &fill);
        };
        if small { (0..part_count * group_count).for_each(task) } else { each(part_count * group_count, task) }
    }
    if part_count > 1 {
        add_parts(partial.as_slice(), part_count, y, !small);
    }
    if let Some(sums) = column_sums {
        add_parts(&partial_sums, part_count, sums, false);
    }
}

/// total = parts[0] + parts[1] + ..., in this order.
fn add_parts(parts: &[f32], part_count: usize, total: &mut [f32], parallel: bool) {
    let len = total.len();
    let out = Shared::new(total);
    let task_count = if parallel { len.div_ceil(16 * 1024) } else { 1 };
    each(task_count, |task| {
        let range = part(len, task_count, task);
        // SAFETY: tasks have ranges of their own.
        let total = unsafe { out.slice(range.start, range.len()) };
        total.copy_from_slice(&parts[range.clone()]);
        for index in 1..part_count {
            for (sum, value) in total.iter_mut().zip(&parts[index * len + range.start..]) {
                *sum += value;
            }
        }
    });
}

fn column_task(
    set: InstructionSet,
    taps: usize,
    height: usize,
    depth: usize,
    b: Rows,
    columns: usize,
    chunks: Range<usize>,
    units: Range<usize>,
    add: bool,
    out: *mut f32,
    mut sums: Option<&mut [f32]>,
    fill: &impl Fn(Range<usize>, &mut [*const f32]),
) {
    let width = set.panel_width();
    let panel_count = columns.div_ceil(width);
    let mut packed = Scratch::new(panel_count * DEPTH_BLOCK * width);
    let mut pointers = vec![std::ptr::null(); taps * DEPTH_BLOCK];
    for chunk in chunks.clone() {
        let ks = chunk * DEPTH_BLOCK..((chunk + 1) * DEPTH_BLOCK).min(depth);
        let len = ks.len();
        let source = Source { depth_stride: b.stride, ..Source::plain(&b.values[ks.start * b.stride..], len, columns) };
        for (panel, panel_out) in packed.as_mut_slice().chunks_exact_mut(DEPTH_BLOCK * width).enumerate() {
            pack_panel(set, &source, panel * width, width, &mut panel_out[..len * width]);
        }
        fill(ks, &mut pointers[..taps * len]);
        set.run(ColumnBlock {
            pointers: &pointers[..taps * len],
            len,
            height,
            columns,
            packed: packed.as_slice(),
            units: units.clone(),
            first: chunk == chunks.start && !add,
            out,
            sums: sums.as_deref_mut().unwrap_or_default(),
        });
    }
}

struct ColumnBlock<'a> {
    pointers: &'a [*const f32],
    len: usize,
    height: usize,
    columns: usize,
    packed: &'a [f32],
    units: Range<usize>,
    first: bool,
    out: *mut f32,
    sums: &'a mut [f32],
}

impl Kernel for ColumnBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        match V::TILE_ROWS {
            4 => self.tiles::<V, 4>(),
            6 => self.tiles::<V, 6>(),
            _ => self.tiles::<V, 12>(),
        }
    }
}

impl ColumnBlock<'_> {
    #[inline(always)]
    fn tiles<V: Vector, const M: usize>(self) {
        let width = 2 * V::LANES;
        let panel_len = DEPTH_BLOCK * width;
        let units_per_tap = self.height.div_ceil(UNIT_HEIGHT);
        let sums = self.sums.as_mut_ptr();
        for panel in 0..self.columns.div_ceil(width) {
            // SAFETY: the panel lies in `packed`.
            let b = unsafe { self.packed.as_ptr().add(panel * panel_len) };
            if !self.sums.is_empty() {
                let used = width.min(self.columns - panel * width);
                // SAFETY: `len` rows of the panel are packed, and `used` sums lie from the panel's first column on.
                unsafe {
                    let mut pair = [V::zero(); 2];
                    for k in 0..self.len {
                        pair = [pair[0].add(V::load(b.add(k * width))), pair[1].add(V::load(b.add(k * width + V::LANES)))];
                    }
                    let to = sums.add(panel * width);
                    let old = load_pair::<V>(to, used);
                    store_pair([old[0].add(pair[0]), old[1].add(pair[1])], to, used);
                }
            }
            for unit in self.units.clone() {
                let (tap, start) = (unit / units_per_tap, unit % units_per_tap * UNIT_HEIGHT);
                let end = (start + UNIT_HEIGHT).min(self.height);
                let mut row = start;
                while row < end {
                    // SAFETY: each tile stays within the unit: row + its height is at most `end`.
                    unsafe {
                        match end - row {
                            left if left >= M => {
                                self.tile::<V, M>(panel, b, tap, row);
                                row += M;
                            }
                            left if left >= 4 => {
                                self.tile::<V, 4>(panel, b, tap, row);
                                row += 4;
                            }
                            left if left >= 2 => {
                                self.tile::<V, 2>(panel, b, tap, row);
                                row += 2;
                            }
                            _ => {
                                self.tile::<V, 1>(panel, b, tap, row);
                                row += 1;
                            }
                        }
                    }
                }
            }
        }
    }

    /// M rows of one tap by one panel of columns, over the run of k.
    #[inline(always)]
    unsafe fn tile<V: Vector, const M: usize>(&self, panel: usize, b: *const f32, tap: usize, row: usize) {
        let width = 2 * V::LANES;
        let column = panel * width;
        let used = width.min(self.columns - column);
        // SAFETY: `pointers` and the panel hold what `by_columns` was promised; columns beyond `used` are not touched.
        unsafe {
            let out = self.out.add((tap * self.height + row) * self.columns + column);
            let mut sums = [[V::zero(); 2]; M];
            let pointers = self.pointers.as_ptr().add(tap * self.len);
            let mut b = b;
            for k in 0..self.len {
                let pair = [V::load(b), V::load(b.add(V::LANES))];
                let a = (*pointers.add(k)).add(row);
                for (i, sum) in sums.iter_mut().enumerate() {
                    let a = V::splat(*a.add(i));
                    *sum = [a.mul_add(pair[0], sum[0]), a.mul_add(pair[1], sum[1])];
                }
                b = b.add(width);
            }
            for (i, sum) in sums.into_iter().enumerate() {
                let to = out.add(i * self.columns);
                let old = if self.first { [V::zero(); 2] } else { load_pair(to, used) };
                store_pair([old[0].add(sum[0]), old[1].add(sum[1])], to, used);
            }
        }
    }
}
