//! What this machine can do at most, for a benchmark to compare with: fused multiply-adds that touch no memory, and memory traffic without arithmetic.

use crate::bf16;
use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::Shared;
use crate::threads::{count, each, part};
use crate::vector::{Vector, load, store};
use std::hint::black_box;

/// Independent chains, enough to hide the latency of a multiply-add on two units.
const CHAIN_COUNT: usize = 12;
/// Parts of the work for each thread, so that a thread that was interrupted does not keep the others waiting.
const PARTS_PER_THREAD: usize = 8;

/// Multiply-adds in registers on every thread, about `rounds` of them in a chain; answers how many floating-point operations they were.
pub fn multiply_adds(rounds: usize) -> f64 {
    let set = InstructionSet::current();
    let rounds = rounds.div_ceil(PARTS_PER_THREAD);
    let parts = PARTS_PER_THREAD * count();
    each(parts, |_| {
        black_box(set.run(Chains { rounds }));
    });
    2.0 * (parts * rounds * CHAIN_COUNT * set.panel_width() / 2) as f64
}

/// The same with what products of bf16 are computed by: the units for bf16 where the instruction set has them, else those of f32.
pub fn bf16_multiply_adds(rounds: usize) -> f64 {
    let set = InstructionSet::current();
    if !set.has_bf16_units() {
        return multiply_adds(rounds);
    }
    let rounds = rounds.div_ceil(PARTS_PER_THREAD);
    let parts = PARTS_PER_THREAD * count();
    each(parts, |_| {
        black_box(bf16::peak::chains(set, rounds, black_box(1.0)));
    });
    (parts * rounds * bf16::peak::flops_of_round(set)) as f64
}

/// a = b + factor * c: answers the bytes that were read and written (not those that a write fetches first).
pub fn triad(a: &mut [f32], b: &[f32], c: &[f32], factor: f32) -> f64 {
    let lengths = [b.len(), c.len()];
    assert!(lengths == [a.len(); 2], "triad: expected b and c of {}, found {lengths:?}", a.len());
    let (set, len, parts) = (InstructionSet::current(), a.len(), PARTS_PER_THREAD * count());
    let out = Shared::new(a);
    each(parts, |index| {
        let range = part(len, parts, index);
        // SAFETY: each task writes its own range.
        let a = unsafe { out.slice(range.start, range.len()) };
        set.run(Triad { a, b: &b[range.clone()], c: &c[range], factor });
    });
    (3 * len * size_of::<f32>()) as f64
}

/// Reads everything once; answers the bytes.
pub fn read(values: &[f32]) -> f64 {
    let (set, parts) = (InstructionSet::current(), PARTS_PER_THREAD * count());
    each(parts, |index| {
        black_box(set.run(Read(&values[part(values.len(), parts, index)])));
    });
    size_of_val(values) as f64
}

struct Chains {
    rounds: usize,
}

impl Kernel for Chains {
    type Output = f32;

    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        // Values that stay what they are: nothing overflows, nothing becomes slow.
        let (factor, addend) = (V::splat(black_box(0.5)), V::splat(black_box(0.5)));
        let mut chains = [V::splat(black_box(1.0)); CHAIN_COUNT];
        for _ in 0..self.rounds {
            for chain in &mut chains {
                *chain = chain.mul_add(factor, addend);
            }
        }
        chains.iter().fold(V::zero(), |sum, chain| sum.add(*chain)).sum()
    }
}

struct Triad<'a> {
    a: &'a mut [f32],
    b: &'a [f32],
    c: &'a [f32],
    factor: f32,
}

impl Kernel for Triad<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let factor = V::splat(self.factor);
        let mut i = 0;
        while i < self.a.len() {
            let left = self.a.len() - i;
            // SAFETY: all three have the same length; parts end there.
            unsafe {
                let value = load::<V>(self.c.as_ptr().add(i), left).mul_add(factor, load(self.b.as_ptr().add(i), left));
                store(value, self.a.as_mut_ptr().add(i), left);
            }
            i += V::LANES;
        }
    }
}

struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        let mut sums = [V::zero(); 8];
        let mut blocks = self.0.chunks_exact(8 * V::LANES);
        for block in &mut blocks {
            for (k, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a block holds eight vectors.
                *sum = unsafe { sum.add(V::load(block.as_ptr().add(k * V::LANES))) };
            }
        }
        sums.iter().fold(V::zero(), |sum, part| sum.add(*part)).sum() + blocks.remainder().iter().sum::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_done_and_counted() {
        let (b, c) = ((0..1003).map(|i| i as f32).collect::<Vec<_>>(), vec![2.0; 1003]);
        let mut a = vec![f32::NAN; 1003];
        assert_eq!(triad(&mut a, &b, &c, 3.0), 3.0 * 4.0 * 1003.0);
        assert!(a.iter().zip(&b).all(|(a, b)| *a == b + 6.0));
        assert_eq!(read(&b), 4.0 * 1003.0);
        let set = InstructionSet::current();
        assert_eq!(set.run(Read(&b[..20])), 190.0);
        assert_eq!(set.run(Chains { rounds: 10 }), (CHAIN_COUNT * set.panel_width() / 2) as f32);
        let lanes = (set.panel_width() / 2) as f64;
        assert_eq!(multiply_adds(80), 2.0 * 12.0 * 80.0 * lanes * count() as f64);
    }

    #[test]
    fn units_for_bf16_do_what_is_counted() {
        let sets = InstructionSet::available().iter().copied().chain([InstructionSet::EmulatedAmx]);
        for set in sets.filter(|set| set.has_bf16_units()) {
            // With ones each multiply-add adds one to the sum of all results.
            let sum = bf16::peak::chains(set, 10, 1.0);
            assert_eq!(2.0 * f64::from(sum), (10 * bf16::peak::flops_of_round(set)) as f64, "{}", set.name());
        }
        assert!(bf16_multiply_adds(80) >= multiply_adds(80), "units for bf16 do no less in a round than those of f32");
    }
}
