//! Launches: recorded, submitted in batches, run in order.

use super::kernel::{Compiled, Variant};
use super::{Gpu, Kernel, failed};
use crate::{DType, Result, Tensor};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Launches that are submitted together: enough to make a submission cheap, few enough that the GPU starts early.
pub const BATCH: usize = 64;

/// One run of a kernel.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What runs.
    pub kernel: &'static Kernel,
    /// The function of its text that is called.
    pub entry: &'static str,
    /// Numbers that the text is compiled with.
    pub constants: &'a [(&'static str, u32)],
    /// Storage types that the text is compiled with: `("X", dtype)` makes `X4`, `widen_X` and `narrow_X`.
    pub stored: &'a [(&'static str, DType)],
    /// The tensors, by number of binding.
    pub binds: &'a [Bind<'a>],
    /// The immediates: a struct of u32 and f32 fields, as the text declares it.
    pub params: &'a [u8],
    /// How many workgroups.
    pub groups: Groups,
}

/// A tensor as a kernel sees it.
#[derive(Clone, Debug)]
pub enum Bind<'a> {
    /// All of it.
    All(&'a Tensor),
    /// These bytes of it; the first is a multiple of [`Limits::alignment`](super::Limits).
    Part(&'a Tensor, Range<usize>),
    /// Nothing: the function does not read this binding.
    Unused,
}

/// The grid of a launch.
#[derive(Clone, Copy, Debug)]
pub enum Groups {
    /// So many in a row; where one axis cannot hold them they go on along the next, and `group_index` in the text
    /// counts through. A kernel asked for more than there are ends at once.
    Line(usize),
    /// Along each axis.
    Grid([usize; 3]),
}

/// The queue and what was recorded since the last submission.
pub(super) struct Queue {
    queue: wgpu::Queue,
    batch: Mutex<Batch>,
}

struct Batch {
    number: u64,
    launches: usize,
    // before the encoder: a pass ends before its encoder
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
}

impl Batch {
    /// The encoder outside a pass, for copies.
    fn encoder(&mut self, device: &wgpu::Device) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        self.encoder.get_or_insert_with(|| device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()))
    }

    fn pass(&mut self, device: &wgpu::Device) -> &mut wgpu::ComputePass<'static> {
        let encoder = self
            .encoder
            .get_or_insert_with(|| device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()));
        self.pass.get_or_insert_with(|| {
            encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime()
        })
    }
}

impl Queue {
    pub(super) fn new(queue: wgpu::Queue) -> Self {
        Queue { queue, batch: Mutex::new(Batch { number: 1, launches: 0, pass: None, encoder: None }) }
    }

    fn batch(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submits what was recorded.
    pub(super) fn submit(&self, device: &wgpu::Device) {
        self.submit_batch(device, &mut self.batch());
    }

    fn submit_batch(&self, device: &wgpu::Device, batch: &mut Batch) {
        batch.pass = None;
        batch.launches = 0;
        batch.number += 1;
        if let Some(encoder) = batch.encoder.take() {
            self.queue.submit([encoder.finish()]);
            // hands back what finished launches held
            let _ = device.poll(wgpu::PollType::Poll);
        }
    }
}

impl Gpu {
    /// Records a run of a kernel.
    ///
    /// # Errors
    /// [`Kind::Gpu`](crate::Kind::Gpu) when a binding or the grid is larger than the adapter allows, the shader is
    /// refused, or the device was lost.
    pub fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.sound()?;
        let inner = &*self.0;
        let variant = Variant { entry: launch.entry, constants: launch.constants, stored: launch.stored };
        let compiled = inner.kernels.get(&inner.name, launch.kernel, variant)?;
        let groups = self.grid(launch)?;
        let views = launch.binds.iter().map(|bind| self.view(launch, bind)).collect::<Result<Vec<_>>>()?;
        let bind_group = self.bind_group(&compiled, &views)?;

