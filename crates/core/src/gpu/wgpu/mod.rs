//! The engine for Metal, Vulkan and DX12: one host path and one shader text through wgpu.
//!
//! Launches are recorded and submitted in batches; wgpu places the barriers between them.

mod adapter;
mod bindings;
mod cache;
mod pipeline;
mod queue;

pub(super) use adapter::adapters;
pub(super) use bindings::Binding;
pub(super) use pipeline::Pipeline;
pub use queue::BATCH;

use super::failure::Failure;
use super::variants::Variants;
use super::{Adapter, Builder, Kernel, Limits, Shader, Variant, failed};
use crate::Result;
use bindings::Bindings;
use pipeline::Pipelines;
use queue::Queue;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wgpu::BufferUsages;

/// An opened adapter: its queue and its compiled kernels.
pub(in crate::gpu) struct Engine {
    name: String,
    device: wgpu::Device,
    queue: Queue,
    pipelines: Pipelines,
    bindings: Bindings,
    failure: Failure,
    /// Whether the CPU reads buffers where they are.
    unified: bool,
    usage: BufferUsages,
    /// Buffers that were made so far.
    created: AtomicU64,
}

/// A buffer, its number among all that were ever made, and the last batch of launches that uses it.
#[derive(Debug)]
pub(in crate::gpu) struct Buffer {
    handle: wgpu::Buffer,
    number: u64,
    batch: AtomicU64,
}

/// Opens the adapter that `builder` asks for.
///
/// # Errors
/// When there is no such adapter, it lacks a feature that every kernel needs, or the driver refuses.
pub(in crate::gpu) fn open(builder: &Builder) -> Result<(Adapter, Limits, Engine)> {
    let (handle, adapter) = adapter::choose(builder.index)?;
    let name = adapter.device().to_owned();
    adapter::check_features(&name, &handle)?;
    let opened = pollster::block_on(handle.request_device(&adapter::descriptor(&handle, builder.plain)));
    let (device, queue) = opened.map_err(|e| failed(&name, format!("it cannot be opened: {e}")))?;
    let failure = Failure::default();
    let lost = failure.clone();
    device.set_device_lost_callback(move |reason, why| lost.set(format!("the device was lost ({reason:?}: {why})")));
    let wrong = failure.clone();
    device.on_uncaptured_error(Arc::new(move |error| wrong.set(error.to_string())));

    let limits = adapter::limits(&handle, &device, builder.binding_limit);
    let unified = device.features().contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS);
    let mapped = if unified { BufferUsages::MAP_READ } else { BufferUsages::empty() };
    let engine = Engine {
        pipelines: Pipelines::new(&handle, &device, limits.subgroups, builder.cache.as_deref()),
        name,
        queue: Queue::new(queue),
        bindings: Bindings::default(),
        failure,
        unified,
        usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST | mapped,
        created: AtomicU64::new(0),
        device,
    };
    Ok((adapter, limits, engine))
}

