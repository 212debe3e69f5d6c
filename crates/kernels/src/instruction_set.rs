//! Which instruction set the kernels use: the fastest this processor has, unless `SMALTI_ISA` names another.

use crate::vector::{Portable, Vector};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// Plain Rust; what the compiler makes of it for the target's baseline.
    Portable,
    /// Arm's 128-bit vectors, two as one.
    Neon,
    /// 256-bit vectors with fused multiply-add and conversion of f16.
    Avx2,
    /// 512-bit vectors.
    Avx512,
    /// The same with products of pairs of 16-bit integers (AVX512_VNNI).
    Avx512Vnni,
    /// The same with products of bf16 pairs (AVX512_BF16).
    Avx512Bf16,
    /// The same with tiles of bf16 (AMX).
    Amx,
    /// `Amx` with tiles in software: what the tests prove the tile loops with on any processor. Nothing else runs it.
    #[cfg(test)]
    EmulatedAmx,
}

impl InstructionSet {
    /// Every set this processor can run, narrowest first.
    pub fn available() -> &'static [Self] {
        static AVAILABLE: LazyLock<Vec<InstructionSet>> = LazyLock::new(|| {
            #[allow(unused_mut)] // grows on processors that we know more of
            let mut sets = vec![InstructionSet::Portable];
            #[cfg(target_arch = "aarch64")]
            sets.push(InstructionSet::Neon); // part of the baseline
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                    sets.push(InstructionSet::Avx2);
                    if is_x86_feature_detected!("avx512f") {
                        sets.push(InstructionSet::Avx512);
                        if x86::has_integer_products() {
                            sets.push(InstructionSet::Avx512Vnni);
                            if is_x86_feature_detected!("avx512bf16") {
                                sets.push(InstructionSet::Avx512Bf16);
                                if x86::has_tiles() {
                                    sets.push(InstructionSet::Amx);
                                }
                            }
                        }
                    }
                }
            }
            sets
        });
        &AVAILABLE
    }

    /// The widest, but for AVX512_BF16 where its products take longer than those of f32.
    fn fastest(available: &[Self], products_of_pairs_are_fast: bool) -> Self {
        let fast = |set: &&Self| **set != Self::Avx512Bf16 || products_of_pairs_are_fast;
        *available.iter().rfind(fast).expect("portable is always there")
    }

    /// The set that `SMALTI_ISA` names, else the fastest there is; or what is wrong with the name.
    pub fn from_environment() -> Result<Self, String> {
        let available = Self::available();
        let Ok(name) = std::env::var("SMALTI_ISA") else { return Ok(Self::fastest(available, products_of_pairs_are_fast())) };
        let names = || available.iter().map(|set| set.name()).collect::<Vec<_>>().join(", ");
        available.iter().copied().find(|set| set.name() == name).ok_or_else(|| format!("SMALTI_ISA: expected one of {}, found {name}", names()))
    }

    /// The set in use. Panics if `SMALTI_ISA` names one that does not exist or that this processor lacks: results under another would not be what was asked for.
    pub fn current() -> Self {
        static CHOSEN: LazyLock<InstructionSet> = LazyLock::new(|| InstructionSet::from_environment().unwrap_or_else(|reason| panic!("{reason}")));
        match FORCED.load(Ordering::Relaxed) {
            1 => Self::Portable,
            2 => Self::Neon,
            3 => Self::Avx2,
            4 => Self::Avx512,
            5 => Self::Avx512Vnni,
            6 => Self::Avx512Bf16,
            7 => Self::Amx,
            _ => *CHOSEN,
        }
    }

    /// Uses `set` (None: the default) in the whole process from now on; for tests and benchmarks. Panics if this processor lacks it.
    pub fn force(set: Option<Self>) {
        if let Some(set) = set {
            assert!(Self::available().contains(&set), "instruction set {} is not among {:?}", set.name(), Self::available());
        }
        FORCED.store(set.map_or(0, |set| set as u8 + 1), Ordering::Relaxed);
    }

    /// Whether products of bf16 have units of their own, and so are faster than those of f32.
    pub fn has_bf16_units(self) -> bool {
        match self {
            Self::Avx512Bf16 | Self::Amx => true,
            #[cfg(test)]
            Self::EmulatedAmx => true,
            _ => false,
        }
    }

    /// Whether products of two 16-bit integers each are faster than those of f32, and no products of bf16 are faster still.
    pub(crate) fn multiplies_pairs_of_integers(self) -> bool {
        matches!(self, Self::Avx512Vnni | Self::Avx512Bf16)
    }

    /// The name that `SMALTI_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
            #[cfg(test)]
            Self::EmulatedAmx => "emulated amx",
        }
    }
}

