//! Vectors of Arm processors (NEON, which every 64-bit one has): two registers of four lanes as one.

use crate::vector::Vector;
use crate::widening::Widening;
use half::{bf16, f16};
use std::arch::aarch64::*;

// SAFETY of this module: NEON is part of the target's baseline.

#[derive(Clone, Copy)]
pub(crate) struct Neon([float32x4_t; 2]);

impl Neon {
    #[inline(always)]
    fn map(self, operation: impl Fn(float32x4_t) -> float32x4_t) -> Self {
        Self(self.0.map(operation))
    }

    #[inline(always)]
    fn zip(self, other: Self, operation: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        Self([operation(self.0[0], other.0[0]), operation(self.0[1], other.0[1])])
    }
}

impl Vector for Neon {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: see the module.
        Self([unsafe { vdupq_n_f32(value) }; 2])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { [vld1q_f32(from), vld1q_f32(from.add(4))] })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            vst1q_f32(to, self.0[0]);
            vst1q_f32(to.add(4), self.0[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        let mut lanes = [0.0; 8];
        // SAFETY: the caller's promise; `count` is at most 8.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
            Self::load(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        let mut lanes = [0.0; 8];
        // SAFETY: the caller's promise; `count` is at most 8.
        unsafe {
            self.store(lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: see the module.
        self.zip(other, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: see the module.
        self.zip(other, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: see the module.
        self.zip(other, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: see the module.
        self.zip(other, |a, b| unsafe { vdivq_f32(a, b) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see the module.
        Self(unsafe { [vfmaq_f32(addend.0[0], self.0[0], factor.0[0]), vfmaq_f32(addend.0[1], self.0[1], factor.0[1])] })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // The instruction for the maximum would answer NaN where either is.
        // SAFETY: see the module.
        self.zip(other, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the module.
        self.zip(other, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see the module.
        self.map(|x| unsafe { vsqrtq_f32(x) })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: see the module.
        self.map(|x| unsafe { vrndnq_f32(x) })
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: see the module.
        self.map(|x| unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(x), vdupq_n_s32(127)))) })
    }
    #[inline(always)]
    fn zero_where_below(self, test: Self, limit: Self) -> Self {
        // SAFETY: see the module.
        let keep = |x, test, limit| unsafe { vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), vcltq_f32(test, limit))) };
        Self([keep(self.0[0], test.0[0], limit.0[0]), keep(self.0[1], test.0[1], limit.0[1])])
    }
}

impl Widening for Neon {
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise; `to_f32` is one instruction here.
        let lanes = unsafe { from.cast::<[f16; 8]>().read() }.map(f16::to_f32);
        // SAFETY: eight floats.
        unsafe { Self::load(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let all = vld1q_u16(from.cast());
            let widen = |half| vreinterpretq_f32_u32(vshll_n_u16::<16>(half));
            Self([widen(vget_low_u16(all)), widen(vget_high_u16(all))])
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let all = vmovl_s8(vld1_s8(from));
            let widen = |half| vcvtq_f32_s32(vmovl_s16(half));
            Self([widen(vget_low_s16(all)), widen(vget_high_s16(all))])
        }
    }
}
