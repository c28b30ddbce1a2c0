//! Stores past the caches.

use crate::Element;

/// Asks for the line of the element `at` places after the start of `x` to be brought into the second cache. It may lie
/// past the end: nothing is read.
#[inline(always)]
pub fn prefetch<T>(x: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes nothing that a program can see and faults nowhere; SSE is part of the baseline.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(x.as_ptr().wrapping_add(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (x, at);
}

/// How far ahead a kernel asks for memory that it reads in order, line by line: 16 KiB for the second cache, because memory
/// answers late and of what is asked for of the first cache little can be under way; 2 KiB for the first.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    far: usize,
    near: usize,
}

impl Ahead {
    /// Where so many elements are still to come: never past them, where a page may be that nobody has, for which a processor
    /// looks in vain each time.
    #[inline(always)]
    pub fn of<T>(left: usize) -> Self {
        Ahead { far: left.min((16 << 10) / size_of::<T>()), near: left.min((2 << 10) / size_of::<T>()) }
    }

    /// Asks for what comes after the element at `at`.
    #[inline(always)]
    pub fn prefetch<T>(self, x: &[T], at: usize) {
        prefetch(x, at + self.far);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at + self.near).cast());
        }
    }
}

/// How a kernel stores. Only a [`Stream`] lets it store past the caches, because there a fence has to follow.
#[derive(Clone, Copy, Debug)]
pub struct Stores {
    pub(super) past: bool,
}

impl Stores {
    /// As stores are.
    pub const ORDINARY: Self = Stores { past: false };
}

/// Memory that is written once, from its start on, past the caches.
///
/// An ordinary store reads the line that it is about to change, and the line pushes another out of the caches: for
/// nothing, where a result is written whole and too large to be found there later. Only x86-64 has to be told; other
/// processors see that whole lines are written, and get ordinary stores.
#[derive(Debug)]
pub struct Stream<'a, T: Element> {
    rest: &'a mut [T],
}

impl<'a, T: Element> Stream<'a, T> {
    /// Bytes of a result from which on this is worth it: below, the caches may still hold it when it is read. Few where
    /// assertions are on, so that tests come here, too.
    pub const WORTH: usize = if cfg!(debug_assertions) { 64 << 10 } else { 16 << 20 };

    /// Nothing is written yet.
    pub fn new(memory: &'a mut [T]) -> Self {
        Stream { rest: memory }
    }

    /// The next `len` elements, for a kernel that writes all of them, and how it may: each once, none read.
    pub fn next(&mut self, len: usize) -> (&mut [T], Stores) {
        (self.rest.split_off_mut(..len).unwrap_or_default(), Stores { past: true })
    }

    /// Writes the next elements, as many as there is room for.
    pub fn write(&mut self, from: &[T]) {
        let len = from.len().min(self.rest.len());
        let (to, rest) = std::mem::take(&mut self.rest).split_at_mut(len);
        self.rest = rest;
        store(bytemuck::cast_slice(&from[..len]), bytemuck::cast_slice_mut(to));
    }
}

/// What was written is there for every thread.
impl<T: Element> Drop for Stream<'_, T> {
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
        // SAFETY: SSE2 is part of the baseline; sixteen bytes are there to read; the lane is aligned and borrowed by
        // the stream, whose end fences before anyone else may look.
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
    fn nothing_is_asked_for_past_the_end() {
        for left in [0, 1, 511, 512, 513, 4095, 4096, 1 << 20] {
            let Ahead { far, near } = Ahead::of::<u32>(left);
            assert_eq!([far, near], [left.min(4096), left.min(512)]);
        }
        Ahead::of::<f32>(1).prefetch(&[1.0, 2.0], 0);
    }

    #[test]
    fn pieces_of_any_length_land_one_after_the_other_wherever_the_memory_starts() {
        let numbers: Vec<f32> = (0..1000u16).map(f32::from).collect();
        for start in 0..20 {
            let mut memory = vec![-1.0f32; 900];
            let mut stream = Stream::new(&mut memory[start..880]);
            let mut from = &numbers[..];
            for len in [0, 1, 3, 4, 5, 64, 65, 400, 458] {
                stream.write(&from[..len]);
                from = &from[len..];
            }
            drop(stream);
            assert_eq!(memory[start..880], numbers[..880 - start]);
            assert!(memory[..start].iter().chain(&memory[880..]).all(|&x| x == -1.0));
        }
    }
}
