//! A pool of GPU buffers that reuses dropped ones, with a limit and a peak.
//!
//! A dropped buffer may be reused while launches that use it are still enqueued: the queue runs in order.

use super::engine::{Buffer, Engine};
use super::{Gpu, failed};
use crate::pool::{Admitted, Pool, size_class};
use crate::{DType, Kind, Result};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A pool of buffers. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Memory(Arc<Inner>);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} B in use", self.in_use())
    }
}

struct Inner {
    name: String,
    engine: Arc<Engine>,
    /// The most bytes of a buffer.
    longest: usize,
    pool: Pool<Block>,
}

/// A buffer of one size class.
#[derive(Debug)]
struct Block {
    buffer: Buffer,
    class: usize,
}

impl Memory {
    pub(super) fn new(name: &str, engine: &Arc<Engine>, limit: Option<usize>, longest: usize) -> Self {
        Memory(Arc::new(Inner { name: name.to_owned(), engine: engine.clone(), longest, pool: Pool::new(limit) }))
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

    /// Memory for this many bytes, rounded up to a size class, with unspecified contents.
    ///
    /// # Errors
    /// When the limit, the largest buffer or the device's memory does not allow it.
    pub(super) fn allocate(&self, bytes: usize) -> Result<Bytes> {
        self.block(bytes, None).map(|(bytes, _)| bytes)
    }

    /// Memory that holds `data`: a new buffer is made with it, a reused one is written.
    ///
    /// # Errors
    /// As [`Memory::allocate`].
    pub(super) fn allocate_with(&self, data: &[u8]) -> Result<Bytes> {
        let (bytes, reused) = self.block(data.len(), Some(data))?;
        if reused {
            self.0.engine.write(bytes.buffer()?, data)?;
        }
        Ok(bytes)
    }

    /// A block for this many bytes, and whether it was in use before.
    fn block(&self, bytes: usize, data: Option<&[u8]>) -> Result<(Bytes, bool)> {
        let inner = &*self.0;
        let class = self.class(bytes)?;
        let Admitted { reused, trimmed } = inner.pool.admit(class, class)?;
        if !trimmed.is_empty() {
            drop(trimmed);
            inner.engine.reclaim();
        }
        let (block, reused) = match reused {
            Some(block) => (block, true),
            None => (self.create(class, data)?, false),
        };
        Ok((Bytes { block: Some(block), memory: self.clone(), mirror: None, stale: AtomicBool::new(false) }, reused))
    }

    /// The size class of a request.
    ///
    /// # Errors
    /// When no buffer is that large.
    fn class(&self, bytes: usize) -> Result<usize> {
        let too_large = Kind::Memory { asked: bytes, used: self.in_use(), limit: None };
        let class = size_class(bytes).ok_or(too_large)?;
        if class > self.0.longest {
            let [asked, most] = [class, self.0.longest].map(crate::error::Bytes);
            let why = format!("a tensor needs {asked}, but a buffer holds at most {most}; use smaller sizes");
            return Err(failed(&self.0.name, why));
        }
        Ok(class)
    }

    /// Host memory of zeros whose contents fit a buffer.
    ///
    /// # Errors
    /// When no buffer is that large, or the host is out of memory.
    pub(crate) fn host_buffer(&self, bytes: usize) -> Result<Vec<u8>> {
        self.class(bytes)?;
        let mut buffer = Vec::new();
        let refused = |_| Kind::Memory { asked: bytes, used: self.in_use(), limit: None };
        buffer.try_reserve_exact(bytes).map_err(refused)?;
        buffer.resize(bytes, 0);
        Ok(buffer)
    }

    fn create(&self, class: usize, data: Option<&[u8]>) -> Result<Block> {
        let inner = &*self.0;
        let created = inner.engine.create(class, data).and_then(|buffer| match buffer {
            Some(buffer) => Ok(Some(buffer)),
            // free buffers go back to the driver before a request is refused
            None => {
                drop(inner.pool.trim());
                inner.engine.reclaim();
                inner.engine.create(class, data)
            }
        });
        match created {
            Ok(Some(buffer)) => Ok(Block { buffer, class }),
            Ok(None) => Err(inner.pool.cancel(class)),
            Err(error) => {
                inner.pool.cancel(class);
                Err(error)
            }
        }
    }
}

/// A buffer of the pool, recycled when dropped.
#[derive(Debug)]
pub(crate) struct Bytes {
    block: Option<Block>,
    memory: Memory,
    /// The host's copy of u32 elements that came from there: ids and offsets are checked without a read.
    mirror: Option<Vec<u32>>,
    /// Whether a launch wrote to the buffer since.
    stale: AtomicBool,
}

impl Bytes {
    /// Keeps the elements that the buffer was made with.
    pub(super) fn with_mirror(mut self, elements: Vec<u32>) -> Self {
        self.mirror = Some(elements);
        self
    }

    /// The elements as the host knows them; `None` if a launch may have written others.
    pub(crate) fn mirror(&self) -> Option<&[u32]> {
        self.mirror.as_deref().filter(|_| !self.stale.load(Ordering::Acquire))
    }

    /// A launch writes to the buffer.
    pub(super) fn invalidate_mirror(&self) {
        self.stale.store(true, Ordering::Release);
    }

    /// # Errors
    /// Never, until it is dropped.
    pub(super) fn buffer(&self) -> Result<&Buffer> {
        let block = self.block.as_ref().ok_or_else(|| failed(&self.memory.0.name, "a buffer is gone"))?;
        Ok(&block.buffer)
    }

    /// The bytes of the whole buffer.
    pub(super) fn capacity(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.class)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            let class = block.class;
            self.memory.0.pool.recycle(block, class, class);
        }
    }
}

/// The storage that a GPU hands out; `tensor` makes tensors of it.
impl Gpu {
    /// Memory of this many bytes with unspecified contents.
    pub(crate) fn allocated(&self, bytes: usize) -> Result<Arc<Bytes>> {
        Ok(Arc::new(self.memory().allocate(bytes)?))
    }

    /// Memory of this many bytes, all zero.
    pub(crate) fn zeroed(&self, bytes: usize) -> Result<Arc<Bytes>> {
        let bytes = self.memory().allocate(bytes)?;
        self.engine().clear(bytes.buffer()?)?;
        Ok(Arc::new(bytes))
    }

    /// The memory of these bytes. Ids keep their host mirror.
    pub(crate) fn uploaded(&self, data: &[u8], dtype: DType) -> Result<Arc<Bytes>> {
        self.check_alive()?;
        let bytes = self.memory().allocate_with(data)?;
        let is_mirrored = dtype == DType::U32;
        Ok(Arc::new(if is_mirrored { bytes.with_mirror(bytemuck::pod_collect_to_vec(data)) } else { bytes }))
    }

    /// Reads this range of memory. Waits for the launches before.
    pub(crate) fn downloaded(&self, bytes: &Bytes, range: Range<usize>) -> Result<Vec<u8>> {
        self.engine().read(bytes.buffer()?, bytes.capacity(), range)
    }
}
