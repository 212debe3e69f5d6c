//! Two-dimensional convolution of numbers rounded to bf16, channels last.
//!
//! The picture is rounded once into a copy with its border of zeros, so that every tap of every pixel lies a constant distance from the pixel.
//!
//! AVX512_BF16 multiplies at most twice as fast as f32, Winograd's filtering needs a quarter of the products: where that applies, its kernels are taken, which
//! make integers of 16 bits of the values where the processor multiplies pairs of these as fast.

use super::few_channels;
use super::packing::{Element, Lines, Source, WIDTH, depth_step, in_f32, pack_rows, transpose};
use super::rows::{Rows, Tap, by_panels};
use super::sums::{Place, sum};
use crate::convolution::{self as plain, Added, Convolution};
use crate::instruction_set::InstructionSet;
use crate::memory::{Scratch, Shared};
use crate::row_sums::row_sums;
use crate::threads::each;
use crate::winograd::{self, Picture};
use half::bf16;

/// y = x * weight + what is added, which is not rounded.
pub fn forward<E: Element>(x: &[f32], weight: &[E], added: Added, shape: Convolution, y: &mut [f32]) {
    forward_on(InstructionSet::current(), x, weight, added, shape, y);
}

/// dx = what dy gives back through the weights.
pub fn input_gradient(weight: &[f32], dy: &[f32], shape: Convolution, dx: &mut [f32]) {
    input_gradient_on(InstructionSet::current(), weight, dy, shape, dx);
}

/// dweight = sum over all pixels of x outer dy; dbias, if asked for, = sum over all pixels of dy, not rounded.
pub fn weight_gradient(x: &[f32], dy: &[f32], shape: Convolution, dweight: &mut [f32], dbias: Option<&mut [f32]>) {
    weight_gradient_on(InstructionSet::current(), x, dy, shape, dweight, dbias);
}

/// Whether units for bf16 beat the kernels of f32, which may need a quarter of the products.
fn units_are_faster(set: InstructionSet, filtered: bool) -> bool {
    set.has_bf16_units() && !(filtered && set == InstructionSet::Avx512Bf16)
}

/// A picture rounded to bf16 inside its border of zeros.
pub(super) struct Bordered {
    pub scratch: Scratch,
    height: usize,
    width: usize,
    /// Of a pixel: its channels and zeros behind.
    stride: usize,
}

impl Bordered {
    /// `before` and `after`: rows of zeros above and below, columns left and right.
    pub fn new(set: InstructionSet, values: &[f32], [batch, height, width, channels]: [usize; 4], before: [usize; 2], after: [usize; 2]) -> Self {
        let stride = channels.next_multiple_of(depth_step(set));
        let (padded_height, padded_width) = (height + before[0] + after[0], width + before[1] + after[1]);
        let lines = Lines { depth: channels, stride, lead: before[1], run: width, line_rows: padded_width };
        let scratch = lines.round(set, values, batch * padded_height, |line| {
            let row = (line % padded_height).checked_sub(before[0]).filter(|row| *row < height)?;
            Some((line / padded_height * height + row) * width)
        });
        Self { scratch, height: padded_height, width: padded_width, stride }
    }

    /// Where a pixel of the bordered picture begins.
    pub fn at(&self, batch: usize, row: usize, column: usize) -> usize {
        ((batch * self.height + row) * self.width + column) * self.stride
    }
}

