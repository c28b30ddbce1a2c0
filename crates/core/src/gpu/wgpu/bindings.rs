//! Bind groups, cached: a training step binds the same buffers as the step before.

use super::{Buffer, Engine, Pipeline, failed};
use crate::Result;
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The part of a buffer that a kernel sees.
#[derive(Clone, Copy)]
pub(in crate::gpu) struct Binding<'a> {
    pub(in crate::gpu) buffer: &'a Buffer,
    /// The first byte.
    pub(in crate::gpu) first: usize,
    /// Bytes from there on; not 0.
    pub(in crate::gpu) len: usize,
}

/// The most groups that are cached.
const CACHED: usize = 1 << 13;

/// Bind groups, by the pipeline and the numbers of the buffers that they bind.
#[derive(Debug, Default)]
pub(super) struct Bindings(Mutex<HashMap<Box<[u64]>, wgpu::BindGroup>>);

impl Bindings {
    pub(super) fn clear(&self) {
        self.groups().clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.groups().len()
    }

    fn groups(&self) -> MutexGuard<'_, HashMap<Box<[u64]>, wgpu::BindGroup>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// The bind group of these bindings: cached, or made.
    pub(super) fn bind_group(&self, pipeline: &Pipeline, bindings: &[Option<Binding<'_>>]) -> Result<wgpu::BindGroup> {
        let mut key = Vec::with_capacity(1 + 3 * bindings.len());
        // pipelines are never dropped before the engine, so that an address names one
        key.push(std::ptr::from_ref(pipeline).addr() as u64);
        for binding in bindings {
            match binding {
                Some(Binding { buffer, first, len }) => {
                    key.extend([buffer.number, *first as u64, *len as u64]);
                }
                None => key.push(0),
            }
        }
        if let Some(group) = self.bindings.groups().get(&key[..]) {
            return Ok(group.clone());
        }
        let group = self.new_bind_group(pipeline, bindings)?;
        let mut groups = self.bindings.groups();
        if groups.len() >= CACHED {
            groups.clear();
        }
        groups.insert(key.into(), group.clone());
        Ok(group)
    }

    fn new_bind_group(&self, pipeline: &Pipeline, bindings: &[Option<Binding<'_>>]) -> Result<wgpu::BindGroup> {
        let mut entries = Vec::with_capacity(bindings.len());
        for (i, binding) in bindings.iter().enumerate() {
            let Some(Binding { buffer, first, len }) = binding else { continue };
            let (offset, size) = (*first as u64, NonZeroU64::new(*len as u64));
            let binding = wgpu::BufferBinding { buffer: &buffer.handle, offset, size };
            entries.push(wgpu::BindGroupEntry { binding: i as u32, resource: wgpu::BindingResource::Buffer(binding) });
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &pipeline.layout, entries: &entries };
        let group = self.device.create_bind_group(&descriptor);
        match pollster::block_on(scope.pop()) {
            Some(error) => {
                Err(failed(&self.name, format!("the bindings of {} were refused: {error}", pipeline.name())))
            }
            None => Ok(group),
        }
    }
}
