//! One vector of floats per instruction set, and the functions that every kernel shares.

use crate::widening::Widening;

/// A register of `LANES` floats. All methods are compiled into their caller, which must run under the instruction set of the type.
pub(crate) trait Vector: Widening {
    const LANES: usize;
    /// Rows of the product kernel's tile: as many as the registers hold beside two vectors of columns.
    const TILE_ROWS: usize;

    fn splat(value: f32) -> Self;
    /// # Safety
    /// `LANES` floats can be read at `from`.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `LANES` floats can be written at `to`.
    unsafe fn store(self, to: *mut f32);
    /// `store` past the caches, where there is an instruction for it; [`settle`] must follow before another thread reads it.
    /// # Safety
    /// `LANES` floats can be written at `to`, a multiple of the vector's size.
    #[inline(always)]
    unsafe fn store_past_caches(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { self.store(to) }
    }
    /// The first `count` lanes from memory, the others zero.
    /// # Safety
    /// `count` floats can be read at `from`; `count` is at most `LANES`.
    unsafe fn load_part(from: *const f32, count: usize) -> Self;
    /// # Safety
    /// `count` floats can be written at `to`; `count` is at most `LANES`.
    unsafe fn store_part(self, to: *mut f32, count: usize);

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// self * factor + addend, rounded once where the processor can.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger one; `other` if either is NaN.
    fn max(self, other: Self) -> Self;
    /// The smaller one; `other` if either is NaN.
    fn min(self, other: Self) -> Self;
    fn sqrt(self) -> Self;
    /// The nearest integer.
    fn round(self) -> Self;
    /// 2^self for integral values in -126..=127, and 0 for -127.
    fn power_of_two(self) -> Self;
    /// Lanes of self where `test` is not below `limit` (or is NaN), zero elsewhere.
    fn zero_where_below(self, test: Self, limit: Self) -> Self;

    /// The square of 8 by 8 floats whose rows begin `from_stride` apart, columns for rows, to rows `to_stride` apart.
    /// # Safety
    /// All 64 floats can be read and written.
    #[inline(always)]
    unsafe fn transpose_square(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..8 {
            for j in 0..8 {
                // SAFETY: the caller's promise.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) };
            }
        }
    }

    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// The nearest bf16 of each lane, as `bf16::rounded` has it. (The compiler keeps the array in a register.)
    #[inline(always)]
    fn rounded_to_bf16(self) -> Self {
        let mut lanes = [0.0; 16];
        // SAFETY: the array holds the widest vector.
        unsafe {
            self.store(lanes.as_mut_ptr());
            for lane in &mut lanes[..Self::LANES] {
                *lane = f32::from_bits(u32::from(crate::bf16::Element::bits(*lane)) << 16);
            }
            Self::load(lanes.as_ptr())
        }
    }

    /// Sum of all lanes, pairwise in a fixed order.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = [0.0; 16];
        // SAFETY: the array holds the widest vector.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut width = Self::LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }

    /// Largest lane.
    #[inline(always)]
    fn largest(self) -> f32 {
        let mut lanes = [0.0; 16];
        // SAFETY: the array holds the widest vector.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut largest = lanes[0];
        for &lane in &lanes[1..Self::LANES] {
            // NaN stays: a comparison with it is false both ways.
            if lane > largest || lane.is_nan() {
                largest = lane;
            }
        }
        largest
    }
}

/// e^x, within 2 units in the last place; 0 below -87.3, finite (about 2.4e38) above 88.3; NaN stays NaN.
/// Cephes' reduction x = n ln 2 + r and polynomial for e^r on [-ln 2 / 2, ln 2 / 2].
#[inline(always)]
pub(crate) fn exp<V: Vector>(x: V) -> V {
    let lowest = V::splat(-87.3);
    let clamped = V::splat(88.3).min(lowest.max(x));
    let n = clamped.mul(V::splat(std::f32::consts::LOG2_E)).round();
    let r = n.mul_add(V::splat(-0.693_359_4), clamped); // ln 2 in two parts, the first exact in few bits
    let r = n.mul_add(V::splat(2.121_944_4e-4), r);
    let mut p = V::splat(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
        p = p.mul_add(r, V::splat(coefficient));
    }
    let e = p.mul_add(r.mul(r), r).add(V::splat(1.0));
    e.mul(n.power_of_two()).zero_where_below(x, lowest)
}

