//! Nearest-neighbour upsampling by two, channels last, and its gradient.

use crate::memory::Shared;
use crate::threads::each;

/// x [pictures * height, width, channels] as lines of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upsample {
    /// batch * height
    pub lines: usize,
    pub width: usize,
    pub channels: usize,
}

impl Upsample {
    fn check(&self, name: &str, small: usize, large: usize) {
        let expected = (self.lines * self.width * self.channels, 4 * self.lines * self.width * self.channels);
        assert!((small, large) == expected, "{name} {self:?}: expected lengths {expected:?}, found {:?}", (small, large));
    }
}

/// y [2 * lines, 2 * width, channels]: each pixel four times.
pub fn forward(x: &[f32], shape: Upsample, y: &mut [f32]) {
    shape.check("upsample", x.len(), y.len());
    let Upsample { lines, width, channels } = shape;
    let line = width * channels;
    let out = Shared::new(y);
    each(lines, |index| {
        // SAFETY: each task writes the two lines that its own becomes.
        let y = unsafe { out.slice(index * 4 * line, 4 * line) };
        let (upper, lower) = y.split_at_mut(2 * line);
        for (pixel, pair) in x[index * line..][..line].chunks_exact(channels.max(1)).zip(upper.chunks_exact_mut(2 * channels.max(1))) {
            pair[..channels].copy_from_slice(pixel);
            pair[channels..].copy_from_slice(pixel);
        }
        lower.copy_from_slice(upper);
    });
}

/// dx = the sum of the four pixels of dy that each became.
pub fn backward(dy: &[f32], shape: Upsample, dx: &mut [f32]) {
    shape.check("upsample's gradient", dx.len(), dy.len());
    let Upsample { lines, width, channels } = shape;
    let line = width * channels;
    let out = Shared::new(dx);
    each(lines, |index| {
        // SAFETY: each task writes its own line.
        let dx = unsafe { out.slice(index * line, line) };
        let (upper, lower) = dy[index * 4 * line..][..4 * line].split_at(2 * line);
        let size = channels.max(1);
        for (pixel, (upper, lower)) in dx.chunks_exact_mut(size).zip(upper.chunks_exact(2 * size).zip(lower.chunks_exact(2 * size))) {
            for (c, value) in pixel.iter_mut().enumerate() {
                *value = (upper[c] + upper[size + c]) + (lower[c] + lower[size + c]);
            }
        }
    });
}