pub(super) fn forward_on<E: Element>(set: InstructionSet, x: &[f32], weight: &[E], added: Added, shape: Convolution, y: &mut [f32]) {
    shape.check("bf16 convolution", Some(x.len()), Some(weight.len()), Some(y.len()));
    let Convolution { batch, height, width, input_channels, output_channels, kernel_size, stride, before, after } = shape;
    added.check("bf16 convolution", &shape, y.len());
    let filtered = winograd::applies(&shape, set.multiplies_pairs_of_integers());
    if !units_are_faster(set, filtered) {
        let picture = Picture { x, rounded: true, shape, reversed: false };
        if filtered && set.multiplies_pairs_of_integers() {
            return winograd::convolve(set, &picture, &shape.weights(weight), added, y);
        }
        let weight = in_f32(set, weight);
        if filtered {
            return winograd::convolve(set, &picture, &shape.weights(weight.as_slice()), added, y);
        }
        return plain::forward_on(set, in_f32(set, x).as_slice(), weight.as_slice(), added, shape, y);
    }
    let (output_height, output_width) = (shape.output_height(), shape.output_width());
    let mut picture = Bordered::new(set, x, [batch, height, width, input_channels], [before; 2], [after; 2]);
    let taps: Vec<Tap> = (0..shape.taps()).map(|tap| Tap { a: picture.at(0, tap / kernel_size, tap % kernel_size), b: tap }).collect();
    let source = Source {
        values: weight,
        tap_stride: input_channels * output_channels,
        depth: input_channels,
        depth_stride: output_channels,
        columns: output_channels,
        column_stride: 1,
    };
    let mut scratch = std::mem::replace(&mut picture.scratch, Scratch::new(0));
    let rows = Rows { a: scratch.as_mut_of(), depth: picture.stride, taps: &taps, count: batch * output_height * output_width };
    let (bias, rest) = added.split();
    by_panels(set, &rows, &source, bias, &Shared::new(y), |row| {
        let (line, column) = (row / output_width, row % output_width);
        (picture.at(line / output_height, line % output_height * stride, column * stride), row * output_channels)
    });
    rest.add_to(set, &shape, y);
}

pub(super) fn input_gradient_on(set: InstructionSet, weight: &[f32], dy: &[f32], shape: Convolution, dx: &mut [f32]) {
    shape.check("bf16 convolution's input gradient", Some(dx.len()), Some(weight.len()), Some(dy.len()));
    let Convolution { batch, height, width, input_channels, output_channels, kernel_size, stride, before, .. } = shape;
    let filtered = shape.turned().filter(|shape| winograd::applies(shape, set.multiplies_pairs_of_integers()));
    if !units_are_faster(set, filtered.is_some()) {
        let convolve = |turned: Convolution, weight: &[f32], dx: &mut [f32]| {
            let picture = Picture { x: dy, rounded: true, shape: turned, reversed: true };
            winograd::convolve(set, &picture, &shape.weights_turned(weight), Added::NOTHING, dx);
        };
        if let Some(turned) = filtered.filter(|_| set.multiplies_pairs_of_integers()) {
            return convolve(turned, weight, dx);
        }
        let weight = in_f32(set, weight);
        if let Some(turned) = filtered {
            return convolve(turned, weight.as_slice(), dx);
        }
        return plain::input_gradient_on(set, weight.as_slice(), in_f32(set, dy).as_slice(), shape, dx);
    }
    let output_size = [shape.output_height(), shape.output_width()];
    // dx at y sees dy at (y + before - tap) / stride, which reaches beyond both ends.
    let lead = (kernel_size - 1).saturating_sub(before).div_ceil(stride);
    let trail = [0, 1].map(|axis| (([height, width][axis] + before).saturating_sub(1) / stride + 1).saturating_sub(output_size[axis]));
    let mut picture = Bordered::new(set, dy, [batch, output_size[0], output_size[1], output_channels], [lead; 2], trail);
    let mut scratch = std::mem::replace(&mut picture.scratch, Scratch::new(0));
    let a = &*scratch.as_mut_of();
    let source = Source {
        values: weight,
        tap_stride: input_channels * output_channels,
        depth: output_channels,
        depth_stride: 1,
        columns: input_channels,
        column_stride: output_channels,
    };
    let out = Shared::new(dx);
    // Pixels whose distance to the grid of strides is the same see the same taps; the others' products would all be with zero.
    for phase in 0..stride * stride {
        let phases = [phase / stride, phase % stride];
        let [rows_y, rows_x] = [0, 1].map(|axis| [height, width][axis].saturating_sub(phases[axis]).div_ceil(stride));
        // How far the tap reaches from the phase's first pixel, in rows (columns) of the bordered dy.
        let reach = |phase: usize, tap: usize| {
            let distance = phase + before + lead * stride;
            (distance >= tap && (distance - tap).is_multiple_of(stride)).then(|| (distance - tap) / stride)
        };
        let taps: Vec<Tap> = (0..shape.taps())
            .filter_map(|tap| Some(Tap { a: picture.at(0, reach(phases[0], tap / kernel_size)?, reach(phases[1], tap % kernel_size)?), b: tap }))
            .collect();
        let rows = Rows { a, depth: picture.stride, taps: &taps, count: batch * rows_y * rows_x };
        by_panels(set, &rows, &source, None, &out, |row| {
            let (line, column) = (row / rows_x, row % rows_x);
            let (b, line) = (line / rows_y, line % rows_y);
            let pixel = (b * height + line * stride + phases[0]) * width + column * stride + phases[1];
            (picture.at(b, line, column), pixel * input_channels)
        });
    }
}

