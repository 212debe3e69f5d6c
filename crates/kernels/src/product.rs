//! Matrix products on packed panels; the same two drivers carry convolution and attention.
//!
//! `by_rows` computes y = A B where rows of A are found through pointers, one per tap (a plain product has one tap, a convolution
//! kernel * kernel), so that no picture is unfolded in memory. Each element of y is one chain of fused multiply-adds over taps and depth in rising order,
//! starting from the bias: the blocking, the other rows and the threads cannot change it.
//! `by_columns` computes A^T B, a sum over rows: weight gradients. Rows are cut into parts fixed by the shape; parts are added in order.

use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::threads::{count, each, part};
use crate::vector::Vector;
use std::ops::Range;

/// Depth of a panel of B that stays in the first-level cache while rows pass by: 256 * 16 floats are 16 KiB.
const DEPTH_BLOCK: usize = 256;
/// Rows of a task: 96 * DEPTH_BLOCK floats stay in the second-level cache.
const ROW_BLOCK: usize = 96;
/// Products with fewer multiply-adds than this stay on one thread: handing over would cost more.
const PARALLEL_FROM: usize = 64 * 1024;
/// Upper bound of the partial sums of `by_columns` in floats (8 MiB), which bounds the number of parts.
const PARTIAL_LIMIT: usize = 2 << 20;
/// Parts of the sum over rows in `by_columns`; more threads than this share the output's rows.
const PART_COUNT: usize = 8;

/// Sizes of y [rows, columns] = A [rows, depth] * B [depth, columns].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub rows: usize,
    pub depth: usize,
    pub columns: usize,
}

/// y [rows, columns] = a [rows, depth] * b [depth, columns] + bias [columns]; `b_transposed`: b lies as [columns, depth].
pub fn multiply(a: &[f32], b: &[f32], b_transposed: bool, bias: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    multiply_batch(a, b, b_transposed, bias, sizes, 1, y);
}

/// `multiply` for `batch` products whose matrices lie one behind the other; the bias is the same for all.
pub fn multiply_batch(a: &[f32], b: &[f32], b_transposed: bool, bias: Option<&[f32]>, sizes: Sizes, batch: usize, y: &mut [f32]) {
    let Sizes { rows, depth, columns } = sizes;
    let lengths = (a.len(), b.len(), y.len(), bias.map_or(columns, <[f32]>::len));
    let expected = (batch * rows * depth, batch * depth * columns, batch * rows * columns, columns);
    assert!(lengths == expected, "multiply {sizes:?} * {batch}: expected lengths of (a, b, y, bias) {expected:?}, found {lengths:?}");
    if y.is_empty() {
        return;
    }
    let set = InstructionSet::current();
    let out = Shared::new(y);
    let outer = batch > 1 && batch * rows * depth * columns >= PARALLEL_FROM;
    let one = |index: usize| {
        let a = &a[index * rows * depth..][..rows * depth];
        let b = &b[index * depth * columns..][..depth * columns];
        let source = if b_transposed { Source::transposed(b, depth, columns) } else { Source::plain(b, depth, columns) };
        let fill = |block: Range<usize>, pointers: &mut [*const f32], offsets: &mut [usize]| {
            for (i, row) in block.enumerate() {
                pointers[i] = a[row * depth..].as_ptr();
                offsets[i] = (index * rows + row) * columns;
            }
        };
        let packed = Packed::new(set, &source, rows, !outer);
        by_rows(set, &packed, &[0], rows, bias, &out, !outer, fill);
    };
    if outer { each(batch, one) } else { (0..batch).for_each(one) }
}

/// y [rows, columns] = a [depth, rows]^T * b [depth, columns]: a sum over the depth, cut into parts fixed by the sizes.
/// `column_sums` [columns], if asked for, becomes the sum of the rows of b.
pub fn multiply_transposed(a: &[f32], b: &[f32], sizes: Sizes, y: &mut [f32], column_sums: Option<&mut [f32]>) {
    let Sizes { rows, depth, columns } = sizes;
    let lengths = (a.len(), b.len(), y.len(), column_sums.as_ref().map_or(columns, |sums| sums.len()));
    let expected = (rows * depth, depth * columns, rows * columns, columns);
    assert!(lengths == expected, "multiply_transposed {sizes:?}: expected lengths of (a, b, y, column_sums) {expected:?}, found {lengths:?}");
    let fill = |block: Range<usize>, pointers: &mut [*const f32]| {
        for (pointer, k) in pointers.iter_mut().zip(block) {
            *pointer = a[k * rows..].as_ptr();
        }
    };
    by_columns(InstructionSet::current(), 1, rows, depth, Rows { values: b, stride: columns }, columns, y, column_sums, true, fill);
}