        let mut batch = inner.queue.batch();
        for view in views.iter().flatten() {
            view.tensor.gpu_bytes()?.touch(batch.number);
        }
        let pass = batch.pass(&inner.device);
        pass.set_pipeline(&compiled.pipeline);
        pass.set_bind_group(0, &bind_group, &[]);
        if !launch.params.is_empty() {
            pass.set_immediates(0, launch.params);
        }
        let [x, y, z] = groups;
        pass.dispatch_workgroups(x, y, z);
        batch.launches += 1;
        if batch.launches >= BATCH {
            inner.queue.submit_batch(&inner.device, &mut batch);
        }
        Ok(())
    }

    /// The grid within the adapter's limit.
    fn grid(&self, launch: &Launch<'_>) -> Result<[u32; 3]> {
        let most = self.limits().groups;
        let grid = match launch.groups {
            Groups::Line(n) if n <= most => [n, 1, 1],
            Groups::Line(n) => [n.div_ceil(n.div_ceil(most)), n.div_ceil(most), 1],
            Groups::Grid(grid) => grid,
        };
        if grid.iter().any(|&n| n > most) {
            let why =
                format!("{} needs a grid of {grid:?} workgroups, but {most} go along an axis", launch.kernel.name);
            return Err(failed(self.name(), why + "; use smaller sizes"));
        }
        Ok(grid.map(|n| n as u32))
    }

