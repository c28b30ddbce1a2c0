//! A pool of aligned memory that reuses what was dropped, with a limit and a peak.

use super::chunk::{ALIGN, Open, Piece};
use crate::{Element, Error, Kind, Result};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What freed memory and new outputs are filled with where tests ask for it: a NaN in every floating type.
const POISON: u8 = 0xff;

/// A pool of memory. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Memory(Arc<Pool>);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} B in use", self.in_use())
    }
}

#[derive(Debug)]
struct Pool {
    limit: Option<usize>,
    poison: bool,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    /// What nobody uses, by its length.
    free: BTreeMap<usize, Vec<Arc<Block>>>,
    /// Where what lives long is taken from.
    open: Open,
    /// Bytes that the system gave.
    held: usize,
    /// Bytes that were asked for and are in use.
    used: usize,
    peak: usize,
}

impl Books {
    /// Gives what nobody uses back to the system.
    fn trim(&mut self) {
        self.open = Open::default();
        for (len, blocks) in std::mem::take(&mut self.free) {
            self.held -= len * blocks.len();
        }
    }

    /// What nobody uses and is at least so long, but not longer than `most`: the shortest.
    fn find(&mut self, least: usize, most: usize) -> Option<Arc<Block>> {
        self.free.range_mut(least..=most).find_map(|(_, blocks)| blocks.pop())
    }
}

impl Memory {
    /// A pool that hands out at most `limit` bytes and, for tests, `poison`s what it hands out.
    pub(super) fn new(limit: Option<usize>, poison: bool) -> Self {
        Memory(Arc::new(Pool { limit, poison, books: Mutex::default() }))
    }

    /// Bytes handed out now.
    pub fn in_use(&self) -> usize {
        self.books().used
    }

    /// The most bytes that were handed out at once.
    pub fn peak(&self) -> usize {
        self.books().peak
    }

    /// Starts a new measurement of [`Memory::peak`].
    pub fn reset_peak(&self) {
        let mut books = self.books();
        books.peak = books.used;
    }

    /// Gives memory that nobody uses back to the system.
    pub fn trim(&self) {
        self.books().trim();
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // the books stay true when a thread panics elsewhere: each change below is a few assignments
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for `len` elements. It is initialised, but with what is not said.
    pub(super) fn take<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        self.take_fit(len, Fit::Double)
    }

    /// As [`Memory::take`], but no larger than asked for: what lives long is not worth room for others to reuse it.
    pub(super) fn take_exact<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        self.take_fit(len, Fit::Exact)
    }

    fn take_fit<T: Element>(&self, len: usize, fit: Fit) -> Result<Buffer<T>> {
        let asked = len.checked_mul(size_of::<T>());
        if asked == Some(0) {
            return Ok(Buffer { bytes: Bytes { block: None }, len, element: PhantomData });
        }
        let class = asked.and_then(|bytes| fit.class(bytes)).filter(|&class| isize::try_from(class).is_ok());
        let class =
            class.ok_or(Kind::Memory { asked: asked.unwrap_or(usize::MAX), used: self.in_use(), limit: None })?;
        let mut block = self.block(class, fit)?;
        if let Some(block) = Arc::get_mut(&mut block) {
            block.home = Some(self.clone());
            block.used = class;
            if self.0.poison {
                block.piece.bytes_mut().fill(POISON);
            }
        }
        Ok(Buffer { bytes: Bytes { block: Some(block) }, len, element: PhantomData })
    }

    /// A block that nobody else holds, for now without a home.
    fn block(&self, class: usize, fit: Fit) -> Result<Arc<Block>> {
        let mut books = self.books();
        let refused = |used, limit| Error::from(Kind::Memory { asked: class, used, limit });
        let after = books.used + class;
        if self.0.limit.is_some_and(|limit| after > limit) {
            return Err(refused(books.used, self.0.limit));
        }
        let block = match books.find(class, fit.most(class)) {
            Some(block) => block,
            None => {
                if self.0.limit.is_some_and(|limit| books.held + class > limit) {
                    books.trim();
                }
                let piece = match fit {
                    Fit::Exact => books.open.piece(class),
                    Fit::Double => Piece::alone(class),
                };
                let piece = piece.ok_or_else(|| refused(books.used, None))?;
                books.held += class;
                Arc::new(Block { piece, used: 0, home: None })
            }
        };
        books.used = after;
        books.peak = books.peak.max(after);
        Ok(block)
    }

    /// Takes back a block that nobody else holds: its count of holders is reused with it, so that handing it out again
    /// asks the system for nothing.
    fn keep(&self, block: Arc<Block>) {
        let mut books = self.books();
        books.used -= block.used;
        books.free.entry(block.piece.bytes().len()).or_default().push(block);
    }
}

