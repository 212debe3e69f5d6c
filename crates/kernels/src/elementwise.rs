//! Functions of single elements: activation functions and their gradients, AdamW, moving averages; each in one pass over the memory.

use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::Shared;
use crate::threads::{each, part};
use crate::vector::{Vector, exp, load, sigmoid, store};

/// Elements of a task.
const BLOCK_SIZE: usize = 32 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// x / (1 + e^-x)
    Silu,
    /// x P(N(0, 1) < x), the exact one (Hendrycks and Gimpel 2016)
    Gelu,
    /// x / (1 + e^-1.702x), its approximation in CLIP
    QuickGelu,
    Relu,
    /// x, or x * slope below 0; the slope as bits, so that functions can be compared.
    LeakyRelu {
        slope_bits: u32,
    },
}

impl Function {
    pub fn leaky_relu(slope: f32) -> Self {
        Self::LeakyRelu { slope_bits: slope.to_bits() }
    }
}

/// y = function(x)
pub fn apply(function: Function, x: &[f32], y: &mut [f32]) {
    assert!(x.len() == y.len(), "{function:?}: expected y of {}, found {}", x.len(), y.len());
    let set = InstructionSet::current();
    blocks(x.len(), &[Shared::new(y)], |range, [y]| set.run(Apply { function, x: &x[range], y }));
}

/// dx = dy * function'(x)
pub fn gradient(function: Function, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    let (lengths, expected) = ((dy.len(), dx.len()), (x.len(), x.len()));
    assert!(lengths == expected, "{function:?}'s gradient: expected lengths of (dy, dx) {expected:?}, found {lengths:?}");
    let set = InstructionSet::current();
    blocks(x.len(), &[Shared::new(dx)], |range, [dx]| set.run(Gradient { function, x: &x[range.clone()], dy: &dy[range], dx }));
}

/// AdamW's numbers (Loshchilov and Hutter 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub learning_rate: f32,
    pub beta_1: f32,
    pub beta_2: f32,
    pub epsilon: f32,
    pub weight_decay: f32,
    /// 1 at the first step.
    pub step: i32,
}

/// One step of AdamW in place.
pub fn adamw(parameter: &mut [f32], gradient: &[f32], moment_1: &mut [f32], moment_2: &mut [f32], numbers: AdamW) {
    let lengths = [gradient.len(), moment_1.len(), moment_2.len()];
    assert!(lengths == [parameter.len(); 3], "adamw: expected gradient and moments of {}, found {lengths:?}", parameter.len());
    let set = InstructionSet::current();
    let shared = [Shared::new(parameter), Shared::new(moment_1), Shared::new(moment_2)];
    blocks(gradient.len(), &shared, |range, [parameter, moment_1, moment_2]| {
        set.run(AdamWStep { parameter, gradient: &gradient[range], moment_1, moment_2, numbers });
    });
}

/// average = average * decay + value * (1 - decay)
pub fn move_average(average: &mut [f32], value: &[f32], decay: f32) {
    assert!(average.len() == value.len(), "move_average: expected a value of {}, found {}", average.len(), value.len());
    let set = InstructionSet::current();
    blocks(value.len(), &[Shared::new(average)], |range, [average]| set.run(MoveAverage { average, value: &value[range], decay }));
}

/// Calls the task for ranges of the elements, with that range of each output.
fn blocks<const N: usize>(len: usize, outputs: &[Shared<f32>; N], task: impl Fn(std::ops::Range<usize>, [&mut [f32]; N]) + Sync + Send) {
    let count = len.div_ceil(BLOCK_SIZE);
    each(count, |index| {
        let range = part(len, count, index);
        // SAFETY: the ranges of different tasks do not overlap, and the callers checked every length.
        task(range.clone(), std::array::from_fn(|i| unsafe { outputs[i].slice(range.start, range.len()) }));
    });
}

struct Apply<'a> {
    function: Function,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        // One loop per function: the branch stays outside.
        macro_rules! each_vector {
            (|$x:ident| $value:expr) => {{
                let mut i = 0;
                while i < self.x.len() {
                    let left = self.x.len() - i;
                    // SAFETY: x and y have the same length; parts end there.
                    unsafe {
                        let $x = load::<V>(self.x.as_ptr().add(i), left);
                        store($value, self.y.as_mut_ptr().add(i), left);
                    }
                    i += V::LANES;
                }
            }};
        }
        let zero = V::zero();
        match self.function {
            Function::Silu => each_vector!(|x| x.mul(sigmoid(x))),
            Function::Gelu => each_vector!(|x| x.mul(normal_distribution(x).0)),
            Function::QuickGelu => each_vector!(|x| x.mul(sigmoid(x.mul(V::splat(1.702))))),
            Function::Relu => each_vector!(|x| zero.max(x)),
            Function::LeakyRelu { slope_bits } => {
                let slope = V::splat(f32::from_bits(slope_bits));
                each_vector!(|x| zero.min(x).mul_add(slope, zero.max(x)))
            }
        }
    }
}

