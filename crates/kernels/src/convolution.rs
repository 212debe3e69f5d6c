//! Two-dimensional convolution, channels last, without unfolding the picture: the product drivers are handed pointers to pixels.
//! 3x3 kernels of stride 1 take a quarter of the multiplications where there are pixels enough: see `winograd`.

use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::Shared;
use crate::product::{Packed, Rows, Source, by_columns, by_rows, by_rows_of_panels};
use crate::row_sums::row_sums;
use crate::small_weights::{Weight, with_wide};
use crate::threads::{each, part};
use crate::vector::Vector;
use crate::winograd::{self, Picture};
use std::ops::Range;

/// x [batch, height, width, input_channels], weight [kernel_size, kernel_size, input_channels, output_channels]
/// -> y [batch, output_height, output_width, output_channels].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolution {
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    pub input_channels: usize,
    pub output_channels: usize,
    pub kernel_size: usize,
    pub stride: usize,
    /// Rows of zeros above and columns left.
    pub before: usize,
    /// Rows of zeros below and columns right.
    pub after: usize,
}

impl Convolution {
    /// Panics if the kernel does not fit into the padded picture.
    pub fn output_height(&self) -> usize {
        self.output_size(self.height)
    }

    pub fn output_width(&self) -> usize {
        self.output_size(self.width)
    }

    fn output_size(&self, size: usize) -> usize {
        let padded = size + self.before + self.after;
        assert!(self.kernel_size > 0 && self.stride > 0 && padded >= self.kernel_size, "convolution {self:?}: the kernel does not fit");
        (padded - self.kernel_size) / self.stride + 1
    }

    /// The convolution of dy with the weights turned around that gives dx, padded so that it is as large as x; of 3x3 kernels with stride 1.
    pub(crate) fn turned(&self) -> Option<Self> {
        (self.stride == 1 && self.kernel_size == 3 && self.before <= 2 && self.after <= 2).then(|| Self {
            height: self.output_height(),
            width: self.output_width(),
            input_channels: self.output_channels,
            output_channels: self.input_channels,
            before: 2 - self.before,
            after: 2 - self.after,
            ..*self
        })
    }

    /// The weights as the forward pass multiplies with them.
    pub(crate) fn weights<'a, W>(&self, values: &'a [W]) -> Source<'a, W> {
        let (depth, columns) = (self.input_channels, self.output_channels);
        Source { values, taps: self.taps(), tap_stride: depth * columns, depth, depth_stride: columns, columns, column_stride: 1 }
    }

    /// The weights as dy is multiplied with them.
    pub(crate) fn weights_turned<'a>(&self, values: &'a [f32]) -> Source<'a> {
        let (depth, columns) = (self.output_channels, self.input_channels);
        Source { values, taps: self.taps(), tap_stride: depth * columns, depth, depth_stride: 1, columns, column_stride: depth }
    }

    pub(crate) fn taps(&self) -> usize {
        self.kernel_size * self.kernel_size
    }

    pub(crate) fn check_bias_gradient(&self, name: &str, dbias: Option<&[f32]>) {
        let (expected, found) = (self.output_channels, dbias.map(<[f32]>::len));
        assert!(found.is_none_or(|found| found == expected), "{name} {self:?}: expected {expected} biases, found {found:?}");
    }

    pub(crate) fn check(&self, name: &str, x: Option<usize>, weight: Option<usize>, y: Option<usize>) {
        let Self { batch, height, width, input_channels, output_channels, .. } = *self;
        let expected = [
            batch * height * width * input_channels,
            self.taps() * input_channels * output_channels,
            batch * self.output_height() * self.output_width() * output_channels,
        ];
        let found = [x, weight, y];
        let fits = found.iter().zip(expected).all(|(found, expected)| found.is_none_or(|found| found == expected));
        assert!(fits, "{name} {self:?}: expected lengths of [x, weight, y] {expected:?}, found {found:?}");
    }
}

/// What is added to a convolution.
#[derive(Clone, Copy, Debug, Default)]
pub struct Added<'a> {
    /// [output_channels]
    pub bias: Option<&'a [f32]>,
    /// [batch, output_channels], instead of the bias: each picture's own. A field of its own, so that a picture alone is rounded as among others.
    pub shifts: Option<&'a [f32]>,
    /// As long as y: the input of a residual block.
    pub residual: Option<&'a [f32]>,
}