/// Which block serves a request.
#[derive(Clone, Copy)]
enum Fit {
    /// One of its length.
    Exact,
    /// One of its size class or, where that is free, up to twice as long, so that what was used for one length of a text serves
    /// another.
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

    /// The length of a free one, at most.
    fn most(self, class: usize) -> usize {
        match self {
            Fit::Exact => class,
            Fit::Double => class.saturating_mul(2),
        }
    }
}

/// The size that a request is rounded up to, so that blocks are reused: at most an eighth more than was asked for.
pub(crate) fn size_class(bytes: usize) -> Option<usize> {
    let bytes = bytes.max(ALIGN);
    let step = (bytes.checked_next_power_of_two()? / 16).max(ALIGN);
    let class = bytes.checked_next_multiple_of(step)?;
    isize::try_from(class).is_ok().then_some(class)
}

/// Aligned and initialised memory.
#[derive(Debug)]
struct Block {
    piece: Piece,
    /// How much of it was asked for.
    used: usize,
    /// Whose books it is in; none while the pool keeps it.
    home: Option<Memory>,
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let mut books = home.books();
            books.used -= self.used;
            books.held -= self.piece.bytes().len();
        }
    }
}

/// Bytes of the pool, shared by its clones; they go back when the last one is dropped. No bytes have no block.
#[derive(Clone, Debug)]
pub(crate) struct Bytes {
    block: Option<Arc<Block>>,
}

/// No bytes, where a slice of any element may begin.
#[repr(align(64))]
struct Nothing([u8; 0]);

static NOTHING: Nothing = Nothing([]);

impl Bytes {
    #[inline]
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.block.as_ref().map_or(&NOTHING.0, |block| block.piece.bytes())
    }

    /// For writing, if nobody else holds them.
    pub(crate) fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        self.block.as_mut().and_then(Arc::get_mut).map(|block| block.piece.bytes_mut())
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        let Some(mut block) = self.block.take() else { return };
        // of two last holders that leave at the same moment each may see the other: the block then leaves the pool
        let Some(own) = Arc::get_mut(&mut block) else { return };
        let Some(home) = own.home.take() else { return };
        if home.0.poison {
            own.piece.bytes_mut().fill(POISON);
        }
        home.keep(block);
    }
}

