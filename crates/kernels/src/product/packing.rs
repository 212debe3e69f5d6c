//! B in panels as wide as the tile, and pairs of vectors at the edge of the last one.

use super::PARALLEL_FROM;
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::threads::each;
use crate::vector::Vector;

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
    let &Source { values, taps, tap_stride, depth, depth_stride, columns, column_stride } = source;
    let used = width.min(columns - first);
    for tap in 0..taps {
        let out = &mut out[tap * depth * width..][..depth * width];
        if used < width {
            out.fill(0.0);
        }
        if column_stride == 1 {
            for (d, row) in out.chunks_exact_mut(width).enumerate() {
                let from = &values[tap * tap_stride + d * depth_stride + first..];
                // A length known to the compiler becomes a few moves; the general case a call.
                match row.as_chunks_mut::<16>() {
                    ([head], []) if used == 16 => *head = *from.first_chunk().expect("16 columns are used"),
                    _ => row[..used].copy_from_slice(&from[..used]),
                }
            }
        } else {
            set.run(Turn { values: &values[tap * tap_stride + first * column_stride..], depth, depth_stride, column_stride, used, width, out });
        }
    }
}

/// The panel of a B that lies column by column.
struct Turn<'a> {
    /// From the panel's first column on.
    values: &'a [f32],
    depth: usize,
    depth_stride: usize,
    column_stride: usize,
    used: usize,
    width: usize,
    out: &'a mut [f32],
}

impl Kernel for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { values, depth, depth_stride, column_stride, used, width, out } = self;
        // Squares of eight by eight while there are whole ones, eight depths at a time: both sides then stay within a few cache lines.
        let squares = if depth_stride == 1 { (used / 8 * 8, depth / 8 * 8) } else { (0, 0) };
        for d in (0..squares.1).step_by(8) {
            for column in (0..squares.0).step_by(8) {
                let (from, to) = (&values[column * column_stride + d..][..7 * column_stride + 8], &mut out[d * width + column..][..7 * width + 8]);
                // SAFETY: the slices hold eight rows of eight each.
                unsafe { V::transpose_square(from.as_ptr(), column_stride, to.as_mut_ptr(), width) };
            }
        }
        for column in 0..used {
            let from = if column < squares.0 { squares.1 } else { 0 };
            for d in from..depth {
                out[d * width + column] = values[column * column_stride + d * depth_stride];
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
