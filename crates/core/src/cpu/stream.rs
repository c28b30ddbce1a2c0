//! Prefetches, and non-temporal stores that bypass the caches.

use crate::Element;
use std::marker::PhantomData;

/// Prefetches the cache line of `x[at]` into L2. `at` may be past the end: nothing is read.
#[inline(always)]
pub fn prefetch<T>(x: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and has no visible effect; SSE is part of the baseline.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(x.as_ptr().wrapping_add(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (x, at);
}

/// Prefetch distances of a kernel that reads memory in order: 16 KiB ahead into L2, because DRAM latency is long and L1
/// has few fill buffers, and 2 KiB ahead into L1.
#[derive(Clone, Copy, Debug)]
pub struct Prefetch {
    l2: usize,
    l1: usize,
}

impl Prefetch {
    /// The distances with `left` elements still to come. It never prefetches past the end: a prefetch of an unmapped
    /// page costs a TLB miss each time.
    #[inline(always)]
    pub fn of<T>(left: usize) -> Self {
        let size = size_of::<T>().max(1);
        Prefetch { l2: left.min((16 << 10) / size), l1: left.min((2 << 10) / size) }
    }

    /// Prefetches the elements at these distances after the one at `at`.
    #[inline(always)]
    pub fn after<T>(self, x: &[T], at: usize) {
        prefetch(x, at.wrapping_add(self.l2));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at.wrapping_add(self.l1)).cast());
        }
    }
}

/// The kind of store that a kernel writes a result with.
///
/// A hint for non-temporal stores lives as long as its [`NonTemporalWriter`] and stays on its thread, which fences.
#[derive(Clone, Copy, Debug)]
pub struct StoreHint<'a> {
    non_temporal: bool,
    /// Tied to the writer, and neither `Send` nor `Sync`.
    writer: PhantomData<(&'a (), *const ())>,
}

impl StoreHint<'_> {
    /// Ordinary stores, through the caches.
    pub const CACHED: StoreHint<'static> = StoreHint { non_temporal: false, writer: PhantomData };

    #[inline(always)]
    pub(super) fn is_non_temporal(self) -> bool {
        self.non_temporal
    }
}

/// Writes memory once, from its start on, with stores that bypass the caches.
///
/// An ordinary store first reads the cache line that it changes, and evicts another one. A result that is written whole
/// and is too large to be found in a cache later pays for that twice. x86-64 has instructions against it; other CPUs
/// detect writes of whole lines, and get ordinary stores.
///
/// It exists only inside [`NonTemporalWriter::with`], on one thread:
///
/// ```compile_fail,E0277
/// use alluvium_core::cpu::NonTemporalWriter;
/// NonTemporalWriter::with(&mut [0.0f32; 64], |mut writer| {
///     std::thread::scope(|scope| {
///         scope.spawn(move || writer.write(&[1.0]));
///     });
/// });
/// ```
///
/// ```compile_fail
/// use alluvium_core::cpu::NonTemporalWriter;
/// let writer = NonTemporalWriter::with(&mut [0.0f32; 64], |writer| writer);
/// ```
#[derive(Debug)]
pub struct NonTemporalWriter<'a, T: Element> {
    rest: &'a mut [T],
    /// Neither `Send` nor `Sync`: the fence is for the stores of one thread.
    thread: PhantomData<*const ()>,
}

impl<'a, T: Element> NonTemporalWriter<'a, T> {
    /// The memory that is not written yet, for ordinary stores.
    pub fn into_rest(self) -> &'a mut [T] {
        self.rest
    }
}

impl<T: Element> NonTemporalWriter<'_, T> {
    /// The size in bytes from which on a result gains by it: the caches may still hold a smaller one when it is read.
    /// Small where assertions are on, so that tests get here, too.
    pub const THRESHOLD: usize = if cfg!(debug_assertions) { 64 << 10 } else { 16 << 20 };

    /// Calls `write` with a writer of `memory`, then fences: every thread sees what was written.
    pub fn with<R>(memory: &mut [T], write: impl FnOnce(NonTemporalWriter<'_, T>) -> R) -> R {
        NonTemporalWriter::with_all([memory], |[writer]| write(writer))
    }

    /// As [`NonTemporalWriter::with`], for several results.
    pub fn with_all<const N: usize, R>(
        memory: [&mut [T]; N],
        write: impl FnOnce([NonTemporalWriter<'_, T>; N]) -> R,
    ) -> R {
        // also if `write` panics
        let _fence = Fence;
        write(memory.map(|rest| NonTemporalWriter { rest, thread: PhantomData }))
    }

    /// The next `len` elements, for a kernel that writes all of them once and reads none, and the hint to write them
    /// with; no elements where fewer are left.
    ///
    /// # Safety
    /// The hint is used for stores to the returned elements alone.
    pub unsafe fn next(&mut self, len: usize) -> (&mut [T], StoreHint<'_>) {
        let next = self.rest.split_off_mut(..len).unwrap_or_default();
        (next, StoreHint { non_temporal: true, writer: PhantomData })
    }

    /// Writes the next elements, as many as there is room for.
    pub fn write(&mut self, from: &[T]) {
        let len = from.len().min(self.rest.len());
        let (to, rest) = std::mem::take(&mut self.rest).split_at_mut(len);
        self.rest = rest;
        store(bytemuck::cast_slice(&from[..len]), bytemuck::cast_slice_mut(to));
    }
}

/// Orders the non-temporal stores of this thread before its later stores, when dropped.
struct Fence;

impl Drop for Fence {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: SSE2 is part of the x86-64 baseline.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn store(from: &[u8], to: &mut [u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    const LANE: usize = size_of::<__m128i>();
    // SAFETY: any sixteen bytes are an `__m128i`.
    let (head, lanes, tail) = unsafe { to.align_to_mut::<__m128i>() };
    let (first, from) = from.split_at(head.len());
    let (middle, last) = from.split_at(LANE * lanes.len());
    head.copy_from_slice(first);
    for (lane, from) in lanes.iter_mut().zip(middle.chunks_exact(LANE)) {
        // SAFETY: SSE2 is part of the baseline; sixteen bytes are there to read; the lane is aligned and borrowed by the
        // writer, after which `with` fences.
        unsafe { _mm_stream_si128(lane, _mm_loadu_si128(from.as_ptr().cast())) };
    }
    tail.copy_from_slice(last);
}

#[cfg(not(target_arch = "x86_64"))]
fn store(from: &[u8], to: &mut [u8]) {
    to.copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_prefetched_past_the_end() {
        for left in [0, 1, 511, 512, 513, 4095, 4096, 1 << 20] {
            let Prefetch { l2, l1 } = Prefetch::of::<u32>(left);
            assert_eq!([l2, l1], [left.min(4096), left.min(512)]);
        }
        Prefetch::of::<f32>(1).after(&[1.0, 2.0], 0);
        Prefetch::of::<()>(1).after(&[()], usize::MAX);
    }

    #[test]
    fn pieces_of_any_length_land_one_after_the_other_wherever_the_memory_starts() {
        let numbers: Vec<f32> = (0..1000u16).map(f32::from).collect();
        for start in 0..20 {
            let mut memory = vec![-1.0f32; 900];
            NonTemporalWriter::with(&mut memory[start..880], |mut writer| {
                let mut from = &numbers[..];
                for len in [0, 1, 3, 4, 5, 64, 65, 400, 458] {
                    writer.write(&from[..len]);
                    from = &from[len..];
                }
            });
            assert_eq!(memory[start..880], numbers[..880 - start]);
            assert!(memory[..start].iter().chain(&memory[880..]).all(|&x| x == -1.0));
        }
    }
}