/// `multiply_transposed` for `batch` products whose matrices lie one behind the other.
pub fn multiply_transposed_batch(a: &[f32], b: &[f32], sizes: Sizes, batch: usize, y: &mut [f32]) {
    let Sizes { rows, depth, columns } = sizes;
    let lengths = (a.len(), b.len(), y.len());
    let expected = (batch * rows * depth, batch * depth * columns, batch * rows * columns);
    assert!(lengths == expected, "multiply_transposed {sizes:?} * {batch}: expected lengths of (a, b, y) {expected:?}, found {lengths:?}");
    let out = Shared::new(y);
    let set = InstructionSet::current();
    let outer = batch > 1 && batch * rows * depth * columns >= PARALLEL_FROM;
    let one = |index: usize| {
        let a = &a[index * rows * depth..][..rows * depth];
        // SAFETY: each product writes its own part of y.
        let y = unsafe { out.slice(index * rows * columns, rows * columns) };
        let fill = |block: Range<usize>, pointers: &mut [*const f32]| {
            for (pointer, k) in pointers.iter_mut().zip(block) {
                *pointer = a[k * rows..].as_ptr();
            }
        };
        let b = Rows { values: &b[index * depth * columns..][..depth * columns], stride: columns };
        by_columns(set, 1, rows, depth, b, columns, y, None, !outer, fill);
    };
    if outer { each(batch, one) } else { (0..batch).for_each(one) }
}

/// Rows that begin `stride` floats apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub values: &'a [f32],
    pub stride: usize,
}

/// Where B [taps * depth, columns] lies: element (tap, d, column) at tap * tap_stride + d * depth_stride + column * column_stride.
pub(crate) struct Source<'a> {
    pub values: &'a [f32],
    pub taps: usize,
    pub tap_stride: usize,
    pub depth: usize,
    pub depth_stride: usize,
    pub columns: usize,
    pub column_stride: usize,
}

impl<'a> Source<'a> {
    pub fn plain(values: &'a [f32], depth: usize, columns: usize) -> Self {
        Self { values, taps: 1, tap_stride: 0, depth, depth_stride: columns, columns, column_stride: 1 }
    }

    pub fn transposed(values: &'a [f32], depth: usize, columns: usize) -> Self {
        Self { values, taps: 1, tap_stride: 0, depth, depth_stride: 1, columns, column_stride: depth }
    }
}

/// B in panels as wide as the tile: [panel][tap][depth][width], zeros beyond the last column.
pub(crate) struct Packed<'a> {
    panels: Panels<'a>,
    taps: usize,
    depth: usize,
    columns: usize,
}

enum Panels<'a> {
    Copied(Scratch),
    /// Too few rows to earn a copy: panels are read where they lie.
    InPlace(&'a [f32]),
}

impl<'a> Packed<'a> {
    /// `rows`: how many rows the panels will serve.
    pub fn new(set: InstructionSet, source: &Source<'a>, rows: usize, parallel: bool) -> Self {
        let &Source { values, taps, depth, columns, .. } = source;
        let width = set.panel_width();
        let whole = source.column_stride == 1 && source.depth_stride == columns && (taps == 1 || source.tap_stride == depth * columns);
        if rows <= 8 && whole && columns.is_multiple_of(width) {
            return Self { panels: Panels::InPlace(values), taps, depth, columns };
        }
        let panel_len = taps * depth * width;
        let panel_count = columns.div_ceil(width);
        let mut scratch = Scratch::new(panel_count * panel_len);
        let out = Shared::new(scratch.as_mut_slice());
        let pack = |panel: usize| {
            // SAFETY: each task writes its own panel.
            pack_panel(source, panel * width, width, unsafe { out.slice(panel * panel_len, panel_len) });
        };
        if parallel && panel_count * panel_len >= PARALLEL_FROM { each(panel_count, pack) } else { (0..panel_count).for_each(pack) }
        Self { panels: Panels::Copied(scratch), taps, depth, columns }
    }
}

