//! y = A B: rows of A rounded once, panels of B packed once (or, for few rows, by the task that reads them).

use super::block::{Block, tile_rows};
use super::packing::{Element, Source, WIDTH};
use crate::instruction_set::InstructionSet;
use crate::memory::{PAST_CACHES_FROM, Scratch, Shared};
use crate::threads::{count, each, part};
use std::ops::Range;

/// Rows of a task, at most.
const ROW_BLOCK: usize = 96;
/// Up to this many rows the panels are packed where they are used, once: reading B from memory is then what takes the time.
const FEW_ROWS: usize = 64;
/// Pairs that a task packs before it uses them: 512 KiB, which stay in the second-level cache.
const GROUP_LEN: usize = 128 * 1024;
/// Products with fewer multiply-adds than this stay on one thread.
const PARALLEL_FROM: usize = 64 * 1024;

/// A tap: how far behind its row's beginning A's values lie, and its number in B.
#[derive(Clone, Copy)]
pub(super) struct Tap {
    pub a: usize,
    pub b: usize,
}

/// Rows of A as `Lines` leaves them, each `depth` long for every tap.
pub(super) struct Rows<'a> {
    pub a: &'a [u16],
    pub depth: usize,
    pub taps: &'a [Tap],
    pub count: usize,
}

/// y = A B + bias; `place(row)` says where the row's values begin in A and where its results in `out`.
pub(super) fn by_panels<E: Element>(
    set: InstructionSet,
    rows: &Rows,
    b: &Source<E>,
    bias: Option<&[f32]>,
    out: &Shared<f32>,
    place: impl Fn(usize) -> (usize, usize) + Sync,
) {
    let panel_count = b.columns.div_ceil(WIDTH);
    if rows.count == 0 || panel_count == 0 {
        return;
    }
    let taps: Vec<usize> = rows.taps.iter().map(|tap| tap.a).collect();
    let panel_len = taps.len() * rows.depth / 2 * WIDTH;
    let pack = |panel: usize, out: &mut [u32]| b.pack(set, rows.taps.iter().map(|tap| tap.b), panel, rows.depth, out);
    let small = rows.count * taps.len() * rows.depth * b.columns < PARALLEL_FROM;
    let run = |first: usize, last: usize, panels: Range<usize>, pairs: &[u32], panel_stride: usize| {
        let (starts, out_rows): (Vec<usize>, Vec<usize>) = (first..last).map(&place).unzip();
        let a = rows.a;
        let reach = starts.iter().max().map_or(0, |start| start + taps.iter().max().map_or(0, |tap| tap + rows.depth));
        assert!(reach <= a.len() && pairs.len() >= panels.len().saturating_sub(1) * panel_stride + panel_len, "bf16 product: rows beyond A");
        let block = Block {
            a: a.as_ptr(),
            rows: &starts,
            taps: &taps,
            depth: rows.depth,
            b: pairs.as_ptr(),
            panel_stride,
            panels,
            columns: b.columns,
            bias,
            // SAFETY: only elements of this block's rows and panels are written through it.
            out: unsafe { out.at(0) },
            out_rows: &out_rows,
            add: false,
            past_caches: rows.count * b.columns >= PAST_CACHES_FROM,
        };
        // SAFETY: the assertion saw to A and B; `set` is one that this processor has; each block of y is one task's.
        unsafe { block.run(set) };
    };
    let each_or_one = |task_count: usize, task: &(dyn Fn(usize) + Sync)| if small { (0..task_count).for_each(task) } else { each(task_count, task) };
    if rows.count <= FEW_ROWS {
        let task_count = if small { 1 } else { (4 * count()).min(panel_count) };
        each_or_one(task_count, &|task| {
            let mine = part(panel_count, task_count, task);
            let group = (GROUP_LEN / panel_len.max(1)).clamp(1, mine.len().max(1));
            let mut scratch = Scratch::new(group * panel_len);
            let pairs = scratch.as_mut_of::<u32>();
            for first in mine.clone().step_by(group) {
                let panels = first..(first + group).min(mine.end);
                match rows.taps {
                    [tap] => b.pack_panels(set, tap.b, panels.clone(), rows.depth, pairs),
                    _ => panels.clone().for_each(|panel| pack(panel, &mut pairs[(panel - first) * panel_len..][..panel_len])),
                }
                run(0, rows.count, panels, pairs, panel_len);
            }
        });
        return;
    }
    let mut scratch = Scratch::new(panel_count * panel_len);
    let pairs = scratch.as_mut_of::<u32>();
    let packed = Shared::new(pairs);
    each_or_one(panel_count, &|panel| {
        // SAFETY: each task writes its own panel.
        pack(panel, unsafe { packed.slice(panel * panel_len, panel_len) });
    });
    let pairs = &*pairs;
    // How rows are shared out changes no element: as many whole tiles for each thread.
    let tile_rows = tile_rows(set);
    let tile_count = rows.count.div_ceil(tile_rows);
    let block_count = tile_count.div_ceil(ROW_BLOCK / tile_rows).next_multiple_of(count()).min(tile_count);
    let group_count = if small { 1 } else { (4 * count()).div_ceil(block_count).clamp(1, panel_count) };
    each_or_one(block_count * group_count, &|task| {
        let tiles = part(tile_count, block_count, task / group_count);
        let panels = part(panel_count, group_count, task % group_count);
        run(tiles.start * tile_rows, (tiles.end * tile_rows).min(rows.count), panels.clone(), &pairs[panels.start * panel_len..], panel_len);
    });
}
