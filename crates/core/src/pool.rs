//! The bookkeeping of a memory pool: which blocks are free, how many bytes are in use, a limit and a peak.
//!
//! CPU and GPU memory share it. It decides under one lock whether a request is served by a free block or by a new one,
//! and counts both at once; making, zeroing and freeing blocks happen outside the lock.

use crate::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The smallest block, and what all lengths are a multiple of: a cache line, wide enough for any SIMD register.
pub(crate) const ALIGN: usize = 64;

/// The length that a request is rounded up to, so that blocks are reused: at most an eighth more than requested.
/// `None` if no memory is that large.
pub(crate) fn size_class(bytes: usize) -> Option<usize> {
    let bytes = bytes.max(ALIGN);
    let step = (bytes.checked_next_power_of_two()? / 16).max(ALIGN);
    let class = bytes.checked_next_multiple_of(step)?;
    isize::try_from(class).is_ok().then_some(class)
}

/// A pool of blocks of type `B`.
#[derive(Debug)]
pub(crate) struct Pool<B> {
    limit: Option<usize>,
    state: Mutex<State<B>>,
}

#[derive(Debug)]
struct State<B> {
    /// Free blocks, by length.
    free: BTreeMap<usize, Vec<B>>,
    /// Bytes of all blocks, free or in use.
    held: usize,
    /// Bytes in use.
    used: usize,
    peak: usize,
}

/// An admitted request: its bytes are counted as in use.
#[derive(Debug)]
pub(crate) struct Admitted<B> {
    /// The free block that serves it; without one the caller makes a new block, or calls [`Pool::cancel`].
    pub(crate) reused: Option<B>,
    /// Free blocks that had to leave the pool to stay within the limit. Drop them before making a new one.
    pub(crate) trimmed: Vec<B>,
}

impl<B> Pool<B> {
    pub(crate) fn new(limit: Option<usize>) -> Self {
        Pool { limit, state: Mutex::new(State { free: BTreeMap::new(), held: 0, used: 0, peak: 0 }) }
    }

    /// Bytes in use.
    pub(crate) fn in_use(&self) -> usize {
        self.state().used
    }

    /// The most bytes that were in use at once.
    pub(crate) fn peak(&self) -> usize {
        self.state().peak
    }

    /// Starts a new measurement of [`Pool::peak`].
    pub(crate) fn reset_peak(&self) {
        let mut state = self.state();
        state.peak = state.used;
    }

    /// Bytes of all blocks, free or in use.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.state().held
    }

    /// Admits a request of `bytes`, served by the shortest free block of `bytes` to `longest` bytes if there is one.
    ///
    /// # Errors
    /// [`Kind::Memory`] when the limit does not allow it.
    pub(crate) fn admit(&self, bytes: usize, longest: usize) -> Result<Admitted<B>> {
        let mut state = self.state();
        let after = state.used.saturating_add(bytes);
        if self.limit.is_some_and(|limit| after > limit) {
            return Err(self.refusal(bytes, state.used, self.limit));
        }
        let reused = state.free.range_mut(bytes..=longest.max(bytes)).find_map(|(_, blocks)| blocks.pop());
        let mut trimmed = Vec::new();
        if reused.is_none() {
            if self.limit.is_some_and(|limit| state.held.saturating_add(bytes) > limit) {
                trimmed = state.trim();
            }
            state.held += bytes;
        }
        state.used = after;
        state.peak = state.peak.max(after);
        Ok(Admitted { reused, trimmed })
    }

    /// Takes an admitted request back for which no new block could be made; returns the error for it.
    pub(crate) fn cancel(&self, bytes: usize) -> Error {
        let mut state = self.state();
        state.used -= bytes;
        state.held -= bytes;
        self.refusal(bytes, state.used, None)
    }

    /// Takes back a block of `len` bytes, of which `used` were counted as in use.
    pub(crate) fn recycle(&self, block: B, len: usize, used: usize) {
        let mut state = self.state();
        state.used -= used;
        state.free.entry(len).or_default().push(block);
    }

    /// Forgets a block of `len` bytes that left the pool while `used` bytes of it were in use.
    pub(crate) fn forget(&self, len: usize, used: usize) {
        let mut state = self.state();
        state.used -= used;
        state.held -= len;
    }

    /// Removes all free blocks, for the caller to drop.
    pub(crate) fn trim(&self) -> Vec<B> {
        self.state().trim()
    }

    fn refusal(&self, asked: usize, used: usize, limit: Option<usize>) -> Error {
        Kind::Memory { asked, used, limit }.into()
    }

    fn state(&self) -> MutexGuard<'_, State<B>> {
        // each change is a few assignments: a panic elsewhere leaves no half-made state
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> State<B> {
    fn trim(&mut self) -> Vec<B> {
        let mut trimmed = Vec::new();
        for (len, blocks) in std::mem::take(&mut self.free) {
            self.held -= len * blocks.len();
            trimmed.extend(blocks);
        }
        trimmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_class_wastes_at_most_an_eighth() {
        for bytes in [1, 63, 64, 65, 1000, 4097, 100_000, 1 << 20, (1 << 20) + 1] {
            let class = size_class(bytes).unwrap();
            assert!(class >= bytes && (class <= bytes + bytes / 8 || class < 1024), "{bytes} became {class}");
        }
        assert_eq!(size_class(usize::MAX), None);
        assert_eq!(size_class(isize::MAX as usize), None);
    }

    #[test]
    fn two_threads_never_pass_the_limit_together() {
        let pool = Pool::<()>::new(Some(100));
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        if pool.admit(60, 60).is_ok() {
                            over.fetch_or(pool.in_use() > 100, std::sync::atomic::Ordering::Relaxed);
                            pool.recycle((), 60, 60);
                        }
                    }
                });
            }
        });
        assert!(!over.into_inner() && pool.peak() == 60 && pool.in_use() == 0);
    }

    #[test]
    fn a_cancelled_request_is_not_counted() {
        let pool = Pool::<()>::new(None);
        assert!(pool.admit(64, 64).unwrap().reused.is_none());
        assert!(matches!(pool.cancel(64).kind(), Kind::Memory { asked: 64, used: 0, limit: None }));
        assert_eq!((pool.in_use(), pool.held()), (0, 0));
    }
}
