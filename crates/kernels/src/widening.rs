//! Vectors from memory that holds narrower numbers than floats.

use crate::vector::Portable;
use half::{bf16, f16};

/// Loads that widen; every f16, bf16 and i8 is exact in f32.
pub(crate) trait Widening: Copy {
    /// # Safety
    /// As many numbers as the vector has lanes can be read at `from`.
    unsafe fn load_f16(from: *const f16) -> Self;
    /// # Safety
    /// As many numbers as the vector has lanes can be read at `from`.
    unsafe fn load_bf16(from: *const bf16) -> Self;
    /// # Safety
    /// As many numbers as the vector has lanes can be read at `from`.
    unsafe fn load_i8(from: *const i8) -> Self;
}

impl Widening for Portable {
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f16; 8]>().read() }.map(f16::to_f32))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[bf16; 8]>().read() }.map(|value| f32::from_bits(u32::from(value.to_bits()) << 16)))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[i8; 8]>().read() }.map(f32::from))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    // SAFETY of this module: as of `vector`, the types are used only where the processor has the instructions.
    use super::Widening;
    use crate::vector::{Avx2, Avx512};
    use half::{bf16, f16};
    use std::arch::x86_64::*;

    impl Widening for Avx2 {
        #[inline(always)]
        unsafe fn load_f16(from: *const f16) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))) })
        }
        #[inline(always)]
        unsafe fn load_i8(from: *const i8) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) })
        }
    }

    impl Widening for Avx512 {
        #[inline(always)]
        unsafe fn load_f16(from: *const f16) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())))) })
        }
        #[inline(always)]
        unsafe fn load_i8(from: *const i8) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) })
        }
    }
}