/// 2^x for x up to 0, relative error below 2e-7; exactly 0 from -127 down; NaN stays NaN. Cephes' polynomial for 2^r on [-1/2, 1/2].
/// N vectors go side by side: one alone would wait for each of its own results.
#[inline(always)]
pub(crate) fn exp2_up_to_zero<V: Vector, const N: usize>(x: [V; N]) -> [V; N] {
    const POLYNOMIAL: [f32; 6] = [1.339_887_4e-3, 9.618_437e-3, 5.550_332_6e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0];
    let (mut n, mut r, mut p) = ([V::zero(); N], [V::zero(); N], [V::splat(1.535_336_2e-4); N]);
    for i in 0..N {
        let clamped = V::splat(-127.0).max(x[i]);
        n[i] = clamped.round();
        r[i] = clamped.sub(n[i]);
    }
    for coefficient in POLYNOMIAL {
        for i in 0..N {
            p[i] = p[i].mul_add(r[i], V::splat(coefficient));
        }
    }
    for i in 0..N {
        p[i] = p[i].mul(n[i].power_of_two());
    }
    p
}

/// 1 / (1 + e^-x)
#[inline(always)]
pub(crate) fn sigmoid<V: Vector>(x: V) -> V {
    let one = V::splat(1.0);
    one.div(one.add(exp(V::zero().sub(x))))
}

/// A vector from memory: whole, or the `left` floats before the end and zeros.
/// # Safety
/// `left` floats can be read at `from`.
#[inline(always)]
pub(crate) unsafe fn load<V: Vector>(from: *const f32, left: usize) -> V {
    // SAFETY: the caller's promise.
    unsafe { if left >= V::LANES { V::load(from) } else { V::load_part(from, left) } }
}

/// A vector to memory: whole, or as much of it as lies before the end.
/// # Safety
/// `left` floats can be written at `to`.
#[inline(always)]
pub(crate) unsafe fn store<V: Vector>(value: V, to: *mut f32, left: usize) {
    // SAFETY: the caller's promise.
    unsafe { if left >= V::LANES { value.store(to) } else { value.store_part(to, left) } }
}

/// Asks for the cache line at `at`, which need not exist.
#[inline(always)]
pub(crate) fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, and it never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The same, but only into the second-level cache.
#[inline(always)]
pub(crate) fn prefetch_to_second_level(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, and it never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Waits until what went past the caches can be seen by all threads.
#[inline(always)]
pub(crate) fn settle() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Eight lanes in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable(pub(crate) [f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, operation: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| operation(self.0[i], other.0[i])))
    }
}

