//! The library that a [`Gpu`](super::Gpu) runs on: it makes buffers, compiles kernels, runs them in order and copies.
//!
//! Everything above this file, all operations among it, is the same for every engine. A further engine is one more
//! variant of [`Engine`], [`Buffer`] and [`Pipeline`], and kernel text in its language.

use super::wgpu;
use super::{Kernel, Shader, Variant};
use crate::Result;
use std::ops::Range;
use std::sync::Arc;

/// An opened device of one library.
pub(super) enum Engine {
    /// Metal, Vulkan and DX12.
    Wgpu(wgpu::Engine),
}

/// Memory of the device.
#[derive(Debug)]
pub(super) enum Buffer {
    Wgpu(wgpu::Buffer),
}

/// A compiled kernel.
pub(super) enum Pipeline {
    Wgpu(Arc<wgpu::Pipeline>),
}

/// The part of a buffer that a kernel sees.
#[derive(Clone, Copy)]
pub(super) struct Binding<'a> {
    pub(super) buffer: &'a Buffer,
    /// The first byte, a multiple of [`Limits::alignment`](super::Limits).
    pub(super) first: usize,
    /// Bytes from there on; not 0.
    pub(super) len: usize,
}

impl<'a> Binding<'a> {
    fn of_wgpu(self) -> wgpu::Binding<'a> {
        let Buffer::Wgpu(buffer) = self.buffer;
        wgpu::Binding { buffer, first: self.first, len: self.len }
    }
}

impl Pipeline {
    /// Whether the kernel may write to the binding of this number.
    pub(super) fn writes(&self, binding: usize) -> bool {
        match self {
            Pipeline::Wgpu(pipeline) => pipeline.writes(binding),
        }
    }
}

impl Buffer {
    /// Whether both are the same memory.
    pub(super) fn is(&self, other: &Buffer) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Engine {
    /// A buffer of `len` bytes, a multiple of 64, that begins with `data`; `None` if the device has no memory for it.
    ///
    /// # Errors
    /// When the device refuses to map it.
    pub(super) fn create(&self, len: usize, data: Option<&[u8]>) -> Result<Option<Buffer>> {
        match self {
            Engine::Wgpu(engine) => Ok(engine.create(len, data)?.map(Buffer::Wgpu)),
        }
    }

    /// Lets go of dropped buffers: of what is remembered about them, and waits until the device freed them.
    pub(super) fn reclaim(&self) {
        match self {
            Engine::Wgpu(engine) => engine.reclaim(),
        }
    }

    /// The compiled variant of a kernel; the first request compiles it.
    ///
    /// # Errors
    /// When the device refuses the kernel's text.
    pub(super) fn pipeline(&self, kernel: &'static Kernel, variant: Variant<'_>) -> Result<Pipeline> {
        match self {
            Engine::Wgpu(engine) => Ok(Pipeline::Wgpu(engine.pipeline(kernel, variant)?)),
        }
    }

    /// Enqueues a run of `grid` workgroups.
    ///
    /// # Errors
    /// When the bindings or `params` do not fit the kernel.
    pub(super) fn dispatch(
        &self,
        pipeline: &Pipeline,
        bindings: &[Option<Binding<'_>>],
        params: &[u8],
        grid: [u32; 3],
    ) -> Result<()> {
        match (self, pipeline) {
            (Engine::Wgpu(engine), Pipeline::Wgpu(pipeline)) => {
                let bindings: Vec<_> = bindings.iter().map(|binding| binding.map(Binding::of_wgpu)).collect();
                engine.dispatch(pipeline, &bindings, params, grid)
            }
        }
    }

    /// Enqueues a copy of `len` bytes; `len` and both offsets are multiples of 4.
    pub(super) fn copy(&self, from: (&Buffer, usize), to: (&Buffer, usize), len: usize) {
        match (self, from.0, to.0) {
            (Engine::Wgpu(engine), Buffer::Wgpu(source), Buffer::Wgpu(target)) => {
                engine.copy((source, from.1), (target, to.1), len);
            }
        }
    }

    /// Enqueues zeroing a whole buffer.
    pub(super) fn clear(&self, buffer: &Buffer) {
        match (self, buffer) {
            (Engine::Wgpu(engine), Buffer::Wgpu(buffer)) => engine.clear(buffer),
        }
    }

    /// Writes `data` to the start of a buffer, after the enqueued launches that use it.
    pub(super) fn write(&self, buffer: &Buffer, data: &[u8]) {
        match (self, buffer) {
            (Engine::Wgpu(engine), Buffer::Wgpu(buffer)) => engine.write(buffer, data),
        }
    }

    /// Waits for the enqueued launches and reads bytes of a buffer of `capacity` bytes.
    ///
    /// # Errors
    /// When the device was lost.
    pub(super) fn read(&self, buffer: &Buffer, capacity: usize, range: Range<usize>) -> Result<Vec<u8>> {
        match (self, buffer) {
            (Engine::Wgpu(engine), Buffer::Wgpu(buffer)) => engine.read(buffer, capacity, range),
        }
    }

    /// Waits until everything that was enqueued is done.
    ///
    /// # Errors
    /// When the device was lost or refused something.
    pub(super) fn wait(&self) -> Result<()> {
        match self {
            Engine::Wgpu(engine) => engine.wait(),
        }
    }

    /// Errs if something went wrong since the device was opened.
    ///
    /// # Errors
    /// When the device was lost or refused something.
    pub(super) fn check_alive(&self) -> Result<()> {
        match self {
            Engine::Wgpu(engine) => engine.check_alive(),
        }
    }

    /// Every shader that was compiled so far.
    pub(super) fn shaders(&self) -> Vec<Shader> {
        match self {
            Engine::Wgpu(engine) => engine.shaders(),
        }
    }

    /// Loses the device, as a crash of its driver does.
    pub(super) fn destroy_for_test(&self) {
        match self {
            Engine::Wgpu(engine) => engine.destroy_for_test(),
        }
    }
}
