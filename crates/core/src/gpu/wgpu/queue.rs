//! The queue: launches are recorded, submitted in batches, and run in order.

use super::{Binding, Buffer, Engine, Pipeline, failed};
use crate::Result;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Launches that are submitted together: enough to make a submission cheap, few enough that the GPU starts early.
pub const BATCH: usize = 64;

/// The queue, and the batch that was recorded since the last submission.
pub(super) struct Queue {
    handle: wgpu::Queue,
    batch: Mutex<Batch>,
}

/// Recorded launches and copies.
pub(super) struct Batch {
    number: u64,
    launches: usize,
    // before the encoder: a pass ends before its encoder
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
}

impl Batch {
    /// The encoder outside a pass, for copies.
    pub(super) fn encoder(&mut self, device: &wgpu::Device) -> &mut wgpu::CommandEncoder {
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

impl Buffer {
    /// Notes that launches of this batch use it.
    fn touch(&self, batch: &Batch) {
        self.batch.store(batch.number, Ordering::Relaxed);
    }

    /// Whether launches of this batch use it.
    fn is_touched(&self, batch: &Batch) -> bool {
        self.batch.load(Ordering::Relaxed) == batch.number
    }
}

impl Queue {
    pub(super) fn new(handle: wgpu::Queue) -> Self {
        Queue { handle, batch: Mutex::new(Batch { number: 1, launches: 0, pass: None, encoder: None }) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submits what was recorded.
    pub(super) fn submit(&self, device: &wgpu::Device) {
        self.submit_batch(device, &mut self.lock());
    }

    pub(super) fn submit_batch(&self, device: &wgpu::Device, batch: &mut Batch) {
        batch.pass = None;
        batch.launches = 0;
        batch.number += 1;
        if let Some(encoder) = batch.encoder.take() {
            self.handle.submit([encoder.finish()]);
            // frees what finished launches held
            let _ = device.poll(wgpu::PollType::Poll);
        }
    }
}

impl Engine {
    /// See [`super::super::engine::Engine::dispatch`].
    pub(in crate::gpu) fn dispatch(
        &self,
        pipeline: &Pipeline,
        bindings: &[Option<Binding<'_>>],
        params: &[u8],
        [x, y, z]: [u32; 3],
    ) -> Result<()> {
        // an entry point may leave the text's params unused
        if params.len() != pipeline.params && !params.is_empty() {
            let why = format!("{} takes {} bytes of params, got {}", pipeline.name(), pipeline.params, params.len());
            return Err(failed(&self.name, why));
        }
        let bind_group = self.bind_group(pipeline, bindings)?;
        let mut batch = self.queue.lock();
        for Binding { buffer, .. } in bindings.iter().flatten() {
            buffer.touch(&batch);
        }
        let pass = batch.pass(&self.device);
        pass.set_pipeline(&pipeline.handle);
        pass.set_bind_group(0, &bind_group, &[]);
        if !params.is_empty() {
            pass.set_immediates(0, params);
        }
        pass.dispatch_workgroups(x, y, z);
        batch.launches += 1;
        if batch.launches >= BATCH {
            self.queue.submit_batch(&self.device, &mut batch);
        }
        Ok(())
    }

    /// See [`super::super::engine::Engine::copy`].
    pub(in crate::gpu) fn copy(&self, from: (&Buffer, usize), to: (&Buffer, usize), len: usize) {
        let mut batch = self.queue.lock();
        from.0.touch(&batch);
        to.0.touch(&batch);
        let encoder = batch.encoder(&self.device);
        encoder.copy_buffer_to_buffer(&from.0.handle, from.1 as u64, &to.0.handle, to.1 as u64, len as u64);
    }

    /// See [`super::super::engine::Engine::clear`].
    pub(in crate::gpu) fn clear(&self, buffer: &Buffer) {
        let mut batch = self.queue.lock();
        buffer.touch(&batch);
        batch.encoder(&self.device).clear_buffer(&buffer.handle, 0, None);
    }

    /// See [`super::super::engine::Engine::write`].
    pub(in crate::gpu) fn write(&self, buffer: &Buffer, data: &[u8]) {
        let mut batch = self.queue.lock();
        if buffer.is_touched(&batch) {
            self.queue.submit_batch(&self.device, &mut batch);
        }
        // writes are a multiple of 4 bytes
        let (whole, rest) = data.split_at(data.len() & !3);
        self.queue.handle.write_buffer(&buffer.handle, 0, whole);
        if !rest.is_empty() {
            let mut last = [0u8; 4];
            last[..rest.len()].copy_from_slice(rest);
            self.queue.handle.write_buffer(&buffer.handle, whole.len() as u64, &last);
        }
    }
}
