//! Memory of the system: single allocations, and pieces of a chunk that share its huge pages.

use crate::pool::ALIGN;
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;

/// The size of a huge page.
const HUGE: usize = 2 << 20;
/// The size of a chunk, at most.
const CHUNK: usize = 16 * HUGE;

/// Memory of the system, not initialized.
#[derive(Debug)]
pub(super) struct Chunk {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a chunk owns its memory, like a Box<[u8]>; the pointer is only its address.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// `len` bytes, a multiple of [`ALIGN`] and not 0; `None` if the system has none. Large ones are aligned to huge
    /// pages, so that a kernel that streams through them has few TLB misses.
    pub(super) fn new(len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len, if len < 2 * HUGE { ALIGN } else { HUGE }).ok()?;
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { std::alloc::alloc(layout) })?;
        ask_for_huge_pages(start, layout);
        Some(Chunk { start, layout })
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Asks for huge pages, before the first write. Without them the memory is only slower.
fn ask_for_huge_pages(start: NonNull<u8>, layout: Layout) {
    #[cfg(target_os = "linux")]
    if layout.align() == HUGE {
        // SAFETY: the range was allocated just now, and advice changes nothing in it.
        unsafe { libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, layout);
}

/// The size of an ordinary page: 4 KiB on most machines, up to 64 KiB on others. A range that is returned to the system
/// ends at a page's end: the system rounds its length up, into a neighbor's bytes.
#[cfg(target_os = "linux")]
fn page() -> usize {
    // SAFETY: the call only reads a setting.
    let said = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(said).ok().filter(|page| page.is_power_of_two()).unwrap_or(HUGE)
}

/// A range of a chunk that no piece has yet, not initialized.
#[derive(Debug)]
pub(super) struct Cut {
    chunk: Arc<Chunk>,
    from: usize,
    len: usize,
}

/// Initialized bytes of a chunk that no other piece has.
#[derive(Debug)]
pub(super) struct Piece {
    start: NonNull<u8>,
    len: usize,
    chunk: Arc<Chunk>,
}

// SAFETY: a piece owns its bytes, like a Box<[u8]>.
unsafe impl Send for Piece {}
// SAFETY: shared access only reads.
unsafe impl Sync for Piece {}

impl Piece {
    /// A whole chunk of `len` bytes: a multiple of [`ALIGN`], not 0.
    pub(super) fn alone(len: usize) -> Option<Self> {
        Some(Piece::new(Cut { chunk: Arc::new(Chunk::new(len)?), from: 0, len }))
    }

    /// The bytes of a cut, zeroed.
    pub(super) fn new(Cut { chunk, from, len }: Cut) -> Self {
        // SAFETY: a cut lies inside its chunk.
        let start = unsafe { chunk.start.add(from) };
        // SAFETY: as above, and cuts of a chunk never overlap: nothing else knows of these bytes.
        unsafe { start.as_ptr().write_bytes(0, len) };
        Piece { start, len, chunk }
    }

    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len` initialized bytes as long as the chunk is there.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and no other piece has these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // other pieces may keep the chunk: the pages of this one alone are returned at once
        #[cfg(target_os = "linux")]
        if Arc::strong_count(&self.chunk) > 1 {
            let page = page();
            let skip = self.start.align_offset(page);
            let len = self.len.saturating_sub(skip) / page * page;
            if len > 0 {
                // SAFETY: whole pages of a piece that is being dropped; they are never cut again.
                unsafe { libc::madvise(self.start.as_ptr().add(skip).cast(), len, libc::MADV_DONTNEED) };
            }
        }
    }
}

/// The chunk that pieces are cut from, one after the other.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    open: Option<Arc<Chunk>>,
    /// Bytes of the open chunk that were cut.
    used: usize,
    /// Bytes that were cut from all chunks.
    total: usize,
}

impl Chunks {
    /// Cuts `len` bytes, a multiple of [`ALIGN`] and not 0; `None` for a large piece, which gets a chunk of its own,
    /// and where the system has no memory.
    pub(super) fn cut(&mut self, len: usize) -> Option<Cut> {
        if len > CHUNK / 4 {
            return None;
        }
        let chunk = match &self.open {
            Some(chunk) if len <= chunk.layout.size() - self.used => chunk.clone(),
            _ => {
                // as large as all before together: a small model gets small chunks
                let chunk = Arc::new(Chunk::new(self.total.clamp(len, CHUNK))?);
                (self.open, self.used) = (Some(chunk.clone()), 0);
                chunk
            }
        };
        let from = self.used;
        self.used += len;
        self.total += len;
        Some(Cut { chunk, from, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(chunks: &mut Chunks, len: usize) -> Piece {
        chunks.cut(len).map(Piece::new).or_else(|| Piece::alone(len)).unwrap()
    }

    #[test]
    fn pieces_are_aligned_apart_and_outlive_who_handed_them_out() {
        let mut open = Chunks::default();
        // more than a chunk in all, one of them too large to share
        let mut pieces: Vec<Piece> = [64, 1 << 20, 192, 5 << 20, 8 << 20, CHUNK, 64, 8 << 20, 8 << 20, 8 << 20]
            .map(|len| piece(&mut open, len))
            .into();
        drop(open);
        for (i, piece) in pieces.iter_mut().enumerate() {
            assert!(piece.bytes().iter().all(|&byte| byte == 0), "{i}");
            assert_eq!(piece.start.as_ptr() as usize % ALIGN, 0);
            piece.bytes_mut().fill(i as u8 + 1);
        }
        pieces.swap_remove(1);
        for piece in &pieces {
            assert!(piece.bytes().iter().all(|byte| byte == &piece.bytes()[0] && *byte != 0));
        }
    }

    #[test]
    fn what_follows_in_a_chunk_lies_side_by_side() {
        let mut open = Chunks::default();
        let [first, a, b] = [128, 64, 64].map(|len| piece(&mut open, len));
        assert_eq!(b.start.as_ptr() as usize - a.start.as_ptr() as usize, 64);
        assert!(Arc::ptr_eq(&a.chunk, &b.chunk) && !Arc::ptr_eq(&a.chunk, &first.chunk));
        assert_eq!([&first, &a].map(|piece| piece.chunk.layout.size()), [128; 2]);
    }

    /// Pages of memory that the system holds.
    #[cfg(target_os = "linux")]
    fn held(start: NonNull<u8>, len: usize) -> usize {
        let mut pages = vec![0u8; len / page()];
        // SAFETY: as many whole pages, of a chunk that is there.
        let said = unsafe { libc::mincore(start.as_ptr().cast(), len, pages.as_mut_ptr()) };
        assert_eq!(said, 0);
        pages.iter().filter(|&&page| page & 1 == 1).count()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_piece_gives_its_pages_back_while_its_neighbours_stay() {
        let mut open = Chunks::default();
        let _first = piece(&mut open, 8 << 20);
        let [a, b, c] = [1 << 20, 2 << 20, 1 << 20].map(|len| piece(&mut open, len));
        let (start, len) = (b.start, 2 << 20);
        assert!(Arc::ptr_eq(&a.chunk, &c.chunk) && (start.as_ptr() as usize).is_multiple_of(page()));
        assert_eq!(held(start, len), len / page());
        drop(b);
        assert_eq!(
            [held(start, len), held(a.start, 1 << 20), held(c.start, 1 << 20)],
            [0, 1 << 20, 1 << 20].map(|bytes| bytes / page())
        );
    }
}
