//! Rounding to bf16, rows of A, panels of B, and transposition.

use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::small_weights::Weight;
use crate::threads::{each, part};
use crate::vector::Vector;
use half::{bf16, f16};
use std::ops::Range;

/// Columns of a panel.
pub(super) const WIDTH: usize = 32;
/// Depths that are transposed together.
const BLOCK: usize = 32;
/// Elements that one task packs at least: below, handing over would cost more.
const TASK_LEN: usize = 16 * 1024;

/// The depth is filled up with zeros to a multiple of this: pairs, or an AMX tile's row.
pub(super) fn depth_step(set: InstructionSet) -> usize {
    match set {
        InstructionSet::Amx => 32,
        #[cfg(test)]
        InstructionSet::EmulatedAmx => 32,
        _ => 2,
    }
}

/// The nearest bf16, ties to even, as f32; NaN stays NaN.
pub fn rounded(value: f32) -> f32 {
    f32::from_bits(u32::from(value.bits()) << 16)
}

/// All of them rounded, for processors whose only units are those of f32: their products are exact there.
pub(super) fn in_f32<E: Element>(set: InstructionSet, values: &[E]) -> Scratch {
    let mut scratch = Scratch::new(values.len());
    let out = Shared::new(scratch.as_mut_slice());
    let task_count = values.len().div_ceil(TASK_LEN);
    each(task_count, |task| {
        let range = part(values.len(), task_count, task);
        // SAFETY: tasks have ranges of their own.
        let out = unsafe { out.slice(range.start, range.len()) };
        set.run(Compiled(
            #[inline(always)]
            || out.iter_mut().zip(&values[range]).for_each(|(to, value)| *to = f32::from_bits(u32::from(value.bits()) << 16)),
        ));
    });
    scratch
}

/// What a matrix may be made of.
pub trait Element: Weight {
    /// The bits of the nearest bf16.
    fn bits(self) -> u16;
    /// The same slice, where it is of bf16.
    fn as_bf16(_values: &[Self]) -> Option<&[bf16]> {
        None
    }
}

impl Element for f32 {
    #[inline(always)]
    fn bits(self) -> u16 {
        let bits = self.to_bits();
        let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40; // a NaN whose upper half alone could look like infinity
        (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { nearest }) as u16
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn bits(self) -> u16 {
        self.to_bits()
    }
    fn as_bf16(values: &[Self]) -> Option<&[bf16]> {
        Some(values)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn bits(self) -> u16 {
        self.to_f32().bits()
    }
}

/// Plain loops compiled for the instruction set, which the compiler turns into vectors.
pub(super) struct Compiled<F>(pub F);

impl<F: FnOnce()> Kernel for Compiled<F> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        (self.0)();
    }
}

/// Rows of `depth` values, one behind the other, as rows of `stride` bf16 with zeros behind. Lines of the output that `line` calls none are all zero.
/// `line(i)`: where in `values` the run of `run` rows begins that output line i holds, after `lead` rows of zeros; `line_rows` rows in all.
pub(super) struct Lines {
    pub depth: usize,
    pub stride: usize,
    pub lead: usize,
    pub run: usize,
    pub line_rows: usize,
}

impl Lines {
    pub fn round(&self, set: InstructionSet, values: &[f32], line_count: usize, line: impl Fn(usize) -> Option<usize> + Sync) -> Scratch {
        let &Self { depth, stride, lead, run, line_rows } = self;
        let line_len = line_rows * stride;
        let mut scratch = Scratch::new((line_count * line_len).div_ceil(2));
        let out = Shared::new(scratch.as_mut_of::<u16>());
        let task_count = (line_count * line_len).div_ceil(TASK_LEN).min(line_count);
        each(task_count, |task| {
            let lines = part(line_count, task_count, task);
            set.run(Compiled(
                #[inline(always)]
                || {
                    for index in lines {
                        // SAFETY: each line is one task's.
                        let out = unsafe { out.slice(index * line_len, line_len) };
                        let Some(start) = line(index) else {
                            out.fill(0);
                            continue;
                        };
                        out[..lead * stride].fill(0);
                        out[(lead + run) * stride..].fill(0);
                        let rows = &mut out[lead * stride..][..run * stride];
                        let values = &values[start * depth..][..run * depth];
                        if depth == stride {
                            round(set, values, rows);
                            continue;
                        }
                        for row in 0..run {
                            let (used, rest) = rows[row * stride..][..stride].split_at_mut(depth);
                            round(set, &values[row * depth..][..depth], used);
                            rest.fill(0);
                        }
                    }
                },
            ));
        });
        scratch
    }
}

