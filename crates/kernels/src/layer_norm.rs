//! Normalisation of rows (Ba, Kiros and Hinton 2016): y = (x - mean) / sqrt(variance + epsilon) * scale + bias.

use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::Shared;
use crate::threads::each;
use crate::vector::{Vector, load, store};

/// Rows of a task of the backward pass; it fixes the order in which scale and bias gradients are added.
const ROW_BLOCK: usize = 64;

/// Writes y [rows, channels], and for the backward pass mean and 1 / deviation [rows].
pub fn forward(x: &[f32], scale: &[f32], bias: Option<&[f32]>, epsilon: f32, y: &mut [f32], mean: &mut [f32], inverse_deviation: &mut [f32]) {
    let (channels, rows) = (scale.len(), mean.len());
    let lengths = [x.len(), y.len(), bias.map_or(channels, <[f32]>::len), inverse_deviation.len()];
    let expected = [rows * channels, rows * channels, channels, rows];
    assert!(lengths == expected, "layer_norm: expected lengths of [x, y, bias, statistics] {expected:?}, found {lengths:?}");
    if channels == 0 {
        return;
    }
    let set = InstructionSet::current();
    let (y_out, mean_out, inverse_out) = (Shared::new(y), Shared::new(mean), Shared::new(inverse_deviation));
    each(rows.div_ceil(ROW_BLOCK), |block| {
        let (start, end) = (block * ROW_BLOCK, ((block + 1) * ROW_BLOCK).min(rows));
        // SAFETY: each task writes its own rows.
        let (y, mean, inverse_deviation) =
            unsafe { (y_out.slice(start * channels, (end - start) * channels), mean_out.slice(start, end - start), inverse_out.slice(start, end - start)) };
        set.run(Forward { x: &x[start * channels..end * channels], scale, bias, epsilon, y, mean, inverse_deviation });
    });
}

/// Writes dx, dscale and dbias from dy and the statistics that `forward` wrote.
pub fn backward(x: &[f32], scale: &[f32], mean: &[f32], inverse_deviation: &[f32], dy: &[f32], dx: &mut [f32], dscale: &mut [f32], dbias: Option<&mut [f32]>) {
    let (channels, rows) = (scale.len(), mean.len());
    let lengths = [x.len(), dy.len(), dx.len(), dscale.len(), dbias.as_ref().map_or(channels, |dbias| dbias.len()), inverse_deviation.len()];
    let expected = [rows * channels, rows * channels, rows * channels, channels, channels, rows];
    assert!(lengths == expected, "layer_norm's gradient: expected lengths of [x, dy, dx, dscale, dbias, statistics] {expected:?}, found {lengths:?}");
    if channels == 0 {
        return;
    }
    let set = InstructionSet::current();
    let block_count = rows.div_ceil(ROW_BLOCK);
    let mut sums = vec![0.0; block_count * 2 * channels];
    let (dx_out, sums_out) = (Shared::new(dx), Shared::new(&mut sums));
    each(block_count, |block| {
        let (start, end) = (block * ROW_BLOCK, ((block + 1) * ROW_BLOCK).min(rows));
        let range = start * channels..end * channels;
        // SAFETY: each task writes its own rows and its own sums.
        let (dx, sums) = unsafe { (dx_out.slice(range.start, range.len()), sums_out.slice(block * 2 * channels, 2 * channels)) };
        let (mean, inverse_deviation) = (&mean[start..end], &inverse_deviation[start..end]);
        set.run(Backward { x: &x[range.clone()], scale, mean, inverse_deviation, dy: &dy[range], dx, sums });
    });
    let total = |from: usize, out: &mut [f32]| {
        out.fill(0.0);
        for block in sums.chunks_exact(2 * channels) {
            out.iter_mut().zip(&block[from..from + channels]).for_each(|(sum, value)| *sum += value);
        }
    };
    total(0, dscale);
    if let Some(dbias) = dbias {
        total(channels, dbias);
    }
}

