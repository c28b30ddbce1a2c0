//! A pool of aligned memory that reuses dropped blocks, with a limit and a peak.

use super::chunk::{Chunks, Piece};
use crate::pool::{ALIGN, Admitted, Pool, size_class};
use crate::{Element, Kind, Result};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

/// The byte that tests fill freed memory and new outputs with: a NaN in every floating dtype.
const POISON: u8 = 0xff;

/// A pool of memory. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Memory(Arc<Inner>);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} B in use", self.in_use())
    }
}

#[derive(Debug)]
struct Inner {
    poison: bool,
    pool: Pool<Arc<Block>>,
    /// Where long-lived blocks are cut from.
    chunks: Mutex<Chunks>,
}

impl Memory {
    /// A pool that hands out at most `limit` bytes and, for tests, `poison`s them.
    pub(super) fn new(limit: Option<usize>, poison: bool) -> Self {
        Memory(Arc::new(Inner { poison, pool: Pool::new(limit), chunks: Mutex::default() }))
    }

    /// Bytes in use.
    pub fn in_use(&self) -> usize {
        self.0.pool.in_use()
    }

    /// The most bytes that were in use at once.
    pub fn peak(&self) -> usize {
        self.0.pool.peak()
    }

    /// Starts a new measurement of [`Memory::peak`].
    pub fn reset_peak(&self) {
        self.0.pool.reset_peak();
    }

    /// Returns free memory to the system.
    pub fn trim(&self) {
        *self.0.chunks.lock().unwrap_or_else(PoisonError::into_inner) = Chunks::default();
        drop(self.0.pool.trim());
    }

    /// Memory for `len` elements. It is initialized, to unspecified values.
    pub(super) fn allocate<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        self.allocate_fit(len, Fit::Double)
    }

    /// As [`Memory::allocate`], not rounded up to a size class: for allocations that live as long as a model.
    pub(super) fn allocate_exact<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        self.allocate_fit(len, Fit::Exact)
    }

    fn allocate_fit<T: Element>(&self, len: usize, fit: Fit) -> Result<Buffer<T>> {
        let asked = len.checked_mul(size_of::<T>());
        if asked == Some(0) {
            return Ok(Buffer { bytes: Bytes { block: None }, len, element: PhantomData });
        }
        let class = asked.and_then(|bytes| fit.class(bytes)).filter(|&class| isize::try_from(class).is_ok());
        let class =
            class.ok_or(Kind::Memory { asked: asked.unwrap_or(usize::MAX), used: self.in_use(), limit: None })?;
        let mut block = self.block(class, fit)?;
        if let Some(block) = Arc::get_mut(&mut block) {
            block.owner = Some(self.clone());
            block.used = class;
            if self.0.poison {
                block.piece.bytes_mut().fill(POISON);
            }
        }
        Ok(Buffer { bytes: Bytes { block: Some(block) }, len, element: PhantomData })
    }

    /// A block that nothing else holds, without an owner yet.
    fn block(&self, class: usize, fit: Fit) -> Result<Arc<Block>> {
        let Admitted { reused, trimmed } = self.0.pool.admit(class, fit.longest(class))?;
        if !trimmed.is_empty() {
            *self.0.chunks.lock().unwrap_or_else(PoisonError::into_inner) = Chunks::default();
            drop(trimmed);
        }
        if let Some(block) = reused {
            return Ok(block);
        }
        let cut = match fit {
            Fit::Exact => self.0.chunks.lock().unwrap_or_else(PoisonError::into_inner).cut(class),
            Fit::Double => None,
        };
        // zeroes the memory, outside every lock
        let piece = cut.map(Piece::new).or_else(|| Piece::alone(class));
        let piece = piece.ok_or_else(|| self.0.pool.cancel(class))?;
        Ok(Arc::new(Block { piece, used: 0, owner: None }))
    }
}

/// Which free block serves a request.
#[derive(Clone, Copy)]
enum Fit {
    /// One of its length.
    Exact,
    /// One of its size class up to twice as long, so that memory for one sequence length serves another.
    Double,
}

