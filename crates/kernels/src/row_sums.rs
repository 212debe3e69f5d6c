//! Sums over rows: gradients of what is added to every row.

use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{Scratch, Shared};
use crate::threads::each;
use crate::vector::Vector;

/// Rows that are added one by one; the parts' sums are then added in order.
const PART_ROWS: usize = 1024;

/// sums [groups, columns] = the sum of each group's rows of values [groups, rows, columns], in parts fixed by the sizes.
pub(crate) fn row_sums(set: InstructionSet, values: &[f32], groups: usize, sums: &mut [f32]) {
    let columns = sums.len() / groups.max(1);
    if columns == 0 {
        return;
    }
    let rows = values.len() / columns / groups;
    let parts_of_group = rows.div_ceil(PART_ROWS);
    let mut scratch = Scratch::new(groups * parts_of_group * columns);
    let parts = scratch.as_mut_slice();
    let shared = Shared::new(parts);
    each(groups * parts_of_group, |task| {
        let (group, part) = (task / parts_of_group, task % parts_of_group);
        let rows = &values[group * rows * columns..][..rows * columns][part * PART_ROWS * columns..];
        // SAFETY: each task has its own part.
        let sums = unsafe { shared.slice(task * columns, columns) };
        set.run(SumOfPart { rows, sums });
    });
    sums.fill(0.0);
    for (index, part) in parts.chunks_exact(columns).enumerate() {
        sums[index / parts_of_group * columns..].iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
    }
}

/// sums = the sum of the first `PART_ROWS` rows
struct SumOfPart<'a> {
    rows: &'a [f32],
    sums: &'a mut [f32],
}

impl Kernel for SumOfPart<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        self.sums.fill(0.0);
        for row in self.rows.chunks_exact(self.sums.len()).take(PART_ROWS) {
            self.sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
    }
}