impl Engine {
    /// See [`super::engine::Engine::create`].
    pub(in crate::gpu) fn create(&self, len: usize, data: Option<&[u8]>) -> Result<Option<Buffer>> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let handle = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: len as u64,
            usage: self.usage,
            mapped_at_creation: data.is_some(),
        });
        if pollster::block_on(scope.pop()).is_some() {
            return Ok(None);
        }
        if let Some(data) = data {
            let range = handle.get_mapped_range_mut(..);
            let mut range = range.map_err(|e| failed(&self.name, format!("a buffer cannot be written: {e}")))?;
            range.slice(..data.len()).copy_from_slice(data);
            drop(range);
            handle.unmap();
        }
        let number = self.created.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Some(Buffer { handle, number, batch: AtomicU64::new(0) }))
    }

    /// See [`super::engine::Engine::reclaim`].
    pub(in crate::gpu) fn reclaim(&self) {
        self.bindings.clear();
        let _ = self.device.poll(wgpu::PollType::wait_indefinitely());
    }

    /// See [`super::engine::Engine::pipeline`].
    pub(in crate::gpu) fn pipeline(&self, kernel: &'static Kernel, variant: Variant<'_>) -> Result<Arc<Pipeline>> {
        self.pipelines.get(&self.name, kernel, variant)
    }

    /// See [`super::engine::Engine::wait`].
    pub(in crate::gpu) fn wait(&self) -> Result<()> {
        self.queue.submit(&self.device);
        self.poll()
    }

    /// See [`super::engine::Engine::check_alive`].
    pub(in crate::gpu) fn check_alive(&self) -> Result<()> {
        self.failure.check(&self.name)
    }

    /// See [`super::engine::Engine::shaders`].
    pub(in crate::gpu) fn shaders(&self) -> Vec<Shader> {
        self.pipelines.shaders()
    }

    /// See [`super::engine::Engine::destroy_for_test`].
    pub(in crate::gpu) fn destroy_for_test(&self) {
        self.device.destroy();
    }

    /// Groups of bindings that are cached.
    #[cfg(test)]
    pub(in crate::gpu) fn cached_bindings(&self) -> usize {
        self.bindings.len()
    }

    /// Whether the file of compiled kernels was there and sound; `None` if the driver keeps none.
    #[cfg(test)]
    pub(in crate::gpu) fn cache_was_found(&self) -> Option<bool> {
        self.pipelines.cache.as_ref().map(|cache| cache.was_found())
    }

    /// Waits for everything that was submitted.
    fn poll(&self) -> Result<()> {
        let waited = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check_alive()?;
        waited.map(drop).map_err(|e| failed(&self.name, e.to_string()))
    }

    /// Waits for everything that was submitted, and reads bytes of a buffer; see [`super::engine::Engine::read`].
    pub(in crate::gpu) fn read(&self, buffer: &Buffer, capacity: usize, range: Range<usize>) -> Result<Vec<u8>> {
        self.check_alive()?;
        // a mapping starts at a multiple of 8 and holds a multiple of 4
        let (first, end) = (range.start & !7, range.end.next_multiple_of(4).min(capacity));
        if range.is_empty() {
            return Ok(Vec::new());
        }
        if self.unified {
            // other threads launch while this one waits; a buffer that is mapped must not be launched on
            self.wait()?;
            let mut batch = self.queue.lock();
            self.queue.submit_batch(&self.device, &mut batch);
            return self.map(&buffer.handle, first..end, range);
        }
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read"),
            size: (end - first) as u64,
            usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        {
            let mut batch = self.queue.lock();
            let encoder = batch.encoder(&self.device);
            encoder.copy_buffer_to_buffer(&buffer.handle, first as u64, &staging, 0, (end - first) as u64);
            self.queue.submit_batch(&self.device, &mut batch);
        }
        self.map(&staging, 0..end - first, range.start - first..range.end - first)
    }

    /// Maps `mapped` bytes of a buffer and copies `wanted` bytes of the buffer out of them.
    fn map(&self, buffer: &wgpu::Buffer, mapped: Range<usize>, wanted: Range<usize>) -> Result<Vec<u8>> {
        let slice = buffer.slice(mapped.start as u64..mapped.end as u64);
        let (sender, receiver) = std::sync::mpsc::channel();
        slice.map_async(wgpu::MapMode::Read, move |result| drop(sender.send(result)));
        self.poll()?;
        let wrong = |e: String| failed(&self.name, format!("a tensor cannot be read: {e}"));
        receiver.recv().map_err(|e| wrong(e.to_string()))?.map_err(|e| wrong(e.to_string()))?;
        let data = {
            let bytes = slice.get_mapped_range().map_err(|e| wrong(e.to_string()))?;
            bytes[wanted.start - mapped.start..][..wanted.len()].to_vec()
        };
        buffer.unmap();
        Ok(data)
    }
}
