//! A pool of buffers that reuses what was dropped, with a limit and a peak.
//!
//! A dropped buffer may be handed out while launches that use it are still queued: the queue runs in order.

use super::failed;
use crate::pool::size_class;
use crate::{Error, Kind, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wgpu::BufferUsages;

/// A pool of buffers. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Memory(Arc<Pool>);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} B in use", self.in_use())
    }
}

struct Pool {
    device: wgpu::Device,
    name: String,
    limit: Option<usize>,
    largest: usize,
    usage: BufferUsages,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    free: HashMap<usize, Vec<Block>>,
    kept: usize,
    used: usize,
    peak: usize,
    /// Buffers that were made so far.
    made: u64,
    /// What binds buffers, by what it binds: a step of training binds the same ones as the step before.
    groups: HashMap<Box<[u64]>, wgpu::BindGroup>,
}

impl Books {
    /// Gives what nobody uses back to the driver, with all that might hold it.
    fn give_back(&mut self) {
        self.free.clear();
        self.kept = 0;
        self.groups.clear();
    }
}

/// Groups that are remembered at most.
const GROUPS: usize = 1 << 13;

/// A buffer, its number among all that were ever made, and the batch of launches that used it last.
#[derive(Debug)]
struct Block {
    buffer: wgpu::Buffer,
    number: u64,
    class: usize,
    batch: AtomicU64,
}

