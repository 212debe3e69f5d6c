//! What the kernel tests share: values, poisoned outputs, a comparison, every instruction set of this machine.
#![allow(dead_code)] // each test file uses its own part of it

use smalti_kernels::InstructionSet;
use smalti_kernels::convolution::{Added, Convolution};
use std::sync::Mutex;

/// The forced instruction set is the process's: tests that force one take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Calls `check` under each instruction set that this processor has.
pub fn on_each_set(mut check: impl FnMut(InstructionSet)) {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for &set in InstructionSet::available() {
        InstructionSet::force(Some(set));
        check(set);
    }
    InstructionSet::force(None);
}

/// Values in [-1, 1), the same for the same seed.
pub fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// An output whose every element must be overwritten.
pub fn poisoned(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

/// A copy that starts one float off any alignment the allocator gives.
pub struct Unaligned(Vec<f32>);

impl Unaligned {
    pub fn new(values: &[f32]) -> Self {
        Self([&[0.0], values].concat())
    }
    pub fn as_slice(&self) -> &[f32] {
        &self.0[1..]
    }
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.0[1..]
    }
}

/// Every element within `tolerance` of the reference, relative to the reference's largest magnitude (or 1).
pub fn check_close(name: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}: lengths");
    let scale = expected.iter().fold(1.0f64, |largest, value| largest.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(*found) - expected).abs();
        assert!(difference <= tolerance * scale, "{name}[{i}]: expected {expected}, found {found} (difference {difference:e}, scale {scale})");
    }
}

/// The same bits.
pub fn check_same(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}: lengths");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(found.to_bits() == expected.to_bits(), "{name}[{i}]: {found:e} and {expected:e} differ in bits");
    }
}

/// A bias for each picture and a residual, and what they make of a convolution with a common bias.
pub struct OfPicture {
    bias: Vec<f32>,
    residual: Vec<f32>,
    pub y: Vec<f64>,
    pub dbias: Vec<f64>,
}

impl OfPicture {
    pub fn new(shape: &Convolution, common_bias: &[f32], y: &[f64], dy: &[f32], seed: u64) -> Self {
        let (channels, picture) = (shape.output_channels, shape.output_height() * shape.output_width() * shape.output_channels);
        let (bias, residual) = (values(shape.batch * channels, seed), values(y.len(), seed + 1));
        let place = |i: usize| i / picture * channels + i % channels;
        let added = |i: usize| f64::from(bias[place(i)]) + f64::from(residual[i]) - f64::from(common_bias[i % channels]);
        let y = y.iter().enumerate().map(|(i, y)| y + added(i)).collect();
        let mut dbias = vec![0.0; bias.len()];
        dy.iter().enumerate().for_each(|(i, value)| dbias[place(i)] += f64::from(*value));
        Self { bias, residual, y, dbias }
    }

    pub fn added(&self) -> Added<'_> {
        Added { shifts: Some(&self.bias), residual: Some(&self.residual), ..Added::NOTHING }
    }
}

/// Calls `visit(x index, weight index, y index)` for every product in the convolution's definition.
pub fn products(shape: Convolution, mut visit: impl FnMut(usize, usize, usize)) {
    let Convolution { batch, height, width, input_channels, output_channels, kernel_size, stride, before, .. } = shape;
    let (output_height, output_width) = (shape.output_height(), shape.output_width());
    for b in 0..batch {
        for i in 0..output_height {
            for j in 0..output_width {
                for u in 0..kernel_size {
                    for v in 0..kernel_size {
                        let (row, column) = ((i * stride + u) as isize - before as isize, (j * stride + v) as isize - before as isize);
                        if row < 0 || column < 0 || row >= height as isize || column >= width as isize {
                            continue;
                        }
                        let pixel = (b * height + row as usize) * width + column as usize;
                        for c in 0..input_channels {
                            for o in 0..output_channels {
                                let weight = ((u * kernel_size + v) * input_channels + c) * output_channels + o;
                                let y = ((b * output_height + i) * output_width + j) * output_channels + o;
                                visit(pixel * input_channels + c, weight, y);
                            }
                        }
                    }
                }
            }
        }
    }
}
