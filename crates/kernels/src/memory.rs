//! Memory of the kernels: scratch that is kept between calls, and outputs that are not zeroed before they are written.

use std::cell::RefCell;

/// Buffers kept per thread; more would only pile up after an unusually deep nest of calls.
const KEPT_COUNT: usize = 8;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

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
            let best = (0..kept.len()).filter(|&i| kept[i].len() >= needed).min_by_key(|&i| kept[i].len());
            best.or_else(|| kept.len().checked_sub(1)).map(|i| kept.swap_remove(i)).unwrap_or_default()
        });
        if lines.len() < needed {
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

/// What scratch may be read as: any bits are one.
pub(crate) trait Bits: Copy {}
impl Bits for u16 {}
impl Bits for u32 {}
impl Bits for half::bf16 {}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // At the end of a thread the list may be gone already; then the buffer is simply freed.
        let _ = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < KEPT_COUNT {
                kept.push(lines);
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
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

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
