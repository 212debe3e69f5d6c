//! A block of rows by panels with AVX512_BF16: one instruction multiplies pairs and adds both products.

use super::block::Block;
use super::packing::{WIDTH, round_rows};
use crate::InstructionSet;
use crate::memory::{Scratch, Shared};
use crate::product::{STEP, Share, Sizes, in_slices, rows_ahead};
use crate::vector::{prefetch_to_second_level, settle};
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// Most depth of a slice: a panel of it takes half of the first-level cache.
const DEEPEST: usize = 256;

/// How deep the slices of a product are: the same for every number of rows, and an even number of slices, for `few_rows` gives each to one thread.
fn slice_depth(depth: usize) -> usize {
    let slices = if depth <= DEEPEST { 1 } else { depth.div_ceil(DEEPEST).next_multiple_of(2) };
    depth.div_ceil(slices).next_multiple_of(2).max(2)
}

/// # Safety
/// As `Block::run`; the processor has AVX512_BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn run(block: &Block) {
    let pairs = block.depth / 2;
    // Sums of one tap are cut into slices for `few_rows`.
    let slice = if block.taps.len() == 1 { slice_depth(block.depth) / 2 } else { pairs.max(1) };
    // Totals of a panel between two slices: rows of y may all fall upon the same lines of the cache.
    let mut totals = Scratch::new(if pairs > slice { block.rows.len() * WIDTH } else { 0 });
    let totals = totals.as_mut_slice();
    for panel in block.panels.clone() {
        // SAFETY: the caller's promise.
        let rows = |pairs: Range<usize>, totals: &mut [f32]| unsafe { rows(block, panel, pairs, totals.as_mut_ptr()) };
        if pairs == 0 {
            rows(0..0, totals);
        }
        for first in (0..pairs).step_by(slice) {
            rows(first..(first + slice).min(pairs), totals);
        }
    }
    if block.past_caches {
        settle(); // before anybody is told that the block is done
    }
}

/// All rows by one panel, some pairs of every tap.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn rows(block: &Block, panel: usize, pairs: Range<usize>, totals: *mut f32) {
    let rows = block.rows.len();
    let mut row = 0;
    while row < rows {
        // SAFETY: each tile stays within the block: row + its height is at most the number of rows.
        unsafe {
            match rows - row {
                12.. => {
                    tile::<12>(block, panel, row, pairs.clone(), totals);
                    row += 12;
                }
                4.. => {
                    tile::<4>(block, panel, row, pairs.clone(), totals);
                    row += 4;
                }
                2.. => {
                    tile::<2>(block, panel, row, pairs.clone(), totals);
                    row += 2;
                }
                _ => {
                    tile::<1>(block, panel, row, pairs.clone(), totals);
                    row += 1;
                }
            }
        }
    }
}

/// M rows by one panel, some pairs of every tap. The first pairs begin with the bias, and the last go to y; between them, `totals` [rows, WIDTH] keep the sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile<const M: usize>(block: &Block, panel: usize, row: usize, pairs: Range<usize>, totals: *mut f32) {
    let column = panel * WIDTH;
    let mask = u32::MAX >> (WIDTH - WIDTH.min(block.columns - column));
    let masks = [mask as u16, (mask >> 16) as u16];
    let (first, last) = (pairs.start == 0, pairs.end == block.depth / 2);
    // SAFETY: the fields hold what they promise; masked columns are not touched. A vector of 32-bit pairs is one of bf16, whatever its bits.
    unsafe {
        let load = |from: *const f32| [_mm512_maskz_loadu_ps(masks[0], from), _mm512_maskz_loadu_ps(masks[1], from.wrapping_add(16))];
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        if let Some(bias) = block.bias.filter(|_| first) {
            sums = [load(bias.as_ptr().add(column)); M];
        }
        for (t, tap) in block.taps.iter().enumerate() {
            let mut b = block.panel(panel).wrapping_add((t * block.depth / 2 + pairs.start) * WIDTH);
            let rows: [*const i32; M] = std::array::from_fn(|i| block.a.add(*block.rows.get_unchecked(row + i) + tap).cast());
            for pair in pairs.clone() {
                let both = [b, b.wrapping_add(16)].map(|b| std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.cast())));
                for (sum, row) in sums.iter_mut().zip(rows) {
                    let a = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*row.add(pair)));
                    *sum = [_mm512_dpbf16_ps(sum[0], a, both[0]), _mm512_dpbf16_ps(sum[1], a, both[1])];
                }
                b = b.wrapping_add(WIDTH);
            }
        }
        for (i, mut sum) in sums.into_iter().enumerate() {
            let out = block.out.add(*block.out_rows.get_unchecked(row + i) + column);
            let total = totals.wrapping_add((row + i) * WIDTH);
            if !first || block.add {
                let old = if first { load(out) } else { [_mm512_loadu_ps(total), _mm512_loadu_ps(total.add(16))] };
                sum = [_mm512_add_ps(old[0], sum[0]), _mm512_add_ps(old[1], sum[1])];
            }
            if last && block.past_caches && mask == u32::MAX && (out as usize).is_multiple_of(64) {
                _mm512_stream_ps(out, sum[0]);
                _mm512_stream_ps(out.add(16), sum[1]);
            } else if last {
                _mm512_mask_storeu_ps(out, masks[0], sum[0]);
                _mm512_mask_storeu_ps(out.wrapping_add(16), masks[1], sum[1]);
            } else {
                _mm512_storeu_ps(total, sum[0]);
                _mm512_storeu_ps(total.add(16), sum[1]);
            }
        }
    }
}