impl<'a> Added<'a> {
    pub const NOTHING: Self = Self { bias: None, shifts: None, residual: None };

    pub fn bias(bias: &'a [f32]) -> Self {
        Self { bias: Some(bias), ..Self::NOTHING }
    }

    pub(crate) fn check(&self, name: &str, shape: &Convolution, y: usize) {
        let (batch, channels) = (shape.batch, shape.output_channels);
        if let Some(found) = self.bias.map(<[f32]>::len) {
            assert!(found == channels, "{name} {shape:?}: expected {channels} biases, found {found}");
        }
        if let Some(found) = self.shifts.map(<[f32]>::len) {
            assert!(found == batch * channels && self.bias.is_none(), "{name} {shape:?}: expected {batch} times {channels} shifts and no bias, found {found}");
        }
        if let Some(found) = self.residual.map(<[f32]>::len) {
            assert!(found == y, "{name} {shape:?}: expected a residual of {y}, found {found}");
        }
    }

    /// The bias, and the rest.
    pub(crate) fn split(self) -> (Option<&'a [f32]>, Self) {
        (self.bias, Self { bias: None, ..self })
    }

    /// What the channels of some picture have added.
    #[inline(always)]
    pub(crate) fn bias_of(&self, picture: usize, channels: usize) -> Option<&'a [f32]> {
        self.shifts.map(|shifts| &shifts[picture * channels..][..channels]).or(self.bias)
    }

    /// y += the shifts and the residual.
    pub(crate) fn add_to(&self, set: InstructionSet, shape: &Convolution, y: &mut [f32]) {
        if self.shifts.is_none() && self.residual.is_none() {
            return;
        }
        let channels = shape.output_channels;
        let (pixels, rows) = (shape.output_height() * shape.output_width(), y.len() / channels.max(1));
        let task_count = rows.div_ceil((ADDED_BY_TASK / channels.max(1)).max(1));
        let out = Shared::new(y);
        each(task_count, |task| {
            let rows = part(rows, task_count, task);
            // SAFETY: tasks have rows of their own.
            let y = unsafe { out.slice(rows.start * channels, rows.len() * channels) };
            set.run(AddRows { added: self, rows, pixels, channels, y });
        });
    }
}

/// Elements that one task adds to, at least.
const ADDED_BY_TASK: usize = 32 * 1024;

struct AddRows<'a> {
    added: &'a Added<'a>,
    /// Pixels, counted through all pictures.
    rows: Range<usize>,
    /// Of a picture.
    pixels: usize,
    channels: usize,
    y: &'a mut [f32],
}

impl Kernel for AddRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { added, rows, pixels, channels, y } = self;
        if let Some(residual) = added.residual {
            y.iter_mut().zip(&residual[rows.start * channels..]).for_each(|(y, value)| *y += value);
        }
        if added.shifts.is_some() {
            for (row, y) in rows.zip(y.chunks_exact_mut(channels.max(1))) {
                let bias = added.bias_of(row / pixels, channels).unwrap_or_default();
                y.iter_mut().zip(bias).for_each(|(y, value)| *y += value);
            }
        }
    }
}

/// y = x * weight + what is added.
pub fn forward<W: Weight>(x: &[f32], weight: &[W], added: Added, shape: Convolution, y: &mut [f32]) {
    forward_on(InstructionSet::current(), x, weight, added, shape, y);
}

pub(crate) fn forward_on<W: Weight>(set: InstructionSet, x: &[f32], weight: &[W], added: Added, shape: Convolution, y: &mut [f32]) {
    shape.check("convolution", Some(x.len()), Some(weight.len()), Some(y.len()));
    added.check("convolution", &shape, y.len());
    let Convolution { batch, input_channels, output_channels, .. } = shape;
    let rows = batch * shape.output_height() * shape.output_width();
    if winograd::applies(&shape, false) {
        return winograd::convolve(set, &Picture { x, rounded: false, shape, reversed: false }, &shape.weights(weight), added, y);
    }
    let (bias, rest) = added.split();
    let zeros = vec![0.0; input_channels];
    let fill = |block: Range<usize>, pointers: &mut [*const f32], offsets: &mut [usize]| {
        for (offset, row) in offsets.iter_mut().zip(block.clone()) {
            *offset = row * output_channels;
        }
        input_pointers(x, &zeros, shape, block, pointers);
    };
    with_wide(weight, |weight| by_rows(set, &shape.weights(weight), rows, bias, &Shared::new(y), true, fill));
    rest.add_to(set, &shape, y);
}

