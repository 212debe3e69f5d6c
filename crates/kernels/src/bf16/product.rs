//! Matrix products of numbers rounded to bf16.

use super::packing::{Element, Source, WIDTH, depth_step, in_f32, round_rows, transpose};
use super::rows::{Rows, Tap, by_panels};
use super::sums::{Place, sum};
use crate::instruction_set::InstructionSet;
use crate::memory::Shared;
use crate::product::{self, Sizes};
use crate::row_sums::row_sums;
use crate::small_weights;

/// y [rows, columns] = a [rows, depth] * b [depth, columns] + bias [columns]; `b_transposed`: b lies as [columns, depth].
pub fn multiply<E: Element>(a: &[f32], b: &[E], b_transposed: bool, bias: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    multiply_on(InstructionSet::current(), a, b, b_transposed, bias, sizes, y);
}

pub(super) fn multiply_on<E: Element>(set: InstructionSet, a: &[f32], b: &[E], b_transposed: bool, bias: Option<&[f32]>, sizes: Sizes, y: &mut [f32]) {
    let Sizes { rows, depth, columns } = sizes;
    let lengths = (a.len(), b.len(), y.len(), bias.map_or(columns, <[f32]>::len));
    let expected = (rows * depth, depth * columns, rows * columns, columns);
    assert!(lengths == expected, "bf16 multiply {sizes:?}: expected lengths of (a, b, y, bias) {expected:?}, found {lengths:?}");
    if !set.has_bf16_units() {
        let a = in_f32(set, a);
        return match E::as_bf16(b) {
            Some(b) => small_weights::multiply_on(set, a.as_slice(), b, b_transposed, bias, sizes, y),
            None => product::multiply_on(set, a.as_slice(), in_f32(set, b).as_slice(), b_transposed, bias, sizes, y),
        };
    }
    #[cfg(target_arch = "x86_64")]
    if let (true, Some(b)) = (set == InstructionSet::Avx512Bf16 && rows <= product::FEW_ROWS && !b_transposed, E::as_bf16(b)) {
        // SAFETY: the instruction set is one that this processor has.
        return unsafe { super::dot::few_rows(a, b, bias, sizes, y) };
    }
    let stride = depth.next_multiple_of(depth_step(set));
    let (depth_stride, column_stride) = if b_transposed { (1, depth) } else { (columns, 1) };
    let source = Source { values: b, tap_stride: 0, depth, depth_stride, columns, column_stride };
    let mut packed = round_rows(set, a, rows, depth, stride);
    let rows = Rows { a: packed.as_mut_of(), depth: stride, taps: &[Tap { a: 0, b: 0 }], count: rows };
    by_panels(set, &rows, &source, bias, &Shared::new(y), |row| (row * stride, row * columns));
}

/// y [rows, columns] = a [depth, rows]^T * b [depth, columns]. `column_sums` [columns], if asked for, becomes the sum of the rows of b, not rounded.
pub fn multiply_transposed(a: &[f32], b: &[f32], sizes: Sizes, y: &mut [f32], column_sums: Option<&mut [f32]>) {
    multiply_transposed_on(InstructionSet::current(), a, b, sizes, y, column_sums);
}

pub(super) fn multiply_transposed_on(set: InstructionSet, a: &[f32], b: &[f32], sizes: Sizes, y: &mut [f32], column_sums: Option<&mut [f32]>) {
    let Sizes { rows, depth, columns } = sizes;
    let lengths = (a.len(), b.len(), y.len(), column_sums.as_ref().map_or(columns, |sums| sums.len()));
    let expected = (rows * depth, depth * columns, rows * columns, columns);
    assert!(lengths == expected, "bf16 multiply_transposed {sizes:?}: expected lengths of (a, b, y, column_sums) {expected:?}, found {lengths:?}");
    if !set.has_bf16_units() {
        product::multiply_transposed_on(set, in_f32(set, a).as_slice(), in_f32(set, b).as_slice(), sizes, y, None);
        if let Some(sums) = column_sums {
            row_sums(set, b, 1, sums);
        }
        return;
    }
    let mut turned = transpose(set, a, depth, rows);
    let source = Source { values: b, tap_stride: 0, depth, depth_stride: columns, columns, column_stride: 1 };
    let place = |panel: usize| Place { start: panel * WIDTH, used: WIDTH.min(columns - panel * WIDTH) };
    sum(set, &mut turned, rows, columns.div_ceil(WIDTH), &Shared::new(y), columns, place, |panel, depths, pairs| {
        source.rows(depths).pack(set, std::iter::once(0), panel, pairs.len() / WIDTH * 2, pairs);
    });
    if let Some(sums) = column_sums {
        row_sums(set, b, 1, sums);
    }
}