    /// A tensor's bytes at a place where a binding may start: its own, or a copy.
    fn view<'a>(&self, launch: &Launch<'_>, bind: &'a Bind<'a>) -> Result<Option<View<'a>>> {
        let (tensor, range) = match bind {
            Bind::Unused => return Ok(None),
            Bind::All(tensor) => (*tensor, 0..tensor.elements() * tensor.dtype().size()),
            Bind::Part(tensor, range) => (*tensor, range.clone()),
        };
        let limits = self.limits();
        let size = range.len().next_multiple_of(16);
        if size > limits.binding {
            let [size, most] = [size, limits.binding].map(crate::error::Bytes);
            let why = format!("{} binds {size} of {tensor:?}, but a binding holds at most {most}", launch.kernel.name);
            return Err(failed(self.name(), why + "; use smaller sizes"));
        }
        let first = tensor.offset() + range.start;
        if first.is_multiple_of(limits.alignment) {
            return Ok(Some(View { tensor: Cow::Borrowed(tensor), first, size }));
        }
        let copy = self.aligned(tensor)?;
        Ok(Some(View { tensor: Cow::Owned(copy), first: range.start, size }))
    }

    /// What binds these views to the numbers of a kernel's bindings: remembered, or made.
    fn bind_group(&self, compiled: &Compiled, views: &[Option<View<'_>>]) -> Result<wgpu::BindGroup> {
        let mut key = Vec::with_capacity(1 + 3 * views.len());
        // what was compiled stays where it is
        key.push(std::ptr::from_ref(compiled).addr() as u64);
        for view in views {
            match view {
                Some(view) => key.extend([view.tensor.gpu_bytes()?.number(), view.first as u64, view.size as u64]),
                None => key.push(0),
            }
        }
        self.memory().group(&key, || self.new_bind_group(compiled, views))
    }

    fn new_bind_group(&self, compiled: &Compiled, views: &[Option<View<'_>>]) -> Result<wgpu::BindGroup> {
        let mut entries = Vec::with_capacity(views.len());
        for (i, view) in views.iter().enumerate() {
            let Some(view) = view else { continue };
            let bytes = view.tensor.gpu_bytes()?;
            let buffer = bytes.buffer().ok_or_else(|| failed(self.name(), "a buffer is gone"))?;
            // rows at the end of a buffer may have no whole quad after them
            let size = view.size.min(bytes.capacity() - view.first);
            let binding =
                wgpu::BufferBinding { buffer, offset: view.first as u64, size: std::num::NonZeroU64::new(size as u64) };
            entries.push(wgpu::BindGroupEntry { binding: i as u32, resource: wgpu::BindingResource::Buffer(binding) });
        }
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &compiled.layout, entries: &entries };
        Ok(self.0.device.create_bind_group(&descriptor))
    }

    /// Records a copy of `size` bytes between buffers; all three numbers are multiples of 4.
    pub(super) fn copy(&self, from: (&Tensor, usize), to: (&Tensor, usize), size: usize) -> Result<()> {
        let (source, target) = (from.0.gpu_bytes()?, to.0.gpu_bytes()?);
        let gone = || failed(self.name(), "a buffer is gone");
        let [a, b] = [source.buffer().ok_or_else(gone)?, target.buffer().ok_or_else(gone)?];
        let mut batch = self.0.queue.batch();
        source.touch(batch.number);
        target.touch(batch.number);
        batch.encoder(&self.0.device).copy_buffer_to_buffer(a, from.1 as u64, b, to.1 as u64, size as u64);
        Ok(())
    }

    /// Zeros a whole buffer.
    pub(super) fn clear(&self, bytes: &super::Bytes) {
        let Some(buffer) = bytes.buffer() else { return };
        let mut batch = self.0.queue.batch();
        bytes.touch(batch.number);
        batch.encoder(&self.0.device).clear_buffer(buffer, 0, None);
    }

    /// Writes to a buffer that may have been used before: after the launches that use it.
    pub(super) fn write(&self, bytes: &super::Bytes, data: &[u8]) {
        let Some(buffer) = bytes.buffer() else { return };
        let mut batch = self.0.queue.batch();
        if bytes.touched(batch.number) {
            self.0.queue.submit_batch(&self.0.device, &mut batch);
        }
        let whole = data.len() & !3;
        self.0.queue.queue.write_buffer(buffer, 0, &data[..whole]);
        if whole < data.len() {
            let mut last = [0u8; 4];
            last[..data.len() - whole].copy_from_slice(&data[whole..]);
            self.0.queue.queue.write_buffer(buffer, whole as u64, &last);
        }
    }

    /// Waits for the launches before and copies bytes back; `range` may start and end anywhere.
    pub(super) fn fetch(&self, bytes: &super::Bytes, range: Range<usize>) -> Result<Vec<u8>> {
        self.sound()?;
        let Some(buffer) = bytes.buffer() else { return Ok(Vec::new()) };
        let inner = &*self.0;
        // what a mapping needs: it starts at a multiple of 8 and holds a multiple of 4
        let (first, end) = (range.start & !7, range.end.next_multiple_of(4).min(bytes.capacity()));
        let mut batch = inner.queue.batch();
        let staged = if inner.unified {
            None
        } else {
            let staging = inner.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("read"),
                size: (end - first) as u64,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            let encoder = batch.encoder(&inner.device);
            encoder.copy_buffer_to_buffer(buffer, first as u64, &staging, 0, (end - first) as u64);
            Some(staging)
        };
        inner.queue.submit_batch(&inner.device, &mut batch);
        let slice = match &staged {
            Some(staging) => staging.slice(..),
            None => buffer.slice(first as u64..end as u64),
        };
        let (tell, told) = std::sync::mpsc::channel();
        slice.map_async(wgpu::MapMode::Read, move |result| drop(tell.send(result)));
        self.poll()?;
        let wrong = |e: String| failed(self.name(), format!("a tensor cannot be read: {e}"));
        told.recv().map_err(|e| wrong(e.to_string()))?.map_err(|e| wrong(e.to_string()))?;
        let data =
            slice.get_mapped_range().map_err(|e| wrong(e.to_string()))?[range.start - first..][..range.len()].to_vec();
        match &staged {
            Some(staging) => staging.unmap(),
            None => buffer.unmap(),
        }
        drop(batch);
        Ok(data)
    }
}

/// Where a binding lies.
struct View<'a> {
    tensor: Cow<'a, Tensor>,
    first: usize,
    size: usize,
}