/// Whether a product of bf16 pairs, two multiply-adds, takes less time than two of f32. Not measured at run time: the choice decides about last bits.
fn products_of_pairs_are_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        x86::vendor() != *b"GenuineIntel"
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// 0: not forced; otherwise the set's number plus one.
static FORCED: AtomicU8 = AtomicU8::new(0);

/// A piece of work written once over the vector type. `run` and all it calls must be `#[inline(always)]`, so that they are compiled for the
/// instruction set of the caller below.
pub(crate) trait Kernel {
    type Output;
    fn run<V: Vector>(self) -> Self::Output;
}

impl InstructionSet {
    /// Runs the kernel's body for this set, which must come from `current` (or be in `available`).
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable => kernel.run::<Portable>(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => kernel.run::<crate::neon::Neon>(),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `current` answers only sets that the processor was found to have.
            Self::Avx2 => unsafe { x86::run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx512 | Self::Avx512Vnni | Self::Avx512Bf16 | Self::Amx => unsafe { x86::run_avx512(kernel) },
            #[cfg(test)]
            Self::EmulatedAmx => kernel.run::<Portable>(),
            // Sets of other processors, which `available` never names.
            #[allow(unreachable_patterns)]
            _ => kernel.run::<Portable>(),
        }
    }

    /// Columns of the product kernel's tile: two vectors.
    pub(crate) fn panel_width(self) -> usize {
        match self {
            Self::Avx512 | Self::Avx512Vnni | Self::Avx512Bf16 | Self::Amx => 32,
            _ => 16,
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Kernel;
    use crate::vector::{Avx2, Avx512};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx2>()
    }

    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    pub fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx512>()
    }

    /// Intel's server processors have tiles for bf16 and, where those are kept from a virtual machine, AVX512_BF16 at a quarter of the rate of f32
    /// instructions: 0.75 ns against 0.17 ns each, measured on a Xeon of family 6, model 207.
    pub fn vendor() -> [u8; 12] {
        let leaf = std::arch::x86_64::__cpuid(0);
        let mut name = [0; 12];
        for (part, register) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
            part.copy_from_slice(&register.to_le_bytes());
        }
        name
    }

    pub fn has_integer_products() -> bool {
        is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vnni")
    }

    /// Whether there are tiles of bf16 and the operating system lets this process use them, which it must be asked for.
    pub fn has_tiles() -> bool {
        const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
        let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
        features & AMX_BF16_AND_TILE == AMX_BF16_AND_TILE && is_permitted()
    }

    /// Linux enlarges a thread's saved state by the tiles only for processes that ask: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA).
    #[cfg(target_os = "linux")]
    fn is_permitted() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const XTILEDATA: u64 = 18;
        let result: i64;
        // SAFETY: the call reads and writes no memory of ours; the kernel changes rax, rcx and r11 alone.
        unsafe {
            std::arch::asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XTILEDATA,
                lateout("rcx") _, lateout("r11") _, options(nostack));
        }
        result == 0
    }

    #[cfg(not(target_os = "linux"))]
    fn is_permitted() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::InstructionSet::{Amx, Avx2, Avx512, Avx512Bf16, Avx512Vnni, Portable};
    use super::*;

    #[test]
    fn the_widest_set_is_taken_but_for_slow_products_of_pairs() {
        assert_eq!(InstructionSet::fastest(&[Portable], false), Portable);
        assert_eq!(InstructionSet::fastest(&[Portable, Avx2, Avx512], false), Avx512);
        assert_eq!(InstructionSet::fastest(&[Portable, Avx2, Avx512, Avx512Vnni, Avx512Bf16], true), Avx512Bf16);
        assert_eq!(InstructionSet::fastest(&[Portable, Avx2, Avx512, Avx512Vnni, Avx512Bf16], false), Avx512Vnni);
        assert_eq!(InstructionSet::fastest(&[Portable, Avx2, Avx512, Avx512Vnni, Avx512Bf16, Amx], false), Amx, "tiles are fast where they are");
    }
}
