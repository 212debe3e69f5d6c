//! What the units for bf16 can do at most: products of pairs that touch no memory.

use crate::instruction_set::InstructionSet;

/// Floating-point operations of a round: twelve vectors of sixteen results, or four tiles of 16 by 16 and 32 depths; a multiply-add is two.
pub(crate) fn flops_of_round(set: InstructionSet) -> usize {
    match set {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512Bf16 => super::dot::CHAIN_COUNT * 16 * 2 * 2,
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Amx => 4 * 16 * 16 * 32 * 2,
        #[cfg(test)]
        InstructionSet::EmulatedAmx => 4 * 16 * 16 * 32 * 2,
        _ => unreachable!("{} has no units for bf16", set.name()),
    }
}

/// Independent chains of `rounds` products each on this thread, all factors the same; answers the sum of all results: for factors of one, the number of
/// multiply-adds.
pub(crate) fn chains(set: InstructionSet, rounds: usize, factor: f32) -> f32 {
    let factor = super::Element::bits(factor);
    match set {
        // SAFETY: `set` is one that this processor was found to have.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512Bf16 => unsafe { super::dot::chains(rounds, factor) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Amx => unsafe { super::tiles::chains(super::tiles::Hardware, rounds, factor) },
        #[cfg(test)]
        // SAFETY: these tiles are software.
        InstructionSet::EmulatedAmx => unsafe { super::tiles::chains(super::tiles::Emulated::default(), rounds, factor) },
        _ => unreachable!("{} has no units for bf16", set.name()),
    }
}
