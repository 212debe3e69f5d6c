//! Two-dimensional convolution, channels last, without unfolding the picture: the product drivers are handed pointers to pixels.

use crate::instruction_set::InstructionSet;
use crate::memory::Shared;
use crate::product::{Packed, Rows, Source, by_columns, by_rows};
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

    fn taps(&self) -> usize {
        self.kernel_size * self.kernel_size
    }

    fn check(&self, name: &str, x: Option<usize>, weight: Option<usize>, y: Option<usize>) {
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

/// y = x * weight + bias.
pub fn forward(x: &[f32], weight: &[f32], bias: Option<&[f32]>, shape: Convolution, y: &mut [f32]) {
    shape.check("convolution", Some(x.len()), Some(weight.len()), Some(y.len()));
    let Convolution { batch, input_channels, output_channels, .. } = shape;
    if let Some(bias) = bias {
        assert!(bias.len() == output_channels, "convolution {shape:?}: expected {output_channels} biases, found {}", bias.len());
    }
    let set = InstructionSet::current();
    let rows = batch * shape.output_height() * shape.output_width();
    let source = Source {
        values: weight,
        taps: shape.taps(),
        tap_stride: input_channels * output_channels,
        depth: input_channels,
        depth_stride: output_channels,
        columns: output_channels,
        column_stride: 1,
    };
    let packed = Packed::new(set, &source, rows, true);
    let taps: Vec<usize> = (0..shape.taps()).collect();
    let zeros = vec![0.0; input_channels];
    let fill = |block: Range<usize>, pointers: &mut [*const f32], offsets: &mut [usize]| {
        for (offset, row) in offsets.iter_mut().zip(block.clone()) {
            *offset = row * output_channels;
        }
        input_pointers(x, &zeros, shape, block, pointers);
    };
    by_rows(set, &packed, &taps, rows, bias, &Shared::new(y), true, fill);
}

/// dx = what dy gives back through the weights.
pub fn input_gradient(weight: &[f32], dy: &[f32], shape: Convolution, dx: &mut [f32]) {
    shape.check("convolution's input gradient", Some(dx.len()), Some(weight.len()), Some(dy.len()));
    let Convolution { batch, height, width, input_channels, output_channels, kernel_size, stride, before, .. } = shape;
    let (output_height, output_width) = (shape.output_height(), shape.output_width());
    let set = InstructionSet::current();
    let source = Source {
        values: weight,
        taps: shape.taps(),
        tap_stride: input_channels * output_channels,
        depth: output_channels,
        depth_stride: 1,
        columns: input_channels,
        column_stride: output_channels,
    };
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
            for (i, row) in block.enumerate() {
                let (b, y, x) = (row / (rows_y * rows_x), row / rows_x % rows_y * stride + phase_y, row % rows_x * stride + phase_x);
                offsets[i] = ((b * height + y) * width + x) * input_channels;
                for (t, tap) in taps.iter().enumerate() {
                    // Wrapping below zero gives a number beyond any picture.
                    let v = (y + before).wrapping_sub(tap / kernel_size);
                    let h = (x + before).wrapping_sub(tap % kernel_size);
                    let inside = v < output_height * stride && h < output_width * stride;
                    pointers[t * len + i] = match inside {
                        true => dy[((b * output_height + v / stride) * output_width + h / stride) * output_channels..].as_ptr(),
                        false => zeros.as_ptr(),
                    };
                }
            }
        };
        by_rows(set, &packed, &taps, batch * rows_y * rows_x, None, &out, true, fill);
    }
}

/// dweight = sum over all pixels of x outer dy; dbias, if asked for, = sum over all pixels of dy.
pub fn weight_gradient(x: &[f32], dy: &[f32], shape: Convolution, dweight: &mut [f32], dbias: Option<&mut [f32]>) {
    shape.check("convolution's weight gradient", Some(x.len()), Some(dweight.len()), Some(dy.len()));
    let Convolution { batch, input_channels, output_channels, .. } = shape;
    if let Some(dbias) = &dbias {
        assert!(dbias.len() == output_channels, "convolution {shape:?}: expected {output_channels} bias gradients, found {}", dbias.len());
    }
    let pixels = batch * shape.output_height() * shape.output_width();
    let zeros = vec![0.0; input_channels];
    let fill = |run: Range<usize>, pointers: &mut [*const f32]| input_pointers(x, &zeros, shape, run, pointers);
    let dy = Rows { values: dy, stride: output_channels };
    by_columns(InstructionSet::current(), shape.taps(), input_channels, pixels, dy, output_channels, dweight, dbias, true, fill);
}

/// For a run of output pixels, where each tap's input pixel lies (`zeros` beyond the border): pointers [taps][run].
fn input_pointers(x: &[f32], zeros: &[f32], shape: Convolution, run: Range<usize>, pointers: &mut [*const f32]) {
    let Convolution { height, width, input_channels, kernel_size, stride, before, .. } = shape;
    let (output_height, output_width) = (shape.output_height(), shape.output_width());
    let len = run.len();
    for (i, pixel) in run.enumerate() {
        let (b, top, left) = (pixel / (output_height * output_width), pixel / output_width % output_height * stride, pixel % output_width * stride);
        for u in 0..kernel_size {
            // Wrapping below zero gives a number beyond any picture.
            let row = (top + u).wrapping_sub(before);
            let start = (b * height + row.min(height)) * width;
            for v in 0..kernel_size {
                let column = (left + v).wrapping_sub(before);
                pointers[(u * kernel_size + v) * len + i] = match row < height && column < width {
                    true => x[(start + column) * input_channels..].as_ptr(),
                    false => zeros.as_ptr(),
                };
            }
        }
    }
}