/// dx = what dy gives back through the weights.
pub fn input_gradient(weight: &[f32], dy: &[f32], shape: Convolution, dx: &mut [f32]) {
    input_gradient_on(InstructionSet::current(), weight, dy, shape, dx);
}

pub(crate) fn input_gradient_on(set: InstructionSet, weight: &[f32], dy: &[f32], shape: Convolution, dx: &mut [f32]) {
    shape.check("convolution's input gradient", Some(dx.len()), Some(weight.len()), Some(dy.len()));
    let Convolution { batch, height, width, input_channels, output_channels, kernel_size, stride, before, .. } = shape;
    let (output_height, output_width) = (shape.output_height(), shape.output_width());
    let source = shape.weights_turned(weight);
    if let Some(shape) = shape.turned().filter(|shape| winograd::applies(shape, false)) {
        return winograd::convolve(set, &Picture { x: dy, rounded: false, shape, reversed: true }, &source, Added::NOTHING, dx);
    }
    let packed = Packed::new(set, &source, batch * height * width, true);
    let zeros = vec![0.0; output_channels];
    let out = Shared::new(dx);
    // Pixels whose distance to the grid of strides is the same see the same taps; the others' products would all be with zero.
    for phase in 0..stride * stride {
        let (phase_y, phase_x) = (phase / stride, phase % stride);
        let (rows_y, rows_x) = (height.saturating_sub(phase_y).div_ceil(stride), width.saturating_sub(phase_x).div_ceil(stride));
        let seen = |position: usize, tap: usize| (position + before + kernel_size * stride - tap).is_multiple_of(stride);
        let taps: Vec<usize> = (0..shape.taps()).filter(|tap| seen(phase_y, tap / kernel_size) && seen(phase_x, tap % kernel_size)).collect();
        let fill = |block: Range<usize>, pointers: &mut [*const f32], offsets: &mut [usize]| {
            let len = block.len();
            for line in lines(block, rows_x) {
                let (b, y) = (line.index / rows_y, line.index % rows_y * stride + phase_y);
                let first = ((b * height + y) * width + line.first * stride + phase_x) * input_channels;
                for (k, offset) in offsets[line.place.clone()].iter_mut().enumerate() {
                    *offset = first + k * stride * input_channels;
                }
                for (t, tap) in taps.iter().enumerate() {
                    let pointers = &mut pointers[t * len..][line.place.clone()];
                    // Both distances are multiples of the stride: the tap was chosen so.
                    let row = (y + before) as isize - (tap / kernel_size) as isize;
                    let column = (line.first * stride + phase_x + before) as isize - (tap % kernel_size) as isize;
                    if row < 0 || row as usize >= output_height * stride {
                        pointers.fill(zeros.as_ptr());
                        continue;
                    }
                    let pixels = (b * output_height + row as usize / stride) * output_width;
                    let line = &dy[pixels * output_channels..][..output_width * output_channels];
                    line_pointers(line, &zeros, output_channels, column.div_euclid(stride as isize), 1, pointers);
                }
            }
        };
        by_rows_of_panels(set, &packed, &taps, batch * rows_y * rows_x, None, &out, true, fill);
    }
}

/// dweight = sum over all pixels of x outer dy; dbias [output_channels], if asked for, = sum over all pixels of dy.
pub fn weight_gradient(x: &[f32], dy: &[f32], shape: Convolution, dweight: &mut [f32], dbias: Option<&mut [f32]>) {
    weight_gradient_on(InstructionSet::current(), x, dy, shape, dweight, dbias);
}