/// `to` = the bits of `from`'s nearest bf16, of subnormal numbers those of zero, which the products would take them for.
/// # Safety
/// The processor has AVX512_BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn round(from: &[f32], to: &mut [u16]) {
    assert_eq!(from.len(), to.len());
    for at in (0..from.len()).step_by(WIDTH) {
        let mask = u32::MAX >> (WIDTH - WIDTH.min(from.len() - at));
        // SAFETY: masked elements are not touched.
        unsafe {
            let from = from.as_ptr().add(at);
            let [low, high] = [_mm512_maskz_loadu_ps(mask as u16, from), _mm512_maskz_loadu_ps((mask >> 16) as u16, from.wrapping_add(16))];
            let bits = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_epi16(to.as_mut_ptr().add(at).cast(), mask, bits);
        }
    }
}

/// Rows of a panel side by side, rounded as [`round`] does.
/// # Safety
/// The processor has AVX512_BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn pack_pair(even: &[f32; WIDTH], odd: &[f32; WIDTH], out: &mut [u32]) {
    assert!(out.len() >= WIDTH);
    // The first half of a vector beside the second.
    let mut order = [0u16; 32];
    for i in 0..16 {
        (order[2 * i], order[2 * i + 1]) = (i as u16, 16 + i as u16);
    }
    // SAFETY: the arrays hold whole vectors, and so does the output, as asserted.
    unsafe {
        let order = _mm512_loadu_si512(order.as_ptr().cast());
        for at in [0, 16] {
            let (even, odd) = (_mm512_loadu_ps(even.as_ptr().add(at)), _mm512_loadu_ps(odd.as_ptr().add(at)));
            let bits = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even));
            _mm512_storeu_si512(out.as_mut_ptr().add(at).cast(), _mm512_permutexvar_epi16(order, bits));
        }
    }
}

/// Independent chains of `chains`, enough to hide the latency of a product.
pub(super) const CHAIN_COUNT: usize = 12;

/// The sum of `rounds` products of pairs in each of the chains, all factors with these bits.
///
/// # Safety
/// The processor has AVX512_BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn chains(rounds: usize, factor: u16) -> f32 {
    let pair = i32::from_ne_bytes((u32::from(factor) * 0x1_0001).to_ne_bytes());
    // SAFETY: a vector of 32-bit pairs is one of bf16, whatever its bits.
    let factor = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(std::hint::black_box(pair))) };
    let mut chains = [_mm512_setzero_ps(); CHAIN_COUNT];
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = _mm512_dpbf16_ps(*chain, factor, factor);
        }
    }
    let mut sum = 0.0;
    for chain in chains {
        sum += _mm512_reduce_add_ps(chain);
    }
    sum
}

/// Pairs of depths whose weights are in registers together.
const PAIR_STEP: usize = 4;

/// y = a * b + bias for few rows, b [depth, columns] read where it lies: the sums of `tile`, bit for bit.
///
/// # Safety
/// The processor has AVX512_BF16.
pub(super) unsafe fn few_rows(a: &[f32], b: &[bf16], bias: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    let Sizes { rows, depth, columns } = sizes;
    // [rows][depth, rounded up to pairs]
    let stride = depth.next_multiple_of(2);
    let mut pairs = round_rows(InstructionSet::Avx512Bf16, a, rows, depth, stride);
    let pairs = &*pairs.as_mut_of::<u32>();
    let out = Shared::new(y);
    in_slices(
        sizes,
        slice_depth(depth.next_multiple_of(2)),
        bias,
        true,
        // SAFETY: the caller's promise; the slices have the lengths of `sizes`, which the caller checked.
        |share| unsafe { add_pairs(pairs, b, sizes, &share) },
        // SAFETY: each row's columns are handed out once.
        |row, here, sums| unsafe { out.slice(row * columns + here.start, here.len()) }.copy_from_slice(sums),
    );
}

