//! Matrix products on packed panels; the same two drivers carry convolution and attention.
//!
//! `by_rows` computes y = A B where rows of A are found through pointers, one per tap (a plain product has one tap, a convolution
//! kernel * kernel), so that no picture is unfolded in memory. Taps and depth are cut into slices by the sizes alone. Each element of y is the sum of its
//! slices in rising order, each slice a chain of fused multiply-adds, the first one starting from the bias: the other rows and the threads cannot change it.
//! `few_rows` computes the same where A has a few rows only, bit for bit.
//! `by_columns` computes A^T B, a sum over rows: weight gradients. Rows are cut into parts fixed by the shape; parts are added in order.

mod by_columns;
mod by_rows;
mod few_rows;
mod packing;

use crate::instruction_set::InstructionSet;
use crate::memory::Shared;
use crate::threads::each;
use std::ops::Range;

pub(crate) use by_columns::by_columns;
pub(crate) use by_rows::{by_rows, by_rows_of_panels};
pub(crate) use few_rows::{FEW_ROWS, few_rows};
#[cfg(target_arch = "x86_64")]
pub(crate) use few_rows::{STEP, Share, in_slices, rows_ahead};
pub(crate) use packing::{Packed, Rows, Source, pack_panel, pack_slice};

/// Depth of a panel of B that stays in the first-level cache while rows pass by: 256 * 16 floats are 16 KiB.
const DEPTH_BLOCK: usize = 256;
/// Most depth of a slice of `by_rows` and `few_rows`. Slices of few rows are read by one thread each, whole rows of B one behind the other: short enough that
/// common depths give every thread as many.
pub(crate) const SLICE_DEPTH: usize = 128;
/// Products with fewer multiply-adds than this stay on one thread: handing over would cost more.
const PARALLEL_FROM: usize = 64 * 1024;

/// Sizes of y [rows, columns] = A [rows, depth] * B [depth, columns].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub rows: usize,
    pub depth: usize,
    pub columns: usize,
}

/// y [rows, columns] = a [rows, depth] * b [depth, columns] + bias [columns]; `b_transposed`: b lies as [columns, depth].
pub fn multiply(a: &[f32], b: &[f32], b_transposed: bool, bias: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    multiply_batch(a, b, b_transposed, bias, sizes, 1, y);
}

pub(crate) fn multiply_on(set: InstructionSet, a: &[f32], b: &[f32], b_transposed: bool, bias: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    multiply_batch_on(set, a, b, b_transposed, bias, sizes, 1, y);
}

/// `multiply` for `batch` products whose matrices lie one behind the other; the bias is the same for all.
pub fn multiply_batch(a: &[f32], b: &[f32], b_transposed: bool, bias: Option<&[f32]>, sizes: Sizes, batch: usize, y: &mut [f32]) {
    multiply_batch_on(InstructionSet::current(), a, b, b_transposed, bias, sizes, batch, y);
}

fn multiply_batch_on(set: InstructionSet, a: &[f32], b: &[f32], b_transposed: bool, bias: Option<&[f32]>, sizes: Sizes, batch: usize, y: &mut [f32]) {
    let Sizes { rows, depth, columns } = sizes;
    let lengths = (a.len(), b.len(), y.len(), bias.map_or(columns, <[f32]>::len));
    let expected = (batch * rows * depth, batch * depth * columns, batch * rows * columns, columns);
    assert!(lengths == expected, "multiply {sizes:?} * {batch}: expected lengths of (a, b, y, bias) {expected:?}, found {lengths:?}");
    if y.is_empty() {
        return;
    }
    let out = Shared::new(y);
    let outer = batch > 1 && batch * rows * depth * columns >= PARALLEL_FROM;
    let one = |index: usize| {
        let a = &a[index * rows * depth..][..rows * depth];
        let b = &b[index * depth * columns..][..depth * columns];
        if rows <= FEW_ROWS && !b_transposed {
            return few_rows(set, a, b, bias, None, sizes, &out, index * rows * columns, !outer);
        }
        let source = if b_transposed { Source::transposed(b, depth, columns) } else { Source::plain(b, depth, columns) };
        let fill = |block: Range<usize>, pointers: &mut [*const f32], offsets: &mut [usize]| {
            for (i, row) in block.enumerate() {
                pointers[i] = a[row * depth..].as_ptr();
                offsets[i] = (index * rows + row) * columns;
            }
        };
        by_rows(set, &source, rows, bias, &out, !outer, fill);
    };
    if outer { each(batch, one) } else { (0..batch).for_each(one) }
}

/// y [rows, columns] = a [depth, rows]^T * b [depth, columns]: a sum over the depth, cut into parts fixed by the sizes.
/// `column_sums` [columns], if asked for, becomes the sum of the rows of b.
pub fn multiply_transposed(a: &[f32], b: &[f32], sizes: Sizes, y: &mut [f32], column_sums: Option<&mut [f32]>) {
    multiply_transposed_on(InstructionSet::current(), a, b, sizes, y, column_sums);
}

pub(crate) fn multiply_transposed_on(set: InstructionSet, a: &[f32], b: &[f32], sizes: Sizes, y: &mut [f32], column_sums: Option<&mut [f32]>) {
    let Sizes { rows, depth, columns } = sizes;
    let lengths = (a.len(), b.len(), y.len(), column_sums.as_ref().map_or(columns, |sums| sums.len()));
    let expected = (rows * depth, depth * columns, rows * columns, columns);
    assert!(lengths == expected, "multiply_transposed {sizes:?}: expected lengths of (a, b, y, column_sums) {expected:?}, found {lengths:?}");
    let fill = |block: Range<usize>, pointers: &mut [*const f32]| {
        for (pointer, k) in pointers.iter_mut().zip(block) {
            *pointer = a[k * rows..].as_ptr();
        }
    };
    by_columns(set, 1, rows, depth, Rows { values: b, stride: columns }, columns, y, column_sums, false, true, fill);
}

/// `multiply_transposed` for `batch` products whose matrices lie one behind the other.
pub fn multiply_transposed_batch(a: &[f32], b: &[f32], sizes: Sizes, batch: usize, y: &mut [f32]) {
    let Sizes { rows, depth, columns } = sizes;
    let lengths = (a.len(), b.len(), y.len());
    let expected = (batch * rows * depth, batch * depth * columns, batch * rows * columns);
    assert!(lengths == expected, "multiply_transposed {sizes:?} * {batch}: expected lengths of (a, b, y) {expected:?}, found {lengths:?}");
    let out = Shared::new(y);
    let set = InstructionSet::current();
    let outer = batch > 1 && batch * rows * depth * columns >= PARALLEL_FROM;
    let one = |index: usize| {
        let a = &a[index * rows * depth..][..rows * depth];
        // SAFETY: each product writes its own part of y.
        let y = unsafe { out.slice(index * rows * columns, rows * columns) };
        let fill = |block: Range<usize>, pointers: &mut [*const f32]| {
            for (pointer, k) in pointers.iter_mut().zip(block) {
                *pointer = a[k * rows..].as_ptr();
            }
        };
        let b = Rows { values: &b[index * depth * columns..][..depth * columns], stride: columns };
        by_columns(set, 1, rows, depth, b, columns, y, None, false, !outer, fill);
    };
    if outer { each(batch, one) } else { (0..batch).for_each(one) }
}