pub(crate) fn weight_gradient_on(set: InstructionSet, x: &[f32], dy: &[f32], shape: Convolution, dweight: &mut [f32], dbias: Option<&mut [f32]>) {
    shape.check("convolution's weight gradient", Some(x.len()), Some(dweight.len()), Some(dy.len()));
    let Convolution { batch, input_channels, output_channels, .. } = shape;
    shape.check_bias_gradient("convolution's bias gradient", dbias.as_deref());
    if winograd::applies_to_weight_gradient(&shape) {
        return winograd::weight_gradient(set, x, dy, shape, dweight, dbias);
    }
    let pixels = batch * shape.output_height() * shape.output_width();
    let zeros = vec![0.0; input_channels];
    let fill = |run: Range<usize>, pointers: &mut [*const f32]| input_pointers(x, &zeros, shape, run, pointers);
    let dy = Rows { values: dy, stride: output_channels };
    by_columns(set, shape.taps(), input_channels, pixels, dy, output_channels, dweight, dbias, false, true, fill);
}

/// dshifts [batch, output_channels] = sum over each picture's pixels of dy (see [`Added::shifts`]).
pub fn shift_gradient(dy: &[f32], shape: Convolution, dshifts: &mut [f32]) {
    shape.check("convolution's shift gradient", None, None, Some(dy.len()));
    let (expected, found) = (shape.batch * shape.output_channels, dshifts.len());
    assert!(found == expected, "convolution's shift gradient {shape:?}: expected {expected} shifts, found {found}");
    row_sums(InstructionSet::current(), dy, shape.batch, dshifts);
}

/// For a run of output pixels, where each tap's input pixel lies (`zeros` beyond the border): pointers [taps][run].
fn input_pointers(x: &[f32], zeros: &[f32], shape: Convolution, run: Range<usize>, pointers: &mut [*const f32]) {
    let Convolution { height, width, input_channels, kernel_size, stride, before, .. } = shape;
    let (output_height, output_width) = (shape.output_height(), shape.output_width());
    let len = run.len();
    for line in lines(run, output_width) {
        let (b, top) = (line.index / output_height, line.index % output_height * stride);
        for tap in 0..shape.taps() {
            let pointers = &mut pointers[tap * len..][line.place.clone()];
            let row = (top + tap / kernel_size).wrapping_sub(before); // below zero: a number beyond any picture
            if row >= height {
                pointers.fill(zeros.as_ptr());
                continue;
            }
            let pixels = &x[(b * height + row) * width * input_channels..][..width * input_channels];
            let column = (line.first * stride + tap % kernel_size) as isize - before as isize;
            line_pointers(pixels, zeros, input_channels, column, stride, pointers);
        }
    }
}

/// A stretch of pixels of one line of a picture.
struct Line {
    /// Which line, counted through all pictures.
    index: usize,
    /// Column of its first pixel.
    first: usize,
    /// Where its pixels stand in the run that was cut up.
    place: Range<usize>,
}

/// Cuts a run of pixels into lines `width` long.
fn lines(run: Range<usize>, width: usize) -> impl Iterator<Item = Line> {
    let mut next = run.start;
    std::iter::from_fn(move || {
        let start = next;
        next = run.end.min((start / width.max(1) + 1) * width);
        (start < run.end).then(|| Line { index: start / width, first: start % width, place: start - run.start..next - run.start })
    })
}

/// Pointers to pixels `first`, `first` + step, ... of a line, to `zeros` where they lie beyond its ends.
fn line_pointers(line: &[f32], zeros: &[f32], channels: usize, first: isize, step: usize, pointers: &mut [*const f32]) {
    let width = (line.len() / channels) as isize;
    let inside_from = usize::try_from(-first).map_or(0, |missing| missing.div_ceil(step)).min(pointers.len());
    let inside_to = usize::try_from(width - first).map_or(0, |left| left.div_ceil(step)).clamp(inside_from, pointers.len());
    let (head, rest) = pointers.split_at_mut(inside_from);
    let (middle, tail) = rest.split_at_mut(inside_to - inside_from);
    head.fill(zeros.as_ptr());
    tail.fill(zeros.as_ptr());
    let start = line.as_ptr().wrapping_offset((first + (inside_from * step) as isize) * channels as isize);
    for (k, pointer) in middle.iter_mut().enumerate() {
        *pointer = start.wrapping_add(k * step * channels);
    }
}
