//! A block of rows by panels with AMX: tiles of 16 rows of 64 bytes, 32 by 32 results at a time in four of them.
//!
//! The loops are written over a trait: `Hardware` is the instructions, `Emulated` (tests) the same in software, which proves layout, strides and
//! remainders on any processor.

use super::block::Block;
use super::packing::WIDTH;
use crate::memory::Scratch;
use std::ops::Range;

/// Rows of a tile.
const HEIGHT: usize = 16;
/// bf16 numbers in a tile's row: the depth of one multiplication.
const DEPTH: usize = 32;
/// Panels of B that pass while a block of rows stays: half of a second-level cache of 1 MiB or more.
const GROUP_BYTES: usize = 512 * 1024;

/// Eight tiles. Those numbered 0 to 3 hold results, 4 and 5 rows of A, 6 and 7 halves of a panel of B.
pub(super) trait Tiles {
    /// # Safety
    /// The processor has the instructions. Every other method is called between this and `release`, on the same thread.
    unsafe fn configure(&mut self);
    unsafe fn release(&mut self);
    unsafe fn zero<const TILE: usize>(&mut self);
    /// # Safety
    /// 64 bytes can be read at each of 16 addresses, `stride` bytes apart.
    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize);
    /// # Safety
    /// 64 bytes can be written at each of 16 addresses, `stride` bytes apart.
    unsafe fn store<const TILE: usize>(&mut self, to: *mut u8, stride: usize);
    /// result [16, 16] += a [16, 32] * b [32, 16]
    unsafe fn multiply<const RESULT: usize, const A: usize, const B: usize>(&mut self);
}

/// # Safety
/// As `Block::run`; the processor has the instructions of `tiles`.
pub(super) unsafe fn run(block: &Block, mut tiles: impl Tiles) {
    let panel_bytes = block.taps.len() * block.depth * WIDTH * size_of::<u16>();
    let group = (GROUP_BYTES / panel_bytes.max(1)).max(1);
    let tile_len = block.taps.len() * HEIGHT * block.depth;
    let mut gathered = Scratch::new(tile_len); // for two tiles of halves
    // SAFETY: the caller's promise; every row handed on is one of the block's.
    unsafe {
        tiles.configure();
        let mut first = block.panels.start;
        while first < block.panels.end {
            let panels = first..(first + group).min(block.panels.end);
            first = panels.end;
            for row in (0..block.rows.len()).step_by(2 * HEIGHT) {
                let (upper, lower) = gathered.as_mut_of::<u16>().split_at_mut(tile_len);
                let upper = Operand::new(block, row, upper);
                if row + HEIGHT < block.rows.len() {
                    let lower = Operand::new(block, row + HEIGHT, lower);
                    row_block::<true>(block, &mut tiles, panels.clone(), row, [&upper, &lower]);
                } else {
                    row_block::<false>(block, &mut tiles, panels.clone(), row, [&upper, &upper]);
                }
            }
        }
        tiles.release();
    }
}

/// The sum of `rounds` multiplications into each of the four tiles of results, all factors with these bits.
///
/// # Safety
/// The processor has the instructions of `tiles`.
pub(super) unsafe fn chains(mut tiles: impl Tiles, rounds: usize, factor: u16) -> f32 {
    #[repr(C, align(64))]
    struct Factors([u16; DEPTH]);
    let factors = Factors([factor; DEPTH]);
    let mut results = Results([0.0; 2 * HEIGHT * WIDTH]);
    let row = std::hint::black_box(factors.0.as_ptr().cast::<u8>());
    // SAFETY: rows 0 bytes apart are all the one that is there; `results` holds two tiles side by side, twice.
    unsafe {
        tiles.configure();
        tiles.zero::<0>();
        tiles.zero::<1>();
        tiles.zero::<2>();
        tiles.zero::<3>();
        tiles.load::<4>(row, 0);
        tiles.load::<5>(row, 0);
        tiles.load::<6>(row, 0);
        tiles.load::<7>(row, 0);
        for _ in 0..rounds {
            tiles.multiply::<0, 4, 6>();
            tiles.multiply::<1, 4, 7>();
            tiles.multiply::<2, 5, 6>();
            tiles.multiply::<3, 5, 7>();
        }
        let to = results.0.as_mut_ptr().cast::<u8>();
        let stride = WIDTH * size_of::<f32>();
        tiles.store::<0>(to, stride);
        tiles.store::<1>(to.add(stride / 2), stride);
        tiles.store::<2>(to.add(HEIGHT * stride), stride);
        tiles.store::<3>(to.add(HEIGHT * stride + stride / 2), stride);
        tiles.release();
    }
    results.0.iter().sum()
}

/// Up to 16 rows of A as tile loads want them: a constant number of bytes apart.
struct Operand {
    /// Where the first row's values for tap number t lie: first + taps[t] where they lie in A, first + t * 16 * depth where they were gathered.
    first: *const u16,
    stride: usize,
    gathered: bool,
}