/// The share's sums += the products of its pairs.
///
/// # Safety
/// The processor has AVX512_BF16; `pairs` are [rows][depth / 2, rounded up], b [depth, columns], the share is one of `in_slices`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn add_pairs(pairs: &[u32], b: &[bf16], sizes: Sizes, share: &Share) {
    let mut pair = share.depths.start / 2;
    // SAFETY: the caller's promise; slices begin at even depths.
    unsafe {
        while 2 * (pair + PAIR_STEP) <= share.depths.end {
            step::<PAIR_STEP>(pairs, b, sizes, share, pair);
            pair += PAIR_STEP;
        }
        while 2 * pair < share.depths.end {
            step::<1>(pairs, b, sizes, share, pair);
            pair += 1;
        }
    }
}

/// The same of K pairs from `pair` on, of which the last may lack its second half.
///
/// # Safety
/// As `add_pairs`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn step<const K: usize>(pairs: &[u32], b: &[bf16], sizes: Sizes, share: &Share, pair: usize) {
    let Sizes { rows, depth, columns } = sizes;
    let (stride, here) = (depth.div_ceil(2), share.columns.clone());
    let carry = share.carry(2 * pair..(2 * (pair + K)).min(depth));
    // As in `product::few_rows`: what comes next lies on other pages.
    let next = 2 * pair + rows_ahead(here.len() * size_of::<bf16>(), 2 * K);
    let asked_for = if next + 2 * K <= share.end { next..next + 2 * K } else { 0..0 };
    let whole = here.len() == columns;
    // Columns of two rows side by side: those numbered from 32 on come from the second row.
    let (mut first, mut second) = ([0u16; 32], [0u16; 32]);
    for i in 0..16 {
        (first[2 * i], first[2 * i + 1]) = (i as u16, 32 + i as u16);
        (second[2 * i], second[2 * i + 1]) = (16 + i as u16, 48 + i as u16);
    }
    // SAFETY: the arrays hold a vector each; the rest as the caller promised, masked columns are not touched.
    unsafe {
        let [first, second] = [first, second].map(|order| _mm512_loadu_si512(order.as_ptr().cast()));
        for column in here.clone().step_by(STEP) {
            let mask = u32::MAX >> (STEP - STEP.min(here.end - column));
            let mut weights = [[_mm512_setzero_si512(); 2]; K];
            for (i, weights) in weights.iter_mut().enumerate() {
                let from = b.as_ptr().add(2 * (pair + i) * columns + column).cast::<i16>();
                let even = _mm512_maskz_loadu_epi16(mask, from);
                let odd = _mm512_maskz_loadu_epi16(if 2 * (pair + i) + 1 < depth { mask } else { 0 }, from.wrapping_add(columns));
                *weights = [_mm512_permutex2var_epi16(even, first, odd), _mm512_permutex2var_epi16(even, second, odd)];
            }
            for row in 0..rows {
                let at = row * carry.stride + column - here.start;
                let mut sum = [_mm512_setzero_ps(); 2];
                if !carry.from.is_null() {
                    sum = [_mm512_loadu_ps(carry.from.add(at)), _mm512_loadu_ps(carry.from.add(at + 16))];
                }
                for (i, weights) in weights.iter().enumerate() {
                    let a = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*pairs.get_unchecked(row * stride + pair + i) as i32));
                    let weights = weights.map(|weights| std::mem::transmute::<__m512i, __m512bh>(weights));
                    sum = [_mm512_dpbf16_ps(sum[0], a, weights[0]), _mm512_dpbf16_ps(sum[1], a, weights[1])];
                }
                let to = carry.to.add(at);
                if carry.add {
                    sum = [_mm512_add_ps(_mm512_loadu_ps(to), sum[0]), _mm512_add_ps(_mm512_loadu_ps(to.add(16)), sum[1])];
                }
                _mm512_storeu_ps(to, sum[0]);
                _mm512_storeu_ps(to.add(16), sum[1]);
            }
            for (i, d) in asked_for.clone().enumerate() {
                let from = if whole { next * columns + (column - here.start) * 2 * K + i * STEP } else { d * columns + column };
                prefetch_to_second_level(b.as_ptr().wrapping_add(from).cast());
            }
        }
    }
}