impl Memory {
    pub(super) fn new(name: &str, device: &wgpu::Device, limit: Option<usize>, largest: usize, unified: bool) -> Self {
        let mapped = if unified { BufferUsages::MAP_READ } else { BufferUsages::empty() };
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST | mapped;
        let books = Mutex::default();
        Memory(Arc::new(Pool { device: device.clone(), name: name.to_owned(), limit, largest, usage, books }))
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

    fn books(&self) -> MutexGuard<'_, Books> {
        // the books stay true when a thread panics elsewhere: each change below is a few assignments
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for so many bytes, rounded up to a size class; what it holds is not said.
    pub(super) fn take(&self, bytes: usize) -> Result<Bytes> {
        let class = self.admit(bytes)?;
        let reused = {
            let mut books = self.books();
            let block = books.free.get_mut(&class).and_then(Vec::pop);
            books.kept -= block.as_ref().map_or(0, |block| block.class);
            block
        };
        match reused {
            Some(block) => Ok(self.hand_out(block)),
            None => self.create(class, Mapped::No).map(|block| self.hand_out(block)),
        }
    }

    /// Memory that holds these bytes, without a second copy on the way where a new buffer is needed anyway.
    pub(super) fn fill(&self, data: &[u8], write: impl FnOnce(&Bytes)) -> Result<Bytes> {
        let class = self.admit(data.len())?;
        if self.books().free.get(&class).is_some_and(|blocks| !blocks.is_empty()) {
            let bytes = self.take(data.len())?;
            write(&bytes);
            return Ok(bytes);
        }
        let block = self.create(class, Mapped::Yes)?;
        let range = block.buffer.get_mapped_range_mut(..);
        let mut range = range.map_err(|e| failed(&self.0.name, format!("a buffer cannot be written: {e}")))?;
        range.slice(..data.len()).copy_from_slice(data);
        drop(range);
        block.buffer.unmap();
        Ok(self.hand_out(block))
    }

    /// The size class of a request that the limits admit.
    fn admit(&self, bytes: usize) -> Result<usize> {
        let limit = self.0.limit;
        let refused = |asked, used| Error::from(Kind::Memory { asked, used, limit });
        let mut books = self.books();
        let class = size_class(bytes).ok_or_else(|| refused(bytes, books.used))?;
        if class > self.0.largest {
            let [asked, most] = [class, self.0.largest].map(crate::error::Bytes);
            let why =
                format!("a tensor of {asked} was asked for, but a buffer holds at most {most}; use smaller sizes");
            return Err(failed(&self.0.name, why));
        }
        if let Some(limit) = limit {
            if books.used + class > limit {
                return Err(refused(class, books.used));
            }
            if books.used + class + books.kept > limit {
                books.give_back();
            }
        }
        Ok(class)
    }

    fn create(&self, class: usize, mapped: Mapped) -> Result<Block> {
        if let Some(block) = self.try_create(class, mapped) {
            return Ok(block);
        }
        // what nobody uses goes back to the driver before a request is refused
        self.books().give_back();
        let _ = self.0.device.poll(wgpu::PollType::wait_indefinitely());
        let block = self.try_create(class, mapped);
        block.ok_or_else(|| Kind::Memory { asked: class, used: self.in_use(), limit: None }.into())
    }

    fn try_create(&self, class: usize, mapped: Mapped) -> Option<Block> {
        let scope = self.0.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.0.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: class as u64,
            usage: self.0.usage,
            mapped_at_creation: mapped == Mapped::Yes,
        });
        if pollster::block_on(scope.pop()).is_some() {
            return None;
        }
        let mut books = self.books();
        books.made += 1;
        Some(Block { buffer, number: books.made, class, batch: AtomicU64::new(0) })
    }

    /// The group of this key, which says by numbers of buffers what it binds; it is made where it is not remembered.
    pub(super) fn group(&self, key: &[u64], make: impl FnOnce() -> Result<wgpu::BindGroup>) -> Result<wgpu::BindGroup> {
        if let Some(group) = self.books().groups.get(key) {
            return Ok(group.clone());
        }
        let group = make()?;
        let mut books = self.books();
        if books.groups.len() >= GROUPS {
            books.groups.clear();
        }
        books.groups.insert(key.into(), group.clone());
        Ok(group)
    }

    /// How many groups are remembered.
    #[cfg(test)]
    pub(super) fn groups(&self) -> usize {
        self.books().groups.len()
    }

    fn hand_out(&self, block: Block) -> Bytes {
        let mut books = self.books();
        books.used += block.class;
        books.peak = books.peak.max(books.used);
        Bytes { block: Some(block), memory: self.clone(), known: None }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Mapped {
    No,
    Yes,
}

/// A buffer of the pool; it goes back when dropped.
#[derive(Debug)]
pub(crate) struct Bytes {
    block: Option<Block>,
    memory: Memory,
    /// What whole numbers that came from the processor are: ids and offsets are checked without a read.
    known: Option<Vec<u32>>,
}

impl Bytes {
    pub(super) fn remember(&mut self, numbers: Vec<u32>) {
        self.known = Some(numbers);
    }

    pub(crate) fn known(&self) -> Option<&[u32]> {
        self.known.as_deref()
    }

    /// A kernel will write here.
    pub(crate) fn forget(&mut self) {
        self.known = None;
    }

    pub(super) fn buffer(&self) -> Option<&wgpu::Buffer> {
        self.block.as_ref().map(|block| &block.buffer)
    }

    /// The buffer's number among all that were ever made.
    pub(super) fn number(&self) -> u64 {
        self.block.as_ref().map_or(0, |block| block.number)
    }

    /// The bytes of the whole buffer.
    pub(super) fn capacity(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.class)
    }

    /// Remembers that launches of this batch use it.
    pub(super) fn touch(&self, batch: u64) {
        if let Some(block) = &self.block {
            block.batch.store(batch, Ordering::Relaxed);
        }
    }

    /// Whether launches of this batch use it.
    pub(super) fn touched(&self, batch: u64) -> bool {
        self.block.as_ref().is_some_and(|block| block.batch.load(Ordering::Relaxed) == batch)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        let Some(block) = self.block.take() else { return };
        let mut books = self.memory.books();
        books.used -= block.class;
        books.kept += block.class;
        books.free.entry(block.class).or_default().push(block);
    }
}
