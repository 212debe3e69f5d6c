//! Memory of the kernels: scratch that is kept between calls, and outputs that are not zeroed before they are written.

use std::cell::RefCell;

/// Buffers kept per thread, the longest of all: attention has one for each head of each picture at the same time, which must not push out that of a
/// convolution's weights.
const KEPT_COUNT: usize = 32;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Outputs of so many floats, 16 MiB, are written past the caches where a kernel can: reading a line first only to overwrite it would cost as much again, and
/// the beginning would be gone from the caches before anybody reads it.
pub(crate) const PAST_CACHES_FROM: usize = 4 << 20;

thread_local! {
    static KEPT: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of floats on a cache line's border, with whatever the last user left in it.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    len: usize,
}

impl Scratch {
    pub fn new(len: usize) -> Self {
        let needed = len.div_ceil(16).max(1);
        let mut lines = KEPT.with_borrow_mut(|kept| {
            let fitting = (0..kept.len()).filter(|&i| kept[i].len() >= needed).min_by_key(|&i| kept[i].len());
            // Where none fits, a longer one takes the place of the longest, so that as few as possible become long.
            fitting.or_else(|| (0..kept.len()).max_by_key(|&i| kept[i].len())).map(|i| kept.swap_remove(i)).unwrap_or_default()
        });
        if lines.len() < needed {
            drop(lines);
            lines = vec![Line([0.0; 16]); needed]; // a fresh zeroed block costs less than growing, which would copy the old content
        }
        Self { lines, len }
    }

    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: Line is 16 floats without padding, and `len` floats fit into the lines.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    /// The same memory as bf16 bits or pairs of them, two or one to each float.
    pub fn as_mut_of<T: Bits>(&mut self) -> &mut [T] {
        let len = self.len * size_of::<f32>() / size_of::<T>();
        // SAFETY: any bits are a T, which is no wider than a float, and the memory holds `len` of them.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: Line is 16 floats without padding, and `len` floats fit into the lines.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// What scratch may be read as.
///
/// # Safety
/// Any bits are one, and it is no wider and no more aligned than a float.
pub(crate) unsafe trait Bits: Copy {}
// SAFETY: an integer of 2 bytes.
unsafe impl Bits for u16 {}
// SAFETY: an integer of 4 bytes.
unsafe impl Bits for u32 {}
// SAFETY: a u16 in other clothes.
unsafe impl Bits for half::bf16 {}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // At the end of a thread the list may be gone already; then the buffer is simply freed.
        let _ = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            kept.push(lines);
            if kept.len() > KEPT_COUNT
                && let Some(shortest) = (0..kept.len()).min_by_key(|&i| kept[i].len())
            {
                kept.swap_remove(shortest);
            }
        });
    }
}

/// A vector of `len` floats that `write` fills. They start uninitialised (with debug assertions: as NaN, so that a forgotten element shows).
///
/// # Safety
/// `write` stores every element, and before it reads it.
pub unsafe fn filled(len: usize, write: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut values: Vec<f32> = Vec::with_capacity(len);
    if cfg!(debug_assertions) {
        values.resize(len, f32::NAN);
    } else {
        // SAFETY: the capacity is `len`, and the caller promises that every element is stored before it is read.
        #[allow(clippy::uninit_vec)]
        unsafe {
            values.set_len(len);
        }
    }
    write(&mut values);
    values
}

/// A pointer to an output that several tasks write, each its own elements.
pub(crate) struct Shared<T>(*mut T);

// SAFETY: tasks of one kernel write disjoint elements; the slice behind outlives the parallel region that borrows it.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// # Safety
    /// `index` lies in the slice this was made from.
    #[inline(always)]
    pub unsafe fn at(&self, index: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(index) }
    }

    /// # Safety
    /// The range lies in the slice this was made from, and no other task touches it meanwhile.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the long buffer lies after more small ones than are kept were in use at the same time and went in the order they came or the other way round.
    #[test]
    fn many_small_buffers_do_not_push_out_a_long_one() {
        for reversed in [false, true] {
            let place = |len: usize| Scratch::new(len).as_slice().as_ptr();
            let long = place(100_000);
            let mut small: Vec<Scratch> = (0..2 * KEPT_COUNT).map(|_| Scratch::new(1000)).collect();
            if reversed {
                small.reverse();
            }
            drop(small);
            assert_eq!(place(100_000), long, "reversed: {reversed}");
            assert_eq!(place(60_000), long, "the shortest that fits is the long one");
            KEPT.with_borrow(|kept| assert_eq!(kept.len(), KEPT_COUNT));
        }
    }

    #[test]
    fn a_buffer_that_grows_takes_the_place_of_one_that_is_too_short() {
        drop([Scratch::new(16), Scratch::new(160)]);
        drop(Scratch::new(1600));
        let mut kept: Vec<usize> = KEPT.with_borrow(|kept| kept.iter().map(Vec::len).collect());
        kept.sort_unstable();
        assert_eq!(kept, [1, 100]);
    }
}
