//! Cross-entropy of rows of logits against one class each, with label smoothing, without keeping the probabilities.
//!
//! loss = log sum exp(logits) - (1 - smoothing) * logit of the target - smoothing * mean of the logits
//!
//! All of it relative to the largest logit: differences of numbers near each other stay exact, where those of a row far from zero would not.

use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::Shared;
use crate::threads::each;
use crate::vector::{Vector, exp, load, store};

/// Rows of a task.
const ROW_BLOCK: usize = 8;

/// logits [rows, classes], targets [rows], each below classes -> writes losses and the logarithm of each row's sum of exponentials [rows].
pub fn forward(logits: &[f32], targets: &[usize], smoothing: f32, losses: &mut [f32], log_sums: &mut [f32]) {
    let rows = targets.len();
    let classes = check("cross_entropy", logits, targets);
    assert!(losses.len() == rows && log_sums.len() == rows, "cross_entropy: expected losses of {rows} rows, found {}", losses.len());
    let set = InstructionSet::current();
    let (losses, log_sums) = (Shared::new(losses), Shared::new(log_sums));
    each(rows.div_ceil(ROW_BLOCK), |block| {
        for row in block * ROW_BLOCK..((block + 1) * ROW_BLOCK).min(rows) {
            let logits = &logits[row * classes..][..classes];
            let LogSum { largest, log_sum, mean } = set.run(Row { logits });
            // Without smoothing a forbidden class (-inf) must not count.
            let spread = if smoothing == 0.0 { 0.0 } else { smoothing * (log_sum - mean) };
            // SAFETY: each row belongs to one task.
            unsafe {
                *log_sums.at(row) = largest + log_sum;
                *losses.at(row) = (1.0 - smoothing) * (log_sum - (logits[targets[row]] - largest)) + spread;
            }
        }
    });
}

/// dlogits = dloss of the row * (probabilities - smoothed targets), from the log_sums that `forward` wrote.
pub fn backward(logits: &[f32], targets: &[usize], smoothing: f32, log_sums: &[f32], dlosses: &[f32], dlogits: &mut [f32]) {
    let rows = targets.len();
    let classes = check("cross_entropy's gradient", logits, targets);
    let (lengths, expected) = ([log_sums.len(), dlosses.len(), dlogits.len()], [rows, rows, logits.len()]);
    assert!(lengths == expected, "cross_entropy's gradient: expected lengths of [log_sums, dlosses, dlogits] {expected:?}, found {lengths:?}");
    let set = InstructionSet::current();
    let out = Shared::new(dlogits);
    each(rows.div_ceil(ROW_BLOCK), |block| {
        for row in block * ROW_BLOCK..((block + 1) * ROW_BLOCK).min(rows) {
            // SAFETY: each row belongs to one task.
            let dlogits = unsafe { out.slice(row * classes, classes) };
            let spread = smoothing / classes as f32;
            set.run(Gradient { logits: &logits[row * classes..][..classes], log_sum: log_sums[row], spread, factor: dlosses[row], dlogits });
            dlogits[targets[row]] -= dlosses[row] * (1.0 - smoothing);
        }
    });
}

/// The number of classes.
fn check(name: &str, logits: &[f32], targets: &[usize]) -> usize {
    let classes = logits.len().checked_div(targets.len()).unwrap_or(0);
    assert!(logits.len() == classes * targets.len(), "{name}: {} logits do not fall into {} rows", logits.len(), targets.len());
    if let Some(target) = targets.iter().find(|target| **target >= classes) {
        panic!("{name}: expected targets below {classes}, found {target}");
    }
    classes
}

struct Row<'a> {
    logits: &'a [f32],
}

/// The largest logit, and relative to it the logarithm of the sum of exponentials and the mean.
struct LogSum {
    largest: f32,
    log_sum: f32,
    mean: f32,
}

impl Kernel for Row<'_> {
    type Output = LogSum;

    #[inline(always)]
    fn run<V: Vector>(self) -> LogSum {
        let len = self.logits.len();
        let at = self.logits.as_ptr();
        // SAFETY: every access is to whole vectors inside the row; the rest is done one by one.
        unsafe {
            let mut largest = V::splat(f32::NEG_INFINITY);
            let mut i = 0;
            while i + V::LANES <= len {
                largest = largest.max(V::load(at.add(i)));
                i += V::LANES;
            }
            let mut largest = largest.largest();
            for value in &self.logits[i..] {
                if *value > largest || value.is_nan() {
                    largest = *value;
                }
            }
            let shift = V::splat(largest);
            let (mut exponentials, mut sum) = (V::zero(), V::zero());
            let mut i = 0;
            while i + V::LANES <= len {
                let value = V::load(at.add(i)).sub(shift);
                (exponentials, sum) = (exponentials.add(exp(value)), sum.add(value));
                i += V::LANES;
            }
            let rest = self.logits[i..].iter().map(|value| value - largest);
            let (exponentials, sum) = (exponentials.sum() + rest.clone().map(f32::exp).sum::<f32>(), sum.sum() + rest.sum::<f32>());
            LogSum { largest, log_sum: exponentials.ln(), mean: sum / len as f32 }
        }
    }
}

/// dlogits = factor * (exp(logits - log_sum) - spread)
struct Gradient<'a> {
    logits: &'a [f32],
    log_sum: f32,
    spread: f32,
    factor: f32,
    dlogits: &'a mut [f32],
}

impl Kernel for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (log_sum, spread, factor) = (V::splat(self.log_sum), V::splat(self.spread), V::splat(self.factor));
        let len = self.logits.len();
        let mut i = 0;
        while i < len {
            // SAFETY: both rows have the same length; parts end there.
            unsafe {
                let probability = exp(load::<V>(self.logits.as_ptr().add(i), len - i).sub(log_sum));
                store(probability.sub(spread).mul(factor), self.dlogits.as_mut_ptr().add(i), len - i);
            }
            i += V::LANES;
        }
    }
}
