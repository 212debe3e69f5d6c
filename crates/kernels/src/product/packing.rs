//! B in panels as wide as the tile, and pairs of vectors at the edge of the last one.

use super::PARALLEL_FROM;
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::small_weights::Weight;
use crate::threads::each;
use crate::vector::{Vector, prefetch};
use std::ops::Range;

/// So many rows of B are asked for before they are copied: too short to be foreseen by the hardware, they would be waited for one by one.
const ROWS_AHEAD: usize = 8;
const LINE_BYTES: usize = 64;

/// Rows that begin `stride` floats apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub values: &'a [f32],
    pub stride: usize,
}

/// Where B [taps * depth, columns] lies: element (tap, d, column) at tap * tap_stride + d * depth_stride + column * column_stride.
pub(crate) struct Source<'a, W = f32> {
    pub values: &'a [W],
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

    /// Whether panels can be read where they lie, which is best where `rows` are too few to earn a copy.
    pub fn lies_in_panels(&self, set: InstructionSet, rows: usize) -> bool {
        let whole = self.column_stride == 1 && self.depth_stride == self.columns && (self.taps == 1 || self.tap_stride == self.depth * self.columns);
        rows <= 8 && whole && self.columns.is_multiple_of(set.panel_width())
    }

    pub fn transposed(values: &'a [f32], depth: usize, columns: usize) -> Self {
        Self { values, taps: 1, tap_stride: 0, depth, depth_stride: 1, columns, column_stride: depth }
    }
}

/// B in panels as wide as the tile: [panel][tap][depth][width], zeros beyond the last column.
pub(crate) struct Packed<'a> {
    panels: Panels<'a>,
    taps: usize,
    pub(super) depth: usize,
    pub(super) columns: usize,
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
        if source.lies_in_panels(set, rows) {
            return Self { panels: Panels::InPlace(values), taps, depth, columns };
        }
        let panel_len = taps * depth * width;
        let panel_count = columns.div_ceil(width);
        let mut scratch = Scratch::new(panel_count * panel_len);
        let out = Shared::new(scratch.as_mut_slice());
        let pack = |panel: usize| {
            // SAFETY: each task writes its own panel.
            pack_panel(set, source, panel * width, width, unsafe { out.slice(panel * panel_len, panel_len) });
        };
        if parallel && panel_count * panel_len >= PARALLEL_FROM {
            each(panel_count, pack)
        } else {
            (0..panel_count).for_each(pack)
        }
        Self { panels: Panels::Copied(scratch), taps, depth, columns }
    }

    /// Where panels `width` wide begin, and how far apart they and their rows are.
    pub fn layout(&self, width: usize) -> (*const f32, usize, usize) {
        match &self.panels {
            Panels::Copied(scratch) => (scratch.as_slice().as_ptr(), self.taps * self.depth * width, width),
            Panels::InPlace(values) => (values.as_ptr(), width, self.columns),
        }
    }
}

/// Columns `first`.. of B as one panel, [tap][depth][width].
pub(crate) fn pack_panel(set: InstructionSet, source: &Source, first: usize, width: usize, out: &mut [f32]) {
    for (tap, out) in out.chunks_exact_mut((source.depth * width).max(1)).take(source.taps).enumerate() {
        pack_tap(set, source, tap, 0..source.depth, first, width, out);
    }
}

/// Some taps and depths of B as panels side by side, [panel][tap][depth][width], widened to f32 where they are narrower.
pub(crate) fn pack_slice<W: Weight>(
    set: InstructionSet,
    source: &Source<W>,
    taps: Range<usize>,
    depths: Range<usize>,
    panels: Range<usize>,
    width: usize,
    out: &mut [f32],
) {
    if source.column_stride == 1 {
        return set.run(CopyRows { source, taps, depths, panels, width, out });
    }
    let len = depths.len() * width;
    for (panel, out) in panels.zip(out.chunks_exact_mut((taps.len() * len).max(1))) {
        for (tap, out) in taps.clone().zip(out.chunks_exact_mut(len.max(1))) {
            pack_tap(set, source, tap, depths.clone(), panel * width, width, out);
        }
    }
}

/// [`pack_slice`] of rows that lie in one piece.
struct CopyRows<'a, W> {
    source: &'a Source<'a, W>,
    taps: Range<usize>,
    depths: Range<usize>,
    panels: Range<usize>,
    width: usize,
    out: &'a mut [f32],
}

