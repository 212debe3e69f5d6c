//! A block of rows by panels with AVX512_BF16: one instruction multiplies pairs and adds both products.

use super::block::Block;
use super::packing::WIDTH;
use std::arch::x86_64::*;

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
