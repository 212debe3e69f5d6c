//! Which instruction set the kernels use: the widest this processor has, unless `SMALTI_ISA` names another.

use crate::vector::{Portable, Vector};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// Plain Rust; what the compiler makes of it for the target's baseline (SSE2, NEON).
    Portable,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// 512-bit vectors.
    Avx512,
}

impl InstructionSet {
    /// Every set this processor can run, narrowest first.
    pub fn available() -> &'static [Self] {
        static AVAILABLE: LazyLock<Vec<InstructionSet>> = LazyLock::new(|| {
            #[allow(unused_mut)] // grows on x86-64 only
            let mut sets = vec![InstructionSet::Portable];
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    sets.push(InstructionSet::Avx2);
                    if is_x86_feature_detected!("avx512f") {
                        sets.push(InstructionSet::Avx512);
                    }
                }
            }
            sets
        });
        &AVAILABLE
    }

    /// The set in use. Panics if `SMALTI_ISA` names one that does not exist or that this processor lacks: results under another would not be what was asked for.
    pub fn current() -> Self {
        static CHOSEN: LazyLock<InstructionSet> = LazyLock::new(|| {
            let available = InstructionSet::available();
            let Ok(name) = std::env::var("SMALTI_ISA") else { return *available.last().expect("portable is always there") };
            *available
                .iter()
                .find(|set| set.name() == name)
                .unwrap_or_else(|| panic!("SMALTI_ISA: expected one of {:?}, found {name:?}", available.iter().map(|set| set.name()).collect::<Vec<_>>()))
        });
        match FORCED.load(Ordering::Relaxed) {
            1 => Self::Portable,
            2 => Self::Avx2,
            3 => Self::Avx512,
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

    /// The name that `SMALTI_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
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
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `current` answers only sets that the processor was found to have.
            Self::Avx2 => unsafe { x86::run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx512 => unsafe { x86::run_avx512(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => kernel.run::<Portable>(),
        }
    }

    /// Columns of the product kernel's tile: two vectors.
    pub(crate) fn panel_width(self) -> usize {
        match self {
            Self::Portable | Self::Avx2 => 16,
            Self::Avx512 => 32,
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Kernel;
    use crate::vector::{Avx2, Avx512};

    #[target_feature(enable = "avx2,fma")]
    pub fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx2>()
    }

    #[target_feature(enable = "avx512f,avx2,fma")]
    pub fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx512>()
    }
}