impl<W: Weight> Kernel for CopyRows<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { source, taps, depths, panels, width, out } = self;
        let tap_len = depths.len() * width;
        for (t, tap) in taps.clone().enumerate() {
            // Row by row through all panels: memory is read in longer runs than one panel is wide.
            for (i, d) in depths.clone().enumerate() {
                let row = &source.values[tap * source.tap_stride + d * source.depth_stride..][..source.columns];
                let ahead = row.as_ptr().wrapping_add(ROWS_AHEAD * source.depth_stride);
                for column in (panels.start * width..panels.end * width).step_by(LINE_BYTES / size_of::<W>()) {
                    prefetch(ahead.wrapping_add(column).cast());
                }
                for (p, panel) in panels.clone().enumerate() {
                    let to = &mut out[(p * taps.len() + t) * tap_len + i * width..][..width];
                    let used = width.min(row.len() - panel * width);
                    let whole = used / V::LANES * V::LANES;
                    // SAFETY: so many elements of the row are left, and as many are written.
                    unsafe {
                        let from = row.as_ptr().add(panel * width);
                        for at in (0..whole).step_by(V::LANES) {
                            W::load::<V>(from.add(at)).store(to.as_mut_ptr().add(at));
                        }
                    }
                    let (rest, beyond) = to[whole..].split_at_mut(used - whole);
                    rest.iter_mut().zip(&row[panel * width + whole..]).for_each(|(to, value)| *to = value.widen());
                    beyond.fill(0.0);
                }
            }
        }
    }
}

/// Columns `first`.. and some depths of a tap, [depth][width].
fn pack_tap<W: Weight>(set: InstructionSet, source: &Source<W>, tap: usize, depths: Range<usize>, first: usize, width: usize, out: &mut [f32]) {
    let &Source { values, tap_stride, depth_stride, columns, column_stride, .. } = source;
    let used = width.min(columns - first);
    let start = tap * tap_stride + depths.start * depth_stride + first * column_stride;
    if column_stride == 1 {
        let source = Source { values: &values[start..], tap_stride: 0, columns: used, ..*source };
        set.run(CopyRows { source: &source, taps: 0..1, depths: 0..depths.len(), panels: 0..1, width, out });
    } else {
        if used < width {
            out.fill(0.0);
        }
        set.run(Turn { values: &values[start..], depth: depths.len(), depth_stride, column_stride, used, width, out });
    }
}

/// The panel of a B that lies column by column.
struct Turn<'a, W> {
    /// From the panel's first column and depth on.
    values: &'a [W],
    depth: usize,
    depth_stride: usize,
    column_stride: usize,
    used: usize,
    width: usize,
    out: &'a mut [f32],
}

impl<W: Weight> Kernel for Turn<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { values, depth, depth_stride, column_stride, used, width, out } = self;
        // Squares of eight by eight while there are whole ones, eight columns at a time: they are read from end to end.
        let floats = W::as_floats(values).filter(|_| depth_stride == 1).unwrap_or_default();
        let squares = if floats.is_empty() { (0, 0) } else { (used / 8 * 8, depth / 8 * 8) };
        for column in (0..squares.0).step_by(8) {
            for d in (0..squares.1).step_by(8) {
                let (from, to) = (&floats[column * column_stride + d..][..7 * column_stride + 8], &mut out[d * width + column..][..7 * width + 8]);
                // SAFETY: the slices hold eight rows of eight each.
                unsafe { V::transpose_square(from.as_ptr(), column_stride, to.as_mut_ptr(), width) };
            }
        }
        for column in 0..used {
            let from = if column < squares.0 { squares.1 } else { 0 };
            for d in from..depth {
                out[d * width + column] = values[column * column_stride + d * depth_stride].widen();
            }
        }
    }
}

/// Two vectors from `used` floats, zeros behind.
#[inline(always)]
pub(crate) unsafe fn load_pair<V: Vector>(from: *const f32, used: usize) -> [V; 2] {
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

/// Two vectors to `used` floats.
#[inline(always)]
pub(crate) unsafe fn store_pair<V: Vector>(pair: [V; 2], to: *mut f32, used: usize) {
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
