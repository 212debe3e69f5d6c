//! A block of rows of A by panels of B: what every driver calls, and its body for vectors without bf16 arithmetic.

use super::packing::WIDTH;
use crate::instruction_set::{InstructionSet, Kernel};
use crate::product::{load_pair, store_pair};
use crate::vector::Vector;
use std::ops::Range;

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
            _ => set.run(self),
        }
    }

    /// The panel's pairs.
    #[inline(always)]
    pub unsafe fn panel(&self, panel: usize) -> *const u32 {
        // SAFETY: the panel is one of `panels`, the caller's promise.
        unsafe { self.b.add((panel - self.panels.start) * self.panel_stride) }
    }
}

impl Kernel for Block<'_> {
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

impl Block<'_> {
    #[inline(always)]
    fn tiles<V: Vector, const M: usize>(&self) {
        let rows = self.rows.len();
        for panel in self.panels.clone() {
            for part in (0..WIDTH.min(self.columns - panel * WIDTH)).step_by(2 * V::LANES) {
                let mut row = 0;
                while row < rows {
                    // SAFETY: each tile stays within the block: row + its height is at most the number of rows.
                    unsafe {
                        match rows - row {
                            left if left >= M => {
                                self.tile::<V, M>(panel, part, row);
                                row += M;
                            }
                            left if left >= 4 => {
                                self.tile::<V, 4>(panel, part, row);
                                row += 4;
                            }
                            left if left >= 2 => {
                                self.tile::<V, 2>(panel, part, row);
                                row += 2;
                            }
                            _ => {
                                self.tile::<V, 1>(panel, part, row);
                                row += 1;
                            }
                        }
                    }
                }
            }
        }
    }

    /// M rows by two vectors of columns, `part` columns into the panel.
    #[inline(always)]
    unsafe fn tile<V: Vector, const M: usize>(&self, panel: usize, part: usize, row: usize) {
        let column = panel * WIDTH + part;
        let used = (2 * V::LANES).min(self.columns - column);
        // SAFETY: the fields hold what they promise; columns beyond `used` are not touched. Pairs are read as floats, which keeps their bits.
        unsafe {
            let out: [*mut f32; M] = std::array::from_fn(|i| self.out.add(*self.out_rows.get_unchecked(row + i) + column));
            let mut sums = [[V::zero(); 2]; M];
            if let Some(bias) = self.bias {
                sums = [load_pair(bias.as_ptr().add(column), used); M];
            }
            let mut b = self.panel(panel).add(part).cast::<f32>();
            for tap in self.taps {
                let rows: [*const f32; M] = std::array::from_fn(|i| self.a.add(*self.rows.get_unchecked(row + i) + tap).cast());
                for pair in 0..self.depth / 2 {
                    let both = [V::load(b), V::load(b.add(V::LANES))];
                    // The even depths of all rows, then the odd ones: a register less than both at once.
                    let even = both.map(V::even_of_pairs);
                    for (sum, row) in sums.iter_mut().zip(rows) {
                        let a = V::splat(*row.add(pair)).even_of_pairs();
                        *sum = [a.mul_add(even[0], sum[0]), a.mul_add(even[1], sum[1])];
                    }
                    let odd = both.map(V::odd_of_pairs);
                    for (sum, row) in sums.iter_mut().zip(rows) {
                        let a = V::splat(*row.add(pair)).odd_of_pairs();
                        *sum = [a.mul_add(odd[0], sum[0]), a.mul_add(odd[1], sum[1])];
                    }
                    b = b.wrapping_add(WIDTH);
                }
            }
            for (sum, out) in sums.into_iter().zip(out) {
                let old = if self.add { load_pair(out, used) } else { [V::zero(); 2] };
                let sum = if self.add { [old[0].add(sum[0]), old[1].add(sum[1])] } else { sum };
                store_pair(sum, out, used);
            }
        }
    }
}
