//! A block of rows of A by panels of B: what every driver calls where there are units for bf16.

use crate::instruction_set::InstructionSet;
use std::ops::Range;

/// Rows that are multiplied together.
pub(super) fn tile_rows(set: InstructionSet) -> usize {
    if set == InstructionSet::Avx512Bf16 { 12 } else { 32 }
}

/// y[row, column] = bias[column] + sum over taps and depth of A[row, tap, d] * B[tap, d, column], or that without the bias added to what y holds.
pub(super) struct Block<'a> {
    /// bf16 bits on a cache line's border; row r of tap t begins at rows[r] + taps[t] and has `depth` of them.
    pub a: *const u16,
    pub rows: &'a [usize],
    pub taps: &'a [usize],
    /// A multiple of `depth_step`, as are all offsets into `a`.
    pub depth: usize,
    /// Panels [taps][depth / 2][WIDTH] of pairs, on a cache line's border; the first of `panels` lies at `b`, the others `panel_stride` pairs apart.
    pub b: *const u32,
    pub panel_stride: usize,
    pub panels: Range<usize>,
    /// Columns of y; the last panel may have fewer than WIDTH.
    pub columns: usize,
    pub bias: Option<&'a [f32]>,
    /// Row r of y begins at out[out_rows[r]].
    pub out: *mut f32,
    pub out_rows: &'a [usize],
    pub add: bool,
    /// Whether y is so long that it need not pass through the caches.
    pub past_caches: bool,
}

impl Block<'_> {
    /// # Safety
    /// The pointers hold what the fields' descriptions say, nobody else touches these elements of y meanwhile, and the processor has the instruction set.
    pub unsafe fn run(self, set: InstructionSet) {
        match set {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller's promise.
            InstructionSet::Avx512Bf16 => unsafe { super::dot::run(&self) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller's promise.
            InstructionSet::Amx => unsafe { super::tiles::run(&self, super::tiles::Hardware) },
            #[cfg(test)]
            // SAFETY: the caller's promise.
            InstructionSet::EmulatedAmx => unsafe { super::tiles::run(&self, super::tiles::Emulated::default()) },
            _ => unreachable!("{} has no units for bf16: its products are those of f32", set.name()),
        }
    }

    /// The panel's pairs.
    #[inline(always)]
    pub unsafe fn panel(&self, panel: usize) -> *const u32 {
        // SAFETY: the panel is one of `panels`, the caller's promise.
        unsafe { self.b.add((panel - self.panels.start) * self.panel_stride) }
    }
}
