//! The gradient for the weights where one side has few channels, as the first and the last layer of a network have: panels of single taps would be mostly empty.
//! So each pixel of the other side gets a row of neighbours, which are all taps at once.

use super::convolution::Bordered;
use super::packing::{WIDTH, pack_rows, transpose};
use super::sums::{Place, sum};
use crate::convolution::Convolution;
use crate::instruction_set::InstructionSet;
use crate::memory::{Scratch, Shared};
use crate::threads::each;
use half::bf16;

/// The side that has few channels.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Side {
    Input,
    Output,
}

/// The side whose neighbours fit into two panels, the smaller one if both do.
pub(super) fn side(shape: &Convolution) -> Option<Side> {
    let &Convolution { input_channels, output_channels, kernel_size, stride, before, after, .. } = shape;
    let fits = |channels: usize| shape.taps() > 1 && shape.taps() * channels <= 2 * WIDTH;
    // The pixels of dy that see a pixel of x lie in a square only where none is left out.
    let seen_in_squares = stride == 1 && before.max(after) < kernel_size;
    match (fits(input_channels), fits(output_channels) && seen_in_squares) {
        (true, true) if output_channels < input_channels => Some(Side::Output),
        (true, _) => Some(Side::Input),
        (false, true) => Some(Side::Output),
        (false, false) => None,
    }
}

pub(super) fn weight_gradient(set: InstructionSet, side: Side, x: &[f32], dy: &[f32], shape: Convolution, dweight: &mut [f32]) {
    let Convolution { batch, height, width, input_channels, output_channels, before, after, .. } = shape;
    let (output_height, output_width) = (shape.output_height(), shape.output_width());
    let last = shape.kernel_size - 1; // a pixel of x sees dy through the taps turned around
    let (few, many) = match side {
        Side::Input => {
            let picture = Bordered::new(set, x, [batch, height, width, input_channels], [before; 2], [after; 2]);
            let lines = Lines { shape: &shape, rows: output_height, columns: output_width, step: shape.stride };
            (lines.neighbours(picture, input_channels), dy)
        }
        Side::Output => {
            let size = [batch, output_height, output_width, output_channels];
            let picture = Bordered::new(set, dy, size, [last - before; 2], [last - after; 2]);
            let lines = Lines { shape: &shape, rows: height, columns: width, step: 1 };
            (lines.neighbours(picture, output_channels), x)
        }
    };
    let Neighbours { mut scratch, pixels, row_len } = few;
    let rows = &*scratch.as_mut_of::<bf16>();
    let many_channels = if side == Side::Input { output_channels } else { input_channels };
    let mut gradients = Scratch::new(dweight.len());
    let gradients = gradients.as_mut_slice();
    let place = |panel: usize| Place { start: panel * WIDTH, used: WIDTH.min(row_len - panel * WIDTH) };
    let mut many = transpose(set, many, pixels, many_channels);
    sum(set, &mut many, many_channels, row_len.div_ceil(WIDTH), &Shared::new(gradients), row_len, place, |panel, depths, pairs| {
        let Place { start, used } = place(panel);
        let row = |pixel: usize| if pixel < pixels { &rows[pixel * row_len + start..][..used] } else { &[] };
        pack_rows(set, depths.start, row, pairs);
    });
    for (tap, out) in dweight.chunks_exact_mut((input_channels * output_channels).max(1)).enumerate() {
        for (i, to) in out.iter_mut().enumerate() {
            let (c, o) = (i / output_channels, i % output_channels);
            *to = match side {
                Side::Input => gradients[o * row_len + tap * input_channels + c],
                Side::Output => gradients[c * row_len + (shape.taps() - 1 - tap) * output_channels + o],
            };
        }
    }
}

/// The pixels of the side with many channels, `step` apart on the other side.
struct Lines<'a> {
    shape: &'a Convolution,
    rows: usize,
    columns: usize,
    step: usize,
}

/// A row for each pixel: [taps][channels].
struct Neighbours {
    scratch: Scratch,
    pixels: usize,
    row_len: usize,
}

impl Lines<'_> {
    fn neighbours(&self, mut picture: Bordered, channels: usize) -> Neighbours {
        let &Self { shape: &Convolution { batch, kernel_size, .. }, rows, columns, step } = self;
        let (pixels, row_len) = (batch * rows * columns, self.shape.taps() * channels);
        let mut scratch = Scratch::new((pixels * row_len).div_ceil(2));
        let out = Shared::new(scratch.as_mut_of::<bf16>());
        let mut values = std::mem::replace(&mut picture.scratch, Scratch::new(0));
        let values = &*values.as_mut_of::<bf16>();
        each(batch * rows, |line| {
            // SAFETY: each line is one task's.
            let out = unsafe { out.slice(line * columns * row_len, columns * row_len) };
            for (column, row) in out.chunks_exact_mut(row_len.max(1)).enumerate() {
                for (tap, to) in row.chunks_exact_mut(channels.max(1)).enumerate() {
                    let from = picture.at(line / rows, line % rows * step + tap / kernel_size, column * step + tap % kernel_size);
                    to.copy_from_slice(&values[from..from + channels]);
                }
            }
        });
        Neighbours { scratch, pixels, row_len }
    }
}