/// values [rows, depth] -> bf16 [rows][stride], zeros beyond the depth.
pub(super) fn round_rows(set: InstructionSet, values: &[f32], rows: usize, depth: usize, stride: usize) -> Scratch {
    let mut scratch = Scratch::new((rows * stride).div_ceil(2));
    let out = Shared::new(scratch.as_mut_of::<u16>());
    let task_count = (rows * stride).div_ceil(TASK_LEN).min(rows);
    each(task_count, |task| {
        let rows = part(rows, task_count, task);
        // SAFETY: tasks have rows of their own.
        let out = unsafe { out.slice(rows.start * stride, rows.len() * stride) };
        let values = &values[rows.start * depth..rows.end * depth];
        set.run(Compiled(
            #[inline(always)]
            || {
                if depth == stride {
                    return round(set, values, out);
                }
                for (out, values) in out.chunks_exact_mut(stride).zip(values.chunks_exact(depth.max(1))) {
                    let (used, rest) = out.split_at_mut(depth);
                    round(set, values, used);
                    rest.fill(0);
                }
            },
        ));
    });
    scratch
}

/// Both have the same length.
#[inline(always)]
fn round(set: InstructionSet, from: &[f32], to: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if set == InstructionSet::Avx512Bf16 {
        // SAFETY: the instruction set is one that this processor has.
        return unsafe { super::dot::round(from, to) };
    }
    to.iter_mut().zip(from).for_each(|(to, value)| *to = value.bits());
}

/// Where B lies: element (tap, d, column) at tap * tap_stride + d * depth_stride + column * column_stride.
#[derive(Clone, Copy)]
pub(super) struct Source<'a, E> {
    pub values: &'a [E],
    pub tap_stride: usize,
    pub depth: usize,
    pub depth_stride: usize,
    pub columns: usize,
    pub column_stride: usize,
}

impl<E: Element> Source<'_, E> {
    /// Some of the depths alone; those beyond the end are zeros.
    pub fn rows(&self, depths: Range<usize>) -> Self {
        let start = depths.start.min(self.depth);
        Self { values: &self.values[start * self.depth_stride..], depth: depths.end.min(self.depth) - start, ..*self }
    }

    /// Pairs of one panel, for some taps: [taps][stride / 2][WIDTH], zeros beyond the last depth and column.
    pub fn pack(&self, set: InstructionSet, taps: impl Iterator<Item = usize>, panel: usize, stride: usize, out: &mut [u32]) {
        if self.column_stride != 1 {
            let outs = out.chunks_exact_mut((stride / 2 * WIDTH).max(1));
            return taps.zip(outs).for_each(|(tap, out)| set.run(PackTransposed { source: self, set, tap, panel, out }));
        }
        set.run(Compiled(
            #[inline(always)]
            || {
                for (tap, out) in taps.zip(out.chunks_exact_mut((stride / 2 * WIDTH).max(1))) {
                    self.pack_tap(set, tap, panel, out);
                }
            },
        ));
    }

    /// The same for several panels of one tap, [panels][stride / 2][WIDTH]: B is read in runs as long as the panels are wide together, which memory likes.
    pub fn pack_panels(&self, set: InstructionSet, tap: usize, panels: Range<usize>, stride: usize, out: &mut [u32]) {
        let panel_len = stride / 2 * WIDTH;
        if self.column_stride != 1 {
            for (panel, out) in panels.zip(out.chunks_exact_mut(panel_len.max(1))) {
                self.pack(set, std::iter::once(tap), panel, stride, out);
            }
            return;
        }
        set.run(Compiled(
            #[inline(always)]
            || {
                for pair in 0..stride / 2 {
                    for (place, panel) in panels.clone().enumerate() {
                        self.pack_pair(set, tap, pair, panel, &mut out[place * panel_len + pair * WIDTH..][..WIDTH]);
                    }
                }
            },
        ));
    }

    #[inline(always)]
    fn pack_pair(&self, set: InstructionSet, tap: usize, pair: usize, panel: usize, out: &mut [u32]) {
        let first = panel * WIDTH;
        let used = WIDTH.min(self.columns - first);
        let row = |d: usize| if d < self.depth { &self.values[tap * self.tap_stride + d * self.depth_stride + first..][..used] } else { &[] };
        pack_pair(set, row(2 * pair), row(2 * pair + 1), out);
    }

    #[inline(always)]
    fn pack_tap(&self, set: InstructionSet, tap: usize, panel: usize, out: &mut [u32]) {
        for (pair, out) in out.chunks_exact_mut(WIDTH).enumerate() {
            self.pack_pair(set, tap, pair, panel, out);
        }
    }
}