fn pack_panel(source: &Source, first: usize, width: usize, out: &mut [f32]) {
    let &Source { values, taps, tap_stride, depth, depth_stride, columns, column_stride } = source;
    let used = width.min(columns - first);
    for tap in 0..taps {
        let out = &mut out[tap * depth * width..][..depth * width];
        if used < width {
            out.fill(0.0);
        }
        if column_stride == 1 {
            for (d, row) in out.chunks_exact_mut(width).enumerate() {
                row[..used].copy_from_slice(&values[tap * tap_stride + d * depth_stride + first..][..used]);
            }
        } else {
            // Sixteen depths at a time: both sides then stay within a few cache lines.
            for block in (0..depth).step_by(16) {
                let end = (block + 16).min(depth);
                for column in 0..used {
                    let start = tap * tap_stride + (first + column) * column_stride;
                    for d in block..end {
                        out[d * width + column] = values[start + d * depth_stride];
                    }
                }
            }
        }
    }
}

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
    let (base, panel_stride, b_stride) = match &b.panels {
        Panels::Copied(scratch) => (scratch.as_slice().as_ptr(), b.taps * b.depth * width, width),
        Panels::InPlace(values) => (values.as_ptr(), width, b.columns),
    };
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
        let slice = self.depth.min(DEPTH_BLOCK).max(1);
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
                for i in 0..M {
                    sums[i] = load_pair(out[i], used);
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
                    for i in 0..M {
                        let a = V::splat(*rows[i].add(d));
                        sums[i] = [a.mul_add(pair[0], sums[i][0]), a.mul_add(pair[1], sums[i][1])];
                    }
                    b = b.wrapping_add(self.b_stride);
                }
            }
            for i in 0..M {
                store_pair(sums[i], out[i], used);
            }
        }
    }
}

/// Two vectors from `used` floats, zeros behind.
#[inline(always)]
unsafe fn load_pair<V: Vector>(from: *const f32, used: usize) -> [V; 2] {
    // SAFETY: `used` floats can be read, the caller's promise.
    unsafe {
        if used == 2 * V::LANES {
            [V::load(from), V::load(from.add(V::LANES))]
        } else if used > V::LANES {
            [V::load(from), V::load_part(from.add(V::LANES), used - V::LANES)]
        } else {
            [V::load_part(from, used), V::zero()]
        }
    }
}

#[inline(always)]
unsafe fn store_pair<V: Vector>(pair: [V; 2], to: *mut f32, used: usize) {
    // SAFETY: `used` floats can be written, the caller's promise.
    unsafe {
        if used == 2 * V::LANES {
            pair[0].store(to);
            pair[1].store(to.add(V::LANES));
        } else if used > V::LANES {
            pair[0].store(to);
            pair[1].store_part(to.add(V::LANES), used - V::LANES);
        } else {
            pair[0].store_part(to, used);
        }
    }
}

/// y [taps * height, columns] = sum over k of a(tap, k) [height] outer b [k, columns], see the module. `fill(ks, pointers)` names for a run of k
/// where the values of every tap lie: pointers [taps][run], `height` floats each. `column_sums` becomes the sum of the rows of b.
pub(crate) fn by_columns(
    set: InstructionSet,
    taps: usize,
    height: usize,
    depth: usize,
    b: Rows,
    columns: usize,
    y: &mut [f32],
    column_sums: Option<&mut [f32]>,
    parallel: bool,
    fill: impl Fn(Range<usize>, &mut [*const f32]) + Sync,
) {
    let size = taps * height * columns;
    let chunk_count = depth.div_ceil(DEPTH_BLOCK);
    if chunk_count == 0 {
        y.fill(0.0);
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
            column_task(set, taps, height, depth, b, columns, chunks, units, out, sums, &fill);
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

/// Rows of y that one unit of `by_columns` holds.
const UNIT_HEIGHT: usize = 48;

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
            pack_panel(&source, panel * width, width, &mut panel_out[..len * width]);
        }
        fill(ks, &mut pointers[..taps * len]);
        set.run(ColumnBlock {
            pointers: &pointers[..taps * len],
            len,
            height,
            columns,
            packed: packed.as_slice(),
            units: units.clone(),
            first: chunk == chunks.start,
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
                for i in 0..M {
                    let a = V::splat(*a.add(i));
                    sums[i] = [a.mul_add(pair[0], sums[i][0]), a.mul_add(pair[1], sums[i][1])];
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