impl Fit {
    /// The length of a new block.
    fn class(self, bytes: usize) -> Option<usize> {
        match self {
            Fit::Exact => bytes.max(ALIGN).checked_next_multiple_of(ALIGN),
            Fit::Double => size_class(bytes),
        }
    }

    /// The length of the longest free block that serves it.
    fn longest(self, class: usize) -> usize {
        match self {
            Fit::Exact => class,
            Fit::Double => class.saturating_mul(2),
        }
    }
}

/// Aligned and initialized memory.
#[derive(Debug)]
struct Block {
    piece: Piece,
    /// Bytes that are counted as in use.
    used: usize,
    /// The pool that counts it; `None` while it is free.
    owner: Option<Memory>,
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take() {
            owner.0.pool.forget(self.piece.bytes().len(), self.used);
        }
    }
}

/// Bytes of the pool, shared by clones; the last one to be dropped recycles them. Zero bytes have no block.
#[derive(Clone, Debug)]
pub(crate) struct Bytes {
    block: Option<Arc<Block>>,
}

/// Zero bytes at an address where a slice of any element may begin.
#[repr(align(64))]
struct Nothing([u8; 0]);

static NOTHING: Nothing = Nothing([]);

impl Bytes {
    #[inline]
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.block.as_ref().map_or(&NOTHING.0, |block| block.piece.bytes())
    }

    /// Whether both are the same memory.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.block.as_ref().zip(other.block.as_ref()).is_some_and(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// For writing, if nothing else holds them.
    pub(crate) fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        self.block.as_mut().and_then(Arc::get_mut).map(|block| block.piece.bytes_mut())
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        let Some(mut block) = self.block.take() else { return };
        // two last holders that are dropped at once may each see the other: the block then leaves the pool
        let Some(own) = Arc::get_mut(&mut block) else { return };
        let Some(owner) = own.owner.take() else { return };
        if owner.0.poison {
            own.piece.bytes_mut().fill(POISON);
        }
        let (len, used) = (own.piece.bytes().len(), own.used);
        owner.0.pool.recycle(block, len, used);
    }
}

/// Memory of the pool for `len` elements of `T` with one owner: a kernel writes its result to it.
#[derive(Debug)]
pub struct Buffer<T> {
    bytes: Bytes,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> Buffer<T> {
    pub(crate) fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

impl<T: Element> std::ops::Deref for Buffer<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.bytes.as_slice()[..self.len * size_of::<T>()])
    }
}