impl Operand {
    /// Rows from `row` on; rows without a constant distance (at the end of a picture's line, or fewer than 16) are copied to `gathered`.
    unsafe fn new(block: &Block, row: usize, gathered: &mut [u16]) -> Self {
        let rows = &block.rows[row..(row + HEIGHT).min(block.rows.len())];
        if let Some(stride) = constant_stride(rows) {
            // SAFETY: the block's promise.
            return Self { first: unsafe { block.a.add(rows[0]) }, stride, gathered: false };
        }
        let depth = block.depth;
        for (t, tap) in block.taps.iter().enumerate() {
            for (i, row) in rows.iter().enumerate() {
                let to = &mut gathered[(t * HEIGHT + i) * depth..][..depth];
                // SAFETY: `depth` values lie at each row and tap, the block's promise.
                to.copy_from_slice(unsafe { std::slice::from_raw_parts(block.a.add(row + tap), depth) });
            }
        }
        Self { first: gathered.as_ptr(), stride: depth, gathered: true } // rows beyond the last: results that are never stored
    }

    #[inline(always)]
    fn at(&self, t: usize, tap: usize) -> *const u8 {
        self.first.wrapping_add(if self.gathered { t * HEIGHT * self.stride } else { tap }).cast()
    }
}

/// The distance of 16 numbers, if it is the same between all.
fn constant_stride(offsets: &[usize]) -> Option<usize> {
    let stride = offsets.get(1)?.checked_sub(offsets[0])?;
    (offsets.len() == HEIGHT && offsets.windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) == stride)).then_some(stride)
}

#[repr(C, align(64))]
struct Results([f32; 2 * HEIGHT * WIDTH]);

/// 32 rows (16 without BOTH) by some panels.
unsafe fn row_block<const BOTH: bool>(block: &Block, tiles: &mut impl Tiles, panels: Range<usize>, row: usize, operands: [&Operand; 2]) {
    const PANEL_STRIDE: usize = WIDTH * size_of::<u32>();
    const RESULT_STRIDE: usize = WIDTH * size_of::<f32>();
    let [upper, lower] = operands;
    let strides = operands.map(|operand| operand.stride * size_of::<u16>());
    let height = if BOTH { 2 * HEIGHT } else { HEIGHT };
    let out_rows = &block.out_rows[row..(row + height).min(block.rows.len())];
    let mut results = Results([0.0; 2 * HEIGHT * WIDTH]);
    // SAFETY: the fields hold what they promise; `results` holds 32 rows of 32.
    unsafe {
        for panel in panels {
            let column = panel * WIDTH;
            let used = WIDTH.min(block.columns - column);
            if let Some(bias) = block.bias {
                // A tile whose rows are 0 bytes apart: the bias in each.
                results.0[..used].copy_from_slice(&bias[column..column + used]);
                let bias = results.0.as_ptr().cast::<u8>();
                tiles.load::<0>(bias, 0);
                tiles.load::<1>(bias.add(64), 0);
                if BOTH {
                    tiles.load::<2>(bias, 0);
                    tiles.load::<3>(bias.add(64), 0);
                }
            } else {
                tiles.zero::<0>();
                tiles.zero::<1>();
                if BOTH {
                    tiles.zero::<2>();
                    tiles.zero::<3>();
                }
            }
            let mut b = block.panel(panel).cast::<u8>();
            for (t, tap) in block.taps.iter().enumerate() {
                let (mut above, mut below) = (upper.at(t, *tap), lower.at(t, *tap));
                for _ in 0..block.depth / DEPTH {
                    tiles.load::<6>(b, PANEL_STRIDE);
                    tiles.load::<4>(above, strides[0]);
                    tiles.multiply::<0, 4, 6>();
                    tiles.load::<7>(b.add(64), PANEL_STRIDE);
                    tiles.multiply::<1, 4, 7>();
                    if BOTH {
                        tiles.load::<5>(below, strides[1]);
                        tiles.multiply::<2, 5, 6>();
                        tiles.multiply::<3, 5, 7>();
                        below = below.wrapping_add(64);
                    }
                    above = above.wrapping_add(64);
                    b = b.wrapping_add(HEIGHT * PANEL_STRIDE);
                }
            }
            let whole = used == WIDTH && !block.add;
            let (head, tail) = out_rows.split_at(HEIGHT.min(out_rows.len()));
            let place = |rows: &[usize]| constant_stride(rows).filter(|_| whole).map(|stride| (block.out.add(rows[0] + column), stride * size_of::<f32>()));
            match place(head) {
                Some((out, stride)) => {
                    tiles.store::<0>(out.cast(), stride);
                    tiles.store::<1>(out.add(16).cast(), stride);
                }
                None => {
                    let to = results.0.as_mut_ptr();
                    tiles.store::<0>(to.cast(), RESULT_STRIDE);
                    tiles.store::<1>(to.add(16).cast(), RESULT_STRIDE);
                    copy_out(block, &results.0, head, column, used);
                }
            }
            if !BOTH {
                continue;
            }
            match place(tail) {
                Some((out, stride)) => {
                    tiles.store::<2>(out.cast(), stride);
                    tiles.store::<3>(out.add(16).cast(), stride);
                }
                None => {
                    let to = results.0.as_mut_ptr().add(HEIGHT * WIDTH);
                    tiles.store::<2>(to.cast(), RESULT_STRIDE);
                    tiles.store::<3>(to.add(16).cast(), RESULT_STRIDE);
                    copy_out(block, &results.0[HEIGHT * WIDTH..], tail, column, used);
                }
            }
        }
    }
}