/// Memory of the pool for `len` elements of `T`, owned by one holder: where a kernel writes its result.
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
        let first = memory.take::<f32>(1000).unwrap();
        let place = first.as_ptr();
        drop(first);
        let again = memory.take::<f32>(1000).unwrap();
        assert_eq!(again.as_ptr(), place);
        let more = memory.take::<f32>(1000).unwrap();
        drop((again, more));
        // less than before must not lower it
        drop(memory.take::<f32>(10).unwrap());
        assert_eq!((memory.in_use(), memory.peak()), (0, 2 * size_class(4000).unwrap()));
        memory.reset_peak();
        assert_eq!(memory.peak(), 0);
    }

    #[test]
    fn memory_goes_back_once_however_many_threads_let_go_of_it() {
        let memory = Memory::new(None, true);
        for _ in 0..2_000 {
            let bytes = memory.take::<u8>(100).unwrap().into_bytes();
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
        let mut nothing = memory.take::<f32>(0).unwrap();
        assert_eq!(nothing[..], []);
        assert!(nothing[..].as_mut().is_empty() && nothing.into_bytes().as_slice().is_empty());
        assert_eq!(memory.peak(), 0);
    }

    #[test]
    fn shared_memory_is_not_written() {
        let memory = Memory::new(None, false);
        let mut bytes = memory.take::<u8>(100).unwrap().into_bytes();
        let other = bytes.clone();
        assert!(bytes.as_mut_slice().is_none());
        drop(other);
        assert!(bytes.as_mut_slice().is_some());
    }

    #[test]
    fn the_limit_is_an_error_with_the_sizes_in_it() {
        let memory = Memory::new(Some(1 << 20), false);
        let held = memory.take::<u8>(1 << 19).unwrap();
        let error = memory.take::<u8>(1 << 20).unwrap_err().to_string();
        assert_eq!(error, "out of memory: 1.0 MiB asked for, 512.0 KiB in use, limit 1.0 MiB");
        drop(held);
        assert!(memory.take::<u8>(1 << 20).is_ok());
    }

    #[test]
    fn an_absurd_size_is_refused_not_aborted() {
        assert!(Memory::new(None, false).take::<f32>(usize::MAX / 2).is_err());
        assert!(Memory::new(None, false).take::<f32>(1 << 58).is_err());
    }

    #[test]
    fn poisoned_memory_reads_as_nan() {
        let memory = Memory::new(None, true);
        assert!(memory.take::<f32>(100).unwrap().iter().all(|x| x.is_nan()));
    }

    #[test]
    fn exact_memory_is_no_larger_than_a_cache_line_more() {
        let memory = Memory::new(None, false);
        let held = memory.take_exact::<u8>((1 << 20) + 1).unwrap();
        assert_eq!((held.len(), memory.in_use()), ((1 << 20) + 1, (1 << 20) + ALIGN));
        assert!(memory.take_exact::<f32>(usize::MAX / 4).is_err());
    }

    #[test]
    fn what_nobody_uses_serves_a_request_of_half_its_length_but_none_that_stays() {
        let memory = Memory::new(None, false);
        let large = memory.take::<u8>(1 << 20).unwrap();
        let place = large.as_ptr();
        drop(large);
        let half = memory.take::<u8>(1 << 19).unwrap();
        assert_eq!((half.as_ptr(), memory.in_use()), (place, 1 << 19));
        drop(half);
        assert_eq!(memory.in_use(), 0);
        let (small, exact) = (memory.take::<u8>((1 << 19) - 64).unwrap(), memory.take_exact::<u8>(1 << 19).unwrap());
        assert!(small.as_ptr() == place && exact.as_ptr() != place);
        drop(small);
        let exact = memory.take_exact::<u8>(1 << 19).unwrap();
        assert_ne!(exact.as_ptr(), place);
    }

    #[test]
    fn the_shortest_that_is_long_enough_is_used() {
        let memory = Memory::new(None, false);
        let [long, short] = [900_000, 600_000].map(|len| memory.take::<u8>(len).unwrap());
        let places = [long.as_ptr(), short.as_ptr()];
        drop((long, short));
        let [first, second] = [500_000; 2].map(|len| memory.take::<u8>(len).unwrap());
        assert_eq!([second.as_ptr(), first.as_ptr()], places);
    }

    #[test]
    fn what_nobody_uses_goes_back_before_the_limit_is_passed() {
        let memory = Memory::new(Some(1 << 20), false);
        drop(memory.take::<u8>(1 << 19).unwrap());
        let all = memory.take::<u8>(1 << 20).unwrap();
        assert_eq!(memory.books().held, 1 << 20);
        drop(all);
        memory.trim();
        assert_eq!(memory.books().held, 0);
    }

    #[test]
    fn a_size_class_wastes_at_most_an_eighth() {
        for bytes in [1, 63, 64, 65, 1000, 4097, 100_000, 1 << 20, (1 << 20) + 1] {
            let class = size_class(bytes).unwrap();
            assert!(class >= bytes && (class <= bytes + bytes / 8 || class < 1024), "{bytes} became {class}");
        }
    }
}