/// A panel of a B that lies column by column.
struct PackTransposed<'a, E> {
    source: &'a Source<'a, E>,
    set: InstructionSet,
    tap: usize,
    panel: usize,
    /// [stride / 2][WIDTH]
    out: &'a mut [u32],
}

impl<E: Element> Kernel for PackTransposed<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { source, set, tap, panel, out } = self;
        let &Source { values, tap_stride, depth, depth_stride, columns, column_stride } = source;
        let first = panel * WIDTH;
        let column_count = WIDTH.min(columns - first);
        let start = |column: usize| tap * tap_stride + (first + column) * column_stride;
        // Blocks of as many depths as columns, by squares; both sides then stay within a few cache lines.
        let floats = E::as_floats(values).filter(|_| depth_stride == 1 && column_count == WIDTH).unwrap_or_default();
        let squares = if floats.is_empty() { 0 } else { depth / BLOCK * BLOCK };
        let mut rounded = [[0u32; BLOCK / 2]; WIDTH];
        for block in (0..squares).step_by(BLOCK) {
            for (column, rounded) in rounded.iter_mut().enumerate() {
                // SAFETY: pairs are two elements each.
                let rounded = unsafe { std::slice::from_raw_parts_mut(rounded.as_mut_ptr().cast(), BLOCK) };
                round(set, &floats[start(column) + block..][..BLOCK], rounded);
            }
            let out = &mut out[block / 2 * WIDTH..][..BLOCK / 2 * WIDTH];
            for column in (0..WIDTH).step_by(8) {
                for pair in (0..BLOCK / 2).step_by(8) {
                    // SAFETY: both hold squares of pairs, eight rows of eight each, and what is moved may have any bits.
                    unsafe { V::transpose_square(rounded[column][pair..].as_ptr().cast(), BLOCK / 2, out[pair * WIDTH + column..].as_mut_ptr().cast(), WIDTH) };
                }
            }
        }
        out[squares / 2 * WIDTH..].fill(0);
        for column in 0..column_count {
            for d in squares..depth {
                out[d / 2 * WIDTH + column] |= u32::from(values[start(column) + d * depth_stride].bits()) << (16 * (d % 2));
            }
        }
    }
}

/// Two rows side by side, zeros behind them; `odd` may be shorter (beyond the end).
#[inline(always)]
fn pack_pair<E: Element>(set: InstructionSet, even: &[E], odd: &[E], out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if set == InstructionSet::Avx512Bf16
        && let (Some(even), Some(odd)) = (E::as_floats(even).and_then(<[f32]>::first_chunk), E::as_floats(odd).and_then(<[f32]>::first_chunk))
    {
        // SAFETY: the instruction set is one that this processor has.
        return unsafe { super::dot::pack_pair(even, odd, out) };
    }
    let whole = |row: &[E]| row.len() == WIDTH;
    match out.first_chunk_mut::<WIDTH>() {
        // Lengths known to the compiler become a few vectors.
        Some(out) if whole(even) && whole(odd) => {
            let (even, odd) = (even.first_chunk::<WIDTH>().expect("32 columns"), odd.first_chunk::<WIDTH>().expect("32 columns"));
            for i in 0..WIDTH {
                out[i] = u32::from(even[i].bits()) | u32::from(odd[i].bits()) << 16;
            }
        }
        _ => {
            for (i, out) in out.iter_mut().enumerate() {
                let bits = |row: &[E]| row.get(i).map_or(0, |value| u32::from(value.bits()));
                *out = bits(even) | bits(odd) << 16;
            }
        }
    }
}

