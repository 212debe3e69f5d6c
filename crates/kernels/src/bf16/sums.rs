//! y = A^T B, a sum over a long depth (rows of a batch, pixels): weight gradients.

use super::block::Block;
use super::packing::{Transposed, WIDTH};
use crate::instruction_set::InstructionSet;
use crate::memory::{Scratch, Shared};
use crate::threads::{count, each, part};
use std::ops::Range;

/// Depth that is summed from zero (with AVX512_BF16 in slices of 128) before it is added to the result: shorter chains lose less. Its panel of B stays in the first-level cache.
pub(super) const CHUNK: usize = 512;

/// A panel of y: where its first element lies in `out`, and how many columns it has (at most 32).
pub(super) struct Place {
    pub start: usize,
    pub used: usize,
}

/// For each panel: y [height, used] = sum over depth of A^T B, of which A has `height` columns. `pack(panel, depths, pairs)` fills pairs [depths / 2][32] of B, zeros beyond the end.
/// Rows of y lie `out_stride` apart.
pub(super) fn sum(
    set: InstructionSet,
    columns: &mut Transposed,
    height: usize,
    panel_count: usize,
    out: &Shared<f32>,
    out_stride: usize,
    place: impl Fn(usize) -> Place + Sync,
    pack: impl Fn(usize, Range<usize>, &mut [u32]) + Sync,
) {
    let (depth, stride) = (columns.depth, columns.stride);
    let a = columns.values();
    assert!(a.len() >= height * stride, "bf16 sum: columns beyond A");
    // How the rows of y are shared out changes no element; each share packs B again, so there are no more than keep the threads busy.
    let group_count = (2 * count()).div_ceil(panel_count.max(1)).clamp(1, height.div_ceil(32).max(1));
    each(panel_count * group_count, |task| {
        let (panel, rows) = (task / group_count, part(height, group_count, task % group_count));
        let Place { start, used } = place(panel);
        let out_rows: Vec<usize> = rows.clone().map(|row| start + row * out_stride).collect();
        let mut scratch = Scratch::new(CHUNK / 2 * WIDTH);
        let pairs = scratch.as_mut_of::<u32>();
        if depth == 0 {
            // SAFETY: these rows of this panel are this task's.
            out_rows.iter().for_each(|row| unsafe { out.slice(*row, used) }.fill(0.0));
        }
        for chunk in (0..depth).step_by(CHUNK) {
            let depths = chunk..(chunk + CHUNK).min(depth);
            pack(panel, depths.clone(), &mut pairs[..depths.len() / 2 * WIDTH]);
            let starts: Vec<usize> = rows.clone().map(|row| row * stride + chunk).collect();
            let block = Block {
                a: a.as_ptr(),
                rows: &starts,
                taps: &[0],
                depth: depths.len(),
                b: pairs.as_ptr(),
                panel_stride: 0,
                panels: 0..1,
                columns: used,
                bias: None,
                // SAFETY: only this task's rows of this panel are touched through it.
                out: unsafe { out.at(0) },
                out_rows: &out_rows,
                add: chunk > 0,
                past_caches: false,
            };
            // SAFETY: rows of A end at `stride`, the panel holds the chunk's depths, and `set` is one that this processor has.
            unsafe { block.run(set) };
        }
    });
}