pub(super) fn weight_gradient_on(set: InstructionSet, x: &[f32], dy: &[f32], shape: Convolution, dweight: &mut [f32], dbias: Option<&mut [f32]>) {
    shape.check("bf16 convolution's weight gradient", Some(x.len()), Some(dweight.len()), Some(dy.len()));
    let Convolution { batch, height, width, input_channels, output_channels, kernel_size, stride, before, after } = shape;
    shape.check_bias_gradient("bf16 convolution's bias gradient", dbias.as_deref());
    let filtered = filters_weight_gradient(set, &shape);
    if !units_are_faster(set, filtered) {
        #[cfg(target_arch = "x86_64")]
        if filtered && set.multiplies_pairs_of_integers() {
            winograd::weight_gradient_in_fixed_point(x, dy, shape, dweight);
            if let Some(dbias) = dbias {
                row_sums(set, dy, 1, dbias);
            }
            return;
        }
        plain::weight_gradient_on(set, in_f32(set, x).as_slice(), in_f32(set, dy).as_slice(), shape, dweight, None);
        if let Some(dbias) = dbias {
            row_sums(set, dy, 1, dbias);
        }
        return;
    }
    if let Some(dbias) = dbias {
        row_sums(set, dy, 1, dbias);
    }
    if let Some(side) = few_channels::side(&shape) {
        return few_channels::weight_gradient(set, side, x, dy, shape, dweight);
    }
    let (output_height, output_width) = (shape.output_height(), shape.output_width());
    let pixels = batch * output_height * output_width;
    let mut picture = Bordered::new(set, x, [batch, height, width, input_channels], [before; 2], [after; 2]);
    let mut scratch = std::mem::replace(&mut picture.scratch, Scratch::new(0));
    let values = &*scratch.as_mut_of::<bf16>();
    let mut turned = transpose(set, dy, pixels, output_channels);
    // dy is the transposed side, once for all taps; so each tap's gradient comes out as [output, input].
    let panels_per_tap = input_channels.div_ceil(WIDTH);
    let tap_len = input_channels * output_channels;
    let mut gradients = Scratch::new(dweight.len());
    let gradients = gradients.as_mut_slice();
    let place = |panel: usize| {
        let first = panel % panels_per_tap * WIDTH;
        Place { start: panel / panels_per_tap * tap_len + first, used: WIDTH.min(input_channels - first) }
    };
    sum(set, &mut turned, output_channels, shape.taps() * panels_per_tap, &Shared::new(gradients), input_channels, place, |panel, depths, pairs| {
        let (tap, first) = (panel / panels_per_tap, panel % panels_per_tap * WIDTH);
        let used = WIDTH.min(input_channels - first);
        let from = picture.at(0, tap / kernel_size, tap % kernel_size) + first;
        let row = |pixel: usize| {
            let (line, column) = (pixel / output_width, pixel % output_width);
            let start = picture.at(line / output_height, line % output_height * stride, column * stride) + from;
            if pixel < pixels { &values[start..start + used] } else { &[] }
        };
        pack_rows(set, depths.start, row, pairs);
    });
    let out = Shared::new(dweight);
    each(shape.taps(), |tap| {
        // SAFETY: each tap is one task's.
        let out = unsafe { out.slice(tap * tap_len, tap_len) };
        let from = &gradients[tap * tap_len..][..tap_len];
        for (c, row) in out.chunks_exact_mut(output_channels.max(1)).enumerate() {
            row.iter_mut().enumerate().for_each(|(o, to)| *to = from[o * input_channels + c]);
        }
    });
}

/// Whether Winograd's filtering is taken for a weight gradient.
pub(super) fn filters_weight_gradient(set: InstructionSet, shape: &Convolution) -> bool {
    winograd::applies_to_weight_gradient(shape) && !(set.has_bf16_units() && few_channels::side(shape).is_some())
}