/// Pairs of rows that are bf16 already, from number `first` on: `row(i)` has at most 32 elements.
pub(super) fn pack_rows<'a>(set: InstructionSet, first: usize, row: impl Fn(usize) -> &'a [bf16], out: &mut [u32]) {
    set.run(Compiled(
        #[inline(always)]
        || {
            for (pair, out) in out.chunks_exact_mut(WIDTH).enumerate() {
                pack_pair(set, row(first + 2 * pair), row(first + 2 * pair + 1), out);
            }
        },
    ));
}

/// Columns as [`transpose`] leaves them.
pub(super) struct Transposed {
    scratch: Scratch,
    /// Of a column: its depths and zeros behind, up to whole steps of the units.
    pub depth: usize,
    /// From one column to the next.
    pub stride: usize,
}

impl Transposed {
    /// [columns][stride]
    pub fn values(&mut self) -> &[u16] {
        self.scratch.as_mut_of()
    }
}

/// values [depth, columns] -> bf16 [columns][stride].
pub(super) fn transpose(set: InstructionSet, values: &[f32], depth: usize, columns: usize) -> Transposed {
    /// Columns such a distance apart, in elements, share few sets of the caches, and push each other out while they are written side by side.
    const SHARED_SETS: usize = 512;
    const APART: usize = 64;
    let whole = depth.next_multiple_of(depth_step(set));
    let stride = if whole > 0 && whole.is_multiple_of(SHARED_SETS) { whole + APART } else { whole };
    let mut scratch = Scratch::new((columns * stride).div_ceil(2));
    let out = Shared::new(scratch.as_mut_of::<u32>());
    let block_count = whole.div_ceil(BLOCK);
    let task_count = (columns * whole).div_ceil(TASK_LEN).min(block_count);
    each(task_count, |task| set.run(Transpose { set, values, depth, columns, whole, stride, blocks: part(block_count, task_count, task), out: &out }));
    Transposed { scratch, depth: whole, stride }
}

/// Some blocks of [`transpose`], as pairs of depths.
struct Transpose<'a> {
    set: InstructionSet,
    values: &'a [f32],
    depth: usize,
    columns: usize,
    /// The depth with the zeros behind it.
    whole: usize,
    stride: usize,
    blocks: Range<usize>,
    /// [columns][stride / 2]
    out: &'a Shared<u32>,
}

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { set, values, depth, columns, whole, stride, blocks, out } = self;
        let mut pairs = [[0u32; WIDTH]; BLOCK / 2];
        for block in blocks {
            let used_pairs = (whole - block * BLOCK).min(BLOCK) / 2;
            for first in (0..columns).step_by(WIDTH) {
                let used = WIDTH.min(columns - first);
                for (i, pair) in pairs.iter_mut().enumerate() {
                    let d = block * BLOCK + 2 * i;
                    let row = |d: usize| if d < depth { &values[d * columns + first..][..used] } else { &[] };
                    pack_pair(set, row(d), row(d + 1), pair);
                }
                // SAFETY: this block's depths of these columns are one task's, and as many pairs of them are left.
                unsafe {
                    let to = |column: usize, pair: usize| out.at(((first + column) * stride + block * BLOCK) / 2 + pair);
                    if used == WIDTH && used_pairs == BLOCK / 2 {
                        for column in (0..WIDTH).step_by(8) {
                            for pair in (0..BLOCK / 2).step_by(8) {
                                // What is moved may have any bits.
                                V::transpose_square(pairs[pair][column..].as_ptr().cast(), WIDTH, to(column, pair).cast(), stride / 2);
                            }
                        }
                    } else {
                        for (pair, columns) in pairs[..used_pairs].iter().enumerate() {
                            columns[..used].iter().enumerate().for_each(|(column, bits)| *to(column, pair) = *bits);
                        }
                    }
                }
            }
        }
    }
}
