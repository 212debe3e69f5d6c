//! Nearest row of a table: argmin over k of |row - table[k]|^2, the lowest of equals, without the matrix of distances.

use crate::instruction_set::InstructionSet;
use crate::memory::{Scratch, Shared};
use crate::product::{Packed, Source, by_rows_of_panels};
use crate::threads::each;

/// Rows whose distances are in memory at a time.
const ROW_BLOCK: usize = 48;

/// rows [count, channels], table [size, channels], size at least 1 -> writes for each row the index of its nearest entry.
pub fn nearest(rows: &[f32], table: &[f32], channels: usize, indices: &mut [usize]) {
    let (count, size) = (indices.len(), table.len().checked_div(channels).unwrap_or(0));
    assert!(
        size > 0 && table.len() == size * channels && rows.len() == count * channels,
        "nearest: {count} rows of {channels} channels do not fit {} values and a table of {}",
        rows.len(),
        table.len()
    );
    let set = InstructionSet::current();
    // |row - entry|^2 / 2 = |row|^2 / 2 - row . entry + |entry|^2 / 2; the first term is the same for all entries.
    let half_squares: Vec<f32> = table.chunks_exact(channels).map(|entry| entry.iter().map(|value| value * value).sum::<f32>() * -0.5).collect();
    let packed = Packed::new(set, &Source::transposed(table, channels, size), count, true);
    let out = Shared::new(indices);
    each(count.div_ceil(ROW_BLOCK), |block| {
        let (start, end) = (block * ROW_BLOCK, ((block + 1) * ROW_BLOCK).min(count));
        let mut scratch = Scratch::new((end - start) * size);
        let scores = scratch.as_mut_slice();
        by_rows_of_panels(set, &packed, &[0], end - start, Some(&half_squares), &Shared::new(scores), false, |block, pointers, offsets| {
            for (i, row) in block.enumerate() {
                pointers[i] = rows[(start + row) * channels..].as_ptr();
                offsets[i] = row * size;
            }
        });
        // SAFETY: each task writes its own rows.
        let indices = unsafe { out.slice(start, end - start) };
        for (index, scores) in indices.iter_mut().zip(scores.chunks_exact(size)) {
            let mut best = 0;
            for (i, score) in scores.iter().enumerate() {
                if *score > scores[best] {
                    best = i;
                }
            }
            *index = best;
        }
    });
}