impl Vector for Portable {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise; arrays of floats need no more than a float's alignment.
        Self(unsafe { from.cast::<[f32; 8]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 8]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        let mut lanes = [0.0; 8];
        // SAFETY: the caller's promise; `count` is at most 8.
        unsafe { std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count) };
        Self(lanes)
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        // SAFETY: the caller's promise; `count` is at most 8.
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to, count) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // Without the instruction `f32::mul_add` is a slow library call.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            Self(std::array::from_fn(|i| self.0[i].mul_add(factor.0[i], addend.0[i])))
        } else {
            Self(std::array::from_fn(|i| self.0[i] * factor.0[i] + addend.0[i]))
        }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(self.0.map(f32::sqrt))
    }
    #[inline(always)]
    fn round(self) -> Self {
        // Adding and taking away 1.5 * 2^23 leaves the nearest integer, for what fits into 22 bits.
        const SHIFT: f32 = 12_582_912.0;
        Self(self.0.map(|x| (x + SHIFT) - SHIFT))
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self(self.0.map(|x| f32::from_bits(((x as i32).wrapping_add(127) << 23) as u32)))
    }
    #[inline(always)]
    fn zero_where_below(self, test: Self, limit: Self) -> Self {
        Self(std::array::from_fn(|i| if test.0[i] < limit.0[i] { 0.0 } else { self.0[i] }))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    // SAFETY of this module: the types are used only inside `instruction_set::run_*`, which run where the processor has the instructions.
    use super::Vector;
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(pub(crate) __m256);

    /// Lanes 8 - count.. are a mask of `count` leading lanes.
    static MASK: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    #[inline(always)]
    unsafe fn mask(count: usize) -> __m256i {
        // SAFETY: count is at most 8, so eight integers follow.
        unsafe { _mm256_loadu_si256(MASK.as_ptr().add(8 - count).cast()) }
    }

    /// Rows in pairs, then in fours, then the halves of the registers: each step halves the distance that elements have to go.
    #[inline(always)]
    unsafe fn transpose_square(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller's promise; see the module.
        unsafe {
            // Plain loops: a closure would be compiled without the instructions.
            let mut rows = [_mm256_setzero_ps(); 8];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm256_loadu_ps(from.add(i * from_stride));
            }
            let mut pairs = rows;
            for i in [0, 2, 4, 6] {
                pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
            }
            let mut fours = pairs;
            for i in [0, 4] {
                fours[i] = _mm256_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
                fours[i + 1] = _mm256_shuffle_ps::<0xEE>(pairs[i], pairs[i + 2]);
                fours[i + 2] = _mm256_shuffle_ps::<0x44>(pairs[i + 1], pairs[i + 3]);
                fours[i + 3] = _mm256_shuffle_ps::<0xEE>(pairs[i + 1], pairs[i + 3]);
            }
            for i in 0..4 {
                _mm256_storeu_ps(to.add(i * to_stride), _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]));
                _mm256_storeu_ps(to.add((i + 4) * to_stride), _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]));
            }
        }
    }

    impl Vector for Avx2 {
        const LANES: usize = 8;
        const TILE_ROWS: usize = 6;

        #[inline(always)]
        unsafe fn transpose_square(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: the caller's promise.
            unsafe { transpose_square(from, from_stride, to, to_stride) }
        }
        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { _mm256_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { _mm256_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn load_part(from: *const f32, count: usize) -> Self {
            // SAFETY: masked lanes are not read.
            Self(unsafe { _mm256_maskload_ps(from, mask(count)) })
        }
        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, count: usize) {
            // SAFETY: masked lanes are not written.
            unsafe { _mm256_maskstore_ps(to, mask(count), self.0) }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_mul_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_div_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn mul_add(self, factor: Self, addend: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, addend.0) })
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_max_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn min(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_min_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_sqrt_ps(self.0) })
        }
        #[inline(always)]
        fn round(self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
        }
        #[inline(always)]
        fn power_of_two(self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127)))) })
        }
        #[inline(always)]
        fn zero_where_below(self, test: Self, limit: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(test.0, limit.0), self.0) })
        }
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(pub(crate) __m512);

    impl Vector for Avx512 {
        const LANES: usize = 16;
        const TILE_ROWS: usize = 12;

        #[inline(always)]
        unsafe fn transpose_square(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: the caller's promise.
            unsafe { transpose_square(from, from_stride, to, to_stride) }
        }
        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { _mm512_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn store_past_caches(self, to: *mut f32) {
            // SAFETY: the caller's promise; see the module.
            unsafe { _mm512_stream_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn load_part(from: *const f32, count: usize) -> Self {
            // SAFETY: masked lanes are not read.
            Self(unsafe { _mm512_maskz_loadu_ps(((1u32 << count) - 1) as u16, from) })
        }
        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, count: usize) {
            // SAFETY: masked lanes are not written.
            unsafe { _mm512_mask_storeu_ps(to, ((1u32 << count) - 1) as u16, self.0) }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_mul_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_div_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn mul_add(self, factor: Self, addend: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_max_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn min(self, other: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_min_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_sqrt_ps(self.0) })
        }
        #[inline(always)]
        fn round(self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_roundscale_ps::<0>(self.0) })
        }
        #[inline(always)]
        fn power_of_two(self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127)))) })
        }
        #[inline(always)]
        fn zero_where_below(self, test: Self, limit: Self) -> Self {
            // SAFETY: see the module.
            Self(unsafe { _mm512_maskz_mov_ps(!_mm512_cmp_ps_mask::<_CMP_LT_OQ>(test.0, limit.0), self.0) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instruction_set::{InstructionSet, Kernel};

    struct PowersOfTwo([f32; 16]);

    impl Kernel for PowersOfTwo {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<V: Vector>(mut self) -> Vec<f32> {
            for lanes in self.0.chunks_exact_mut(V::LANES) {
                // SAFETY: each piece is one vector.
                unsafe {
                    let [power] = exp2_up_to_zero([V::load(lanes.as_ptr())]);
                    power.store(lanes.as_mut_ptr());
                }
            }
            self.0.to_vec()
        }
    }

    #[test]
    fn powers_of_two_are_within_their_bound_and_vanish_exactly() {
        for &set in InstructionSet::available() {
            for step in 0..=20_000 {
                let x = step as f32 * -126.0 / 20_000.0;
                let (found, expected) = (f64::from(set.run(PowersOfTwo([x; 16]))[15]), f64::from(x).exp2());
                assert!((found / expected - 1.0).abs() < 2e-7, "{}: 2^{x}: expected {expected}, found {found}", set.name());
            }
            for x in [-127.0, -1e4, -1e30, f32::NEG_INFINITY] {
                assert!(set.run(PowersOfTwo([x; 16])).iter().all(|power| power.to_bits() == 0), "{}: 2^{x}", set.name());
            }
            assert!(set.run(PowersOfTwo([f32::NAN; 16])).iter().all(|power| power.is_nan()), "{}", set.name());
        }
    }
}