struct Forward<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    bias: Option<&'a [f32]>,
    epsilon: f32,
    y: &'a mut [f32],
    mean: &'a mut [f32],
    inverse_deviation: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let channels = self.scale.len();
        for (row, (x, y)) in self.x.chunks_exact(channels).zip(self.y.chunks_exact_mut(channels)).enumerate() {
            // SAFETY: all rows and parameters have `channels` floats; parts end there.
            unsafe {
                let mut sum = V::zero();
                let mut start = 0;
                while start < channels {
                    sum = sum.add(load::<V>(x.as_ptr().add(start), channels - start));
                    start += V::LANES;
                }
                let mean = sum.sum() / channels as f32;
                let mut squares = V::zero();
                let mut start = 0;
                while start + V::LANES <= channels {
                    let centred = V::load(x.as_ptr().add(start)).sub(V::splat(mean));
                    squares = centred.mul_add(centred, squares);
                    start += V::LANES;
                }
                let mut variance = squares.sum();
                for value in &x[start..] {
                    variance += (value - mean) * (value - mean);
                }
                let inverse = 1.0 / (variance / channels as f32 + self.epsilon).sqrt();
                let mut start = 0;
                while start < channels {
                    let left = channels - start;
                    let normalised = load::<V>(x.as_ptr().add(start), left).sub(V::splat(mean)).mul(V::splat(inverse));
                    let bias = self.bias.map_or(V::zero(), |bias| load(bias.as_ptr().add(start), left));
                    store(normalised.mul_add(load(self.scale.as_ptr().add(start), left), bias), y.as_mut_ptr().add(start), left);
                    start += V::LANES;
                }
                self.mean[row] = mean;
                self.inverse_deviation[row] = inverse;
            }
        }
    }
}

struct Backward<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    mean: &'a [f32],
    inverse_deviation: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    /// [2, channels]: sums of dy * normalised and of dy over the rows, zeroed by the caller.
    sums: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let channels = self.scale.len();
        let rows = self.x.chunks_exact(channels).zip(self.dy.chunks_exact(channels)).zip(self.dx.chunks_exact_mut(channels));
        for (row, ((x, dy), dx)) in rows.enumerate() {
            let inverse = V::splat(self.inverse_deviation[row]);
            let mean = V::splat(self.mean[row]);
            // SAFETY: all rows, parameters and sums have `channels` floats; parts end there.
            unsafe {
                // dx = inverse * (g - mean(g) - normalised * mean(g * normalised)) with g = scale * dy
                let (mut level, mut along) = (V::zero(), V::zero());
                let mut start = 0;
                while start < channels {
                    let left = channels - start;
                    // Lanes beyond the row: dy is zero there, so they add nothing.
                    let d = load::<V>(dy.as_ptr().add(start), left);
                    let normalised = load::<V>(x.as_ptr().add(start), left).sub(mean).mul(inverse);
                    let g = d.mul(load(self.scale.as_ptr().add(start), left));
                    level = level.add(g);
                    along = g.mul_add(normalised, along);
                    let (dscale, dbias) = (self.sums.as_mut_ptr().add(start), self.sums.as_mut_ptr().add(channels + start));
                    store(d.mul_add(normalised, load(dscale, left)), dscale, left);
                    store(d.add(load(dbias, left)), dbias, left);
                    start += V::LANES;
                }
                let (level, along) = (V::splat(level.sum() / channels as f32), V::splat(along.sum() / channels as f32));
                let mut start = 0;
                while start < channels {
                    let left = channels - start;
                    let g = load::<V>(dy.as_ptr().add(start), left).mul(load(self.scale.as_ptr().add(start), left));
                    let normalised = load::<V>(x.as_ptr().add(start), left).sub(mean).mul(inverse);
                    let value = g.sub(level).sub(normalised.mul(along)).mul(inverse);
                    store(value, dx.as_mut_ptr().add(start), left);
                    start += V::LANES;
                }
            }
        }
    }
}