/// Rows of results to where they belong, or onto what is there.
unsafe fn copy_out(block: &Block, results: &[f32], out_rows: &[usize], column: usize, used: usize) {
    for (row, result) in out_rows.iter().zip(results.chunks_exact(WIDTH)) {
        // SAFETY: the block's promise; only this block touches these elements.
        let out = unsafe { std::slice::from_raw_parts_mut(block.out.add(row + column), used) };
        if block.add {
            out.iter_mut().zip(result).for_each(|(out, result)| *out += result);
        } else {
            out.copy_from_slice(&result[..used]);
        }
    }
}

/// The instructions. Compiled code uses tile registers nowhere else, so they keep their content from one to the next.
#[cfg(target_arch = "x86_64")]
pub(super) struct Hardware;

#[cfg(target_arch = "x86_64")]
impl Tiles for Hardware {
    #[inline(always)]
    unsafe fn configure(&mut self) {
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut configuration = Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        configuration.row_bytes[..8].fill(64);
        configuration.rows[..8].fill(HEIGHT as u8);
        // SAFETY: 64 bytes as the instruction reads them.
        unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn release(&mut self) {
        // SAFETY: touches tiles alone.
        unsafe { std::arch::asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn zero<const TILE: usize>(&mut self) {
        // SAFETY: touches a tile alone.
        unsafe { std::arch::asm!("tilezero tmm{tile}", tile = const TILE, options(nostack, nomem, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            std::arch::asm!("tileloadd tmm{tile}, [{from} + {stride}*1]", tile = const TILE, from = in(reg) from, stride = in(reg) stride,
                options(nostack, readonly, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn store<const TILE: usize>(&mut self, to: *mut u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            std::arch::asm!("tilestored [{to} + {stride}*1], tmm{tile}", tile = const TILE, to = in(reg) to, stride = in(reg) stride,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn multiply<const RESULT: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: touches tiles alone.
        unsafe {
            std::arch::asm!("tdpbf16ps tmm{result}, tmm{a}, tmm{b}", result = const RESULT, a = const A, b = const B,
                options(nostack, nomem, preserves_flags));
        }
    }
}

/// Tiles in software, as Intel's manual describes them. Operands must lie on cache lines: tiles across them are loaded at half the speed or less.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Emulated {
    tiles: Option<Box<[[[u32; 16]; HEIGHT]; 8]>>,
}

#[cfg(test)]
impl Emulated {
    fn tile(&mut self, index: usize) -> &mut [[u32; 16]; HEIGHT] {
        &mut self.tiles.as_mut().expect("configured")[index]
    }
}

#[cfg(test)]
impl Tiles for Emulated {
    unsafe fn configure(&mut self) {
        self.tiles = Some(Box::new([[[0; 16]; HEIGHT]; 8]));
    }

    unsafe fn release(&mut self) {
        self.tiles = None;
    }

    unsafe fn zero<const TILE: usize>(&mut self) {
        *self.tile(TILE) = [[0; 16]; HEIGHT];
    }

    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize) {
        assert!(TILE < 4 || (from.addr().is_multiple_of(64) && stride.is_multiple_of(64)), "tile {TILE} at {from:p}, rows {stride} bytes apart");
        for (i, row) in self.tile(TILE).iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *row = unsafe { from.add(i * stride).cast::<[u32; 16]>().read_unaligned() };
        }
    }

    unsafe fn store<const TILE: usize>(&mut self, to: *mut u8, stride: usize) {
        for (i, row) in self.tile(TILE).iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { to.add(i * stride).cast::<[u32; 16]>().write_unaligned(*row) };
        }
    }

    unsafe fn multiply<const RESULT: usize, const A: usize, const B: usize>(&mut self) {
        let halves = |pair: u32| [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)];
        let (a, b) = (*self.tile(A), *self.tile(B));
        for (result, a) in self.tile(RESULT).iter_mut().zip(a) {
            for (column, result) in result.iter_mut().enumerate() {
                let mut sums = [0.0f32; 2];
                for (a, b) in a.iter().zip(&b) {
                    let (a, b) = (halves(*a), halves(b[column]));
                    sums = [sums[0] + a[0] * b[0], sums[1] + a[1] * b[1]];
                }
                *result = (f32::from_bits(*result) + (sums[0] + sums[1])).to_bits();
            }
        }
    }
}