struct Gradient<'a> {
    function: Function,
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl Kernel for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        macro_rules! each_vector {
            (|$x:ident, $dy:ident| $value:expr) => {{
                let mut i = 0;
                while i < self.x.len() {
                    let left = self.x.len() - i;
                    // SAFETY: x, dy and dx have the same length; parts end there.
                    unsafe {
                        let $x = load::<V>(self.x.as_ptr().add(i), left);
                        let $dy = load::<V>(self.dy.as_ptr().add(i), left);
                        store($value, self.dx.as_mut_ptr().add(i), left);
                    }
                    i += V::LANES;
                }
            }};
        }
        let one = V::splat(1.0);
        match self.function {
            Function::Silu => each_vector!(|x, dy| {
                let s = sigmoid(x);
                dy.mul(s.mul(x.mul_add(one.sub(s), one)))
            }),
            Function::Gelu => each_vector!(|x, dy| {
                let (probability, density) = normal_distribution(x);
                dy.mul(x.mul_add(density, probability))
            }),
            Function::QuickGelu => each_vector!(|x, dy| {
                let u = x.mul(V::splat(1.702));
                let s = sigmoid(u);
                dy.mul(s.mul(u.mul_add(one.sub(s), one)))
            }),
            // Where x is 0 the gradient is that of the left side, as in PyTorch.
            Function::Relu => each_vector!(|x, dy| dy.zero_where_below(x, V::splat(f32::MIN_POSITIVE))),
            Function::LeakyRelu { slope_bits } => {
                let slope = V::splat(f32::from_bits(slope_bits));
                each_vector!(|x, dy| {
                    let right = dy.zero_where_below(x, V::splat(f32::MIN_POSITIVE));
                    dy.sub(right).mul_add(slope, right)
                })
            }
        }
    }
}

/// P(N(0, 1) < x) within 1e-7, and the density at x. Abramowitz and Stegun, 7.1.26, for erfc(|x| / sqrt 2).
#[inline(always)]
fn normal_distribution<V: Vector>(x: V) -> (V, V) {
    let one = V::splat(1.0);
    let size = x.max(V::zero().sub(x)); // |x|
    let t = one.div(size.mul_add(V::splat(0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2), one));
    let mut p = V::splat(1.061_405_4);
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = p.mul_add(t, V::splat(coefficient));
    }
    let e = exp(x.mul(x).mul(V::splat(-0.5)));
    let tail = p.mul(t).mul(e).mul(V::splat(0.5)); // P(N(0, 1) < -|x|)
    let negative = tail.sub(tail.zero_where_below(x, V::zero()));
    let positive = one.sub(tail).zero_where_below(x, V::zero());
    (negative.add(positive), e.mul(V::splat(0.398_942_3)))
}

struct AdamWStep<'a> {
    parameter: &'a mut [f32],
    gradient: &'a [f32],
    moment_1: &'a mut [f32],
    moment_2: &'a mut [f32],
    numbers: AdamW,
}

impl Kernel for AdamWStep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let AdamW { learning_rate, beta_1, beta_2, epsilon, weight_decay, step } = self.numbers;
        let rate = V::splat(learning_rate / (1.0 - beta_1.powi(step)));
        let correction = V::splat(1.0 / (1.0 - beta_2.powi(step)));
        let kept = V::splat(1.0 - learning_rate * weight_decay);
        let (beta_1, new_1, beta_2, new_2) = (V::splat(beta_1), V::splat(1.0 - beta_1), V::splat(beta_2), V::splat(1.0 - beta_2));
        let epsilon = V::splat(epsilon);
        let len = self.gradient.len();
        let (parameter, moment_1, moment_2) = (self.parameter.as_mut_ptr(), self.moment_1.as_mut_ptr(), self.moment_2.as_mut_ptr());
        let mut i = 0;
        while i < len {
            let left = len - i;
            // SAFETY: all four have the same length; parts end there.
            unsafe {
                let g = load::<V>(self.gradient.as_ptr().add(i), left);
                let m = load::<V>(moment_1.add(i), left).mul_add(beta_1, g.mul(new_1));
                let v = load::<V>(moment_2.add(i), left).mul_add(beta_2, g.mul(g).mul(new_2));
                let update = rate.mul(m).div(v.mul(correction).sqrt().add(epsilon));
                store(m, moment_1.add(i), left);
                store(v, moment_2.add(i), left);
                store(load::<V>(parameter.add(i), left).mul(kept).sub(update), parameter.add(i), left);
            }
            i += V::LANES;
        }
    }
}

struct MoveAverage<'a> {
    average: &'a mut [f32],
    value: &'a [f32],
    decay: f32,
}

impl Kernel for MoveAverage<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (decay, new) = (V::splat(self.decay), V::splat(1.0 - self.decay));
        let mut i = 0;
        while i < self.value.len() {
            let left = self.value.len() - i;
            // SAFETY: both have the same length; parts end there.
            unsafe {
                let average = self.average.as_mut_ptr().add(i);
                let moved = load::<V>(average, left).mul_add(decay, load::<V>(self.value.as_ptr().add(i), left).mul(new));
                store(moved, average, left);
            }
            i += V::LANES;
        }
    }
}