impl<T: Element> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let bytes = self.len * size_of::<T>();
        // a buffer never shares its bytes
        self.bytes.as_mut_slice().map_or(&mut [], |all| bytemuck::cast_slice_mut(&mut all[..bytes]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_memory_is_used_again_and_the_peak_is_remembered() {
        let memory = Memory::new(None, false);
        let first = memory.allocate::<f32>(1000).unwrap();
        let place = first.as_ptr();
        drop(first);
        let again = memory.allocate::<f32>(1000).unwrap();
        assert_eq!(again.as_ptr(), place);
        let more = memory.allocate::<f32>(1000).unwrap();
        drop((again, more));
        // less than before must not lower it
        drop(memory.allocate::<f32>(10).unwrap());
        assert_eq!((memory.in_use(), memory.peak()), (0, 2 * size_class(4000).unwrap()));
        memory.reset_peak();
        assert_eq!(memory.peak(), 0);
    }

    #[test]
    fn memory_goes_back_once_however_many_threads_let_go_of_it() {
        let memory = Memory::new(None, true);
        for _ in 0..2_000 {
            let bytes = memory.allocate::<u8>(100).unwrap().into_bytes();
            let [a, b] = [bytes.clone(), bytes.clone()];
            std::thread::scope(|scope| {
                scope.spawn(move || drop(a));
                scope.spawn(move || drop(b));
                drop(bytes);
            });
            assert_eq!(memory.in_use(), 0);
        }
        assert_eq!(memory.peak(), 128);
    }

    #[test]
    fn nothing_costs_nothing() {
        let memory = Memory::new(Some(0), true);
        let mut nothing = memory.allocate::<f32>(0).unwrap();
        assert_eq!(nothing[..], []);
        assert!(nothing[..].as_mut().is_empty() && nothing.into_bytes().as_slice().is_empty());
        assert_eq!(memory.peak(), 0);
    }

    #[test]
    fn shared_memory_is_not_written() {
        let memory = Memory::new(None, false);
        let mut bytes = memory.allocate::<u8>(100).unwrap().into_bytes();
        let other = bytes.clone();
        assert!(bytes.as_mut_slice().is_none());
        drop(other);
        assert!(bytes.as_mut_slice().is_some());
    }

    #[test]
    fn the_limit_is_an_error_with_the_sizes_in_it() {
        let memory = Memory::new(Some(1 << 20), false);
        let held = memory.allocate::<u8>(1 << 19).unwrap();
        let error = memory.allocate::<u8>(1 << 20).unwrap_err().to_string();
        assert_eq!(error, "out of memory: 1.0 MiB asked for, 512.0 KiB in use, limit 1.0 MiB");
        drop(held);
        assert!(memory.allocate::<u8>(1 << 20).is_ok());
    }

    #[test]
    fn an_absurd_size_is_refused_not_aborted() {
        assert!(Memory::new(None, false).allocate::<f32>(usize::MAX / 2).is_err());
        assert!(Memory::new(None, false).allocate::<f32>(1 << 58).is_err());
    }

    #[test]
    fn poisoned_memory_reads_as_nan() {
        let memory = Memory::new(None, true);
        assert!(memory.allocate::<f32>(100).unwrap().iter().all(|x| x.is_nan()));
    }

    #[test]
    fn exact_memory_is_no_larger_than_a_cache_line_more() {
        let memory = Memory::new(None, false);
        let held = memory.allocate_exact::<u8>((1 << 20) + 1).unwrap();
        assert_eq!((held.len(), memory.in_use()), ((1 << 20) + 1, (1 << 20) + ALIGN));
        assert!(memory.allocate_exact::<f32>(usize::MAX / 4).is_err());
    }

    #[test]
    fn a_free_block_serves_a_request_of_half_its_length_but_no_long_lived_one() {
        let memory = Memory::new(None, false);
        let large = memory.allocate::<u8>(1 << 20).unwrap();
        let place = large.as_ptr();
        drop(large);
        let half = memory.allocate::<u8>(1 << 19).unwrap();
        assert_eq!((half.as_ptr(), memory.in_use()), (place, 1 << 19));
        drop(half);
        assert_eq!(memory.in_use(), 0);
        let (small, exact) =
            (memory.allocate::<u8>((1 << 19) - 64).unwrap(), memory.allocate_exact::<u8>(1 << 19).unwrap());
        assert!(small.as_ptr() == place && exact.as_ptr() != place);
        drop(small);
        let exact = memory.allocate_exact::<u8>(1 << 19).unwrap();
        assert_ne!(exact.as_ptr(), place);
    }

    #[test]
    fn the_shortest_that_is_long_enough_is_used() {
        let memory = Memory::new(None, false);
        let [long, short] = [900_000, 600_000].map(|len| memory.allocate::<u8>(len).unwrap());
        let places = [long.as_ptr(), short.as_ptr()];
        drop((long, short));
        let [first, second] = [500_000; 2].map(|len| memory.allocate::<u8>(len).unwrap());
        assert_eq!([second.as_ptr(), first.as_ptr()], places);
    }

    #[test]
    fn free_blocks_are_returned_before_the_limit_is_passed() {
        let memory = Memory::new(Some(1 << 20), false);
        drop(memory.allocate::<u8>(1 << 19).unwrap());
        let all = memory.allocate::<u8>(1 << 20).unwrap();
        assert_eq!(memory.0.pool.held(), 1 << 20);
        drop(all);
        memory.trim();
        assert_eq!(memory.0.pool.held(), 0);
    }
}
