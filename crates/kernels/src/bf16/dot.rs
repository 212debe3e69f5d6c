//! A block of rows by panels with AVX512_BF16: one instruction multiplies pairs and adds both products.

use super::block::Block;
use super::packing::{Element, WIDTH};
use crate::memory::Shared;
use crate::product::{STEP, Sizes, share_columns};
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// # Safety
/// As `Block::run`; the processor has AVX512_BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn run(block: &Block) {
    let rows = block.rows.len();
    for panel in block.panels.clone() {
        let mut row = 0;
        while row < rows {
            // SAFETY: each tile stays within the block: row + its height is at most the number of rows.
            unsafe {
                match rows - row {
                    12.. => {
                        tile::<12>(block, panel, row);
                        row += 12;
                    }
                    4.. => {
                        tile::<4>(block, panel, row);
                        row += 4;
                    }
                    2.. => {
                        tile::<2>(block, panel, row);
                        row += 2;
                    }
                    _ => {
                        tile::<1>(block, panel, row);
                        row += 1;
                    }
                }
            }
        }
    }
}

/// M rows by one panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile<const M: usize>(block: &Block, panel: usize, row: usize) {
    let column = panel * WIDTH;
    let mask = u32::MAX >> (WIDTH - WIDTH.min(block.columns - column));
    let masks = [mask as u16, (mask >> 16) as u16];
    // SAFETY: the fields hold what they promise; masked columns are not touched. A vector of 32-bit pairs is one of bf16, whatever its bits.
    unsafe {
        let load = |from: *const f32| [_mm512_maskz_loadu_ps(masks[0], from), _mm512_maskz_loadu_ps(masks[1], from.wrapping_add(16))];
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        if let Some(bias) = block.bias {
            sums = [load(bias.as_ptr().add(column)); M];
        }
        let mut b = block.panel(panel);
        for tap in block.taps {
            let rows: [*const i32; M] = std::array::from_fn(|i| block.a.add(*block.rows.get_unchecked(row + i) + tap).cast());
            for pair in 0..block.depth / 2 {
                let both = [b, b.wrapping_add(16)].map(|b| std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.cast())));
                for (sum, row) in sums.iter_mut().zip(rows) {
                    let a = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*row.add(pair)));
                    *sum = [_mm512_dpbf16_ps(sum[0], a, both[0]), _mm512_dpbf16_ps(sum[1], a, both[1])];
                }
                b = b.wrapping_add(WIDTH);
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            let out = block.out.add(*block.out_rows.get_unchecked(row + i) + column);
            let old = if block.add { load(out) } else { [_mm512_setzero_ps(); 2] };
            let sum = if block.add { [_mm512_add_ps(old[0], sum[0]), _mm512_add_ps(old[1], sum[1])] } else { sum };
            _mm512_mask_storeu_ps(out, masks[0], sum[0]);
            _mm512_mask_storeu_ps(out.wrapping_add(16), masks[1], sum[1]);
        }
    }
}

/// Pairs of depths whose weights are in registers together.
const PAIR_STEP: usize = 2;

/// y = a * b + bias for few rows, b [depth, columns] read where it lies: the sums of `tile`, bit for bit. The processor must have AVX512_BF16.
pub(super) fn few_rows(a: &[f32], b: &[bf16], bias: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    let Sizes { rows, depth, columns } = sizes;
    // [rows][depth, rounded up to pairs]
    let stride = depth.div_ceil(2);
    let pair = |row: usize, at: usize| {
        let bits = |d: usize| if d < depth { u32::from(a[row * depth + d].bits()) } else { 0 };
        bits(2 * at) | bits(2 * at + 1) << 16
    };
    let pairs: Vec<u32> = (0..rows * stride).map(|i| pair(i / stride, i % stride)).collect();
    let out = Shared::new(y);
    share_columns(sizes, bias, true, |here, sums| {
        // SAFETY: the caller's promise; the slices have the lengths of `sizes`, which the caller checked.
        unsafe { add_pairs(&pairs, b, sizes, here.clone(), sums) };
        for (row, sums) in sums.chunks_exact(here.len().next_multiple_of(STEP)).enumerate() {
            // SAFETY: each task writes its own columns of every row.
            unsafe { out.slice(row * columns + here.start, here.len()) }.copy_from_slice(&sums[..here.len()]);
        }
    });
}

/// sums [rows][columns, rounded up to steps] += the products of all pairs.
///
/// # Safety
/// The processor has AVX512_BF16; `pairs` are [rows][depth / 2, rounded up], b [depth, columns].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn add_pairs(pairs: &[u32], b: &[bf16], sizes: Sizes, here: Range<usize>, sums: &mut [f32]) {
    let Sizes { rows, depth, columns } = sizes;
    let (stride, sum_stride) = (depth.div_ceil(2), here.len().next_multiple_of(STEP));
    // Columns of two rows side by side: those numbered from 32 on come from the second row.
    let (mut first, mut second) = ([0u16; 32], [0u16; 32]);
    for i in 0..16 {
        (first[2 * i], first[2 * i + 1]) = (i as u16, 32 + i as u16);
        (second[2 * i], second[2 * i + 1]) = (16 + i as u16, 48 + i as u16);
    }
    // SAFETY: the arrays hold a vector each; the rest as the caller promised, masked columns are not touched.
    unsafe {
        let [first, second] = [first, second].map(|order| _mm512_loadu_si512(order.as_ptr().cast()));
        for pair in (0..stride).step_by(PAIR_STEP) {
            let count = PAIR_STEP.min(stride - pair);
            for column in here.clone().step_by(STEP) {
                let mask = u32::MAX >> (STEP - STEP.min(here.end - column));
                let mut weights = [[_mm512_setzero_si512(); 2]; PAIR_STEP];
                for (i, weights) in weights.iter_mut().enumerate().take(count) {
                    let from = b.as_ptr().add(2 * (pair + i) * columns + column).cast::<i16>();
                    let even = _mm512_maskz_loadu_epi16(mask, from);
                    let odd = _mm512_maskz_loadu_epi16(if 2 * (pair + i) + 1 < depth { mask } else { 0 }, from.wrapping_add(columns));
                    *weights = [_mm512_permutex2var_epi16(even, first, odd), _mm512_permutex2var_epi16(even, second, odd)];
                }
                for row in 0..rows {
                    let to = sums.as_mut_ptr().add(row * sum_stride + column - here.start);
                    let mut sum = [_mm512_loadu_ps(to), _mm512_loadu_ps(to.add(16))];
                    for (i, weights) in weights.iter().enumerate().take(count) {
                        let a = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*pairs.get_unchecked(row * stride + pair + i) as i32));
                        let weights = weights.map(|weights| std::mem::transmute::<__m512i, __m512bh>(weights));
                        sum = [_mm512_dpbf16_ps(sum[0], a, weights[0]), _mm512_dpbf16_ps(sum[1], a, weights[1])];
                    }
                    _mm512_storeu_ps(to, sum[0]);
                    _mm512_storeu_ps(to.add(16), sum[1]);
                }
                // As in `product::few_rows`: what comes next lies on other pages.
                for d in 2 * (pair + PAIR_STEP)..2 * (pair + 2 * PAIR_STEP) {
                    _mm_prefetch::<_MM_HINT_T0>(b.as_ptr().wrapping_add(d * columns + column).cast());
                }
            }
        }
    }
}
