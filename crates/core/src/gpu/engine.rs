//! The library that a [`Gpu`](super::Gpu) runs on: it makes buffers, compiles kernels, runs them in order and copies.
//!
//! Everything above this file, all operations among it, is the same for every engine. A further engine is one more
//! variant of [`Engine`], [`Buffer`] and [`Pipeline`], and kernel text in its language.

use super::{CudaLaunch, Kernel, Shader, Variant};
use super::{cuda, wgpu};
use crate::{DType, Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// An opened device of one library.
#[expect(clippy::large_enum_variant, reason = "a handle has one, behind an `Arc`")]
pub(super) enum Engine {
    /// Metal, Vulkan and DX12.
    Wgpu(wgpu::Engine),
    /// NVIDIA's GPUs.
    Cuda(Box<cuda::Engine>),
}

/// Memory of the device.
#[derive(Debug)]
pub(super) enum Buffer {
    Wgpu(wgpu::Buffer),
    Cuda(cuda::Buffer),
}

/// A compiled kernel.
pub(super) enum Pipeline {
    Wgpu(Arc<wgpu::Pipeline>),
    Cuda(Arc<cuda::Pipeline>),
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
    fn of_wgpu(self) -> Option<wgpu::Binding<'a>> {
        let Buffer::Wgpu(buffer) = self.buffer else { return None };
        Some(wgpu::Binding { buffer, first: self.first, len: self.len })
    }

    fn of_cuda(self) -> Option<cuda::Binding<'a>> {
        let Buffer::Cuda(buffer) = self.buffer else { return None };
        Some(cuda::Binding { buffer, first: self.first, len: self.len })
    }
}

/// A matrix of a product.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) buffer: &'a Buffer,
    /// The first byte.
    pub(super) first: usize,
    /// Elements from line to line.
    pub(super) stride: usize,
    /// Elements from matrix to matrix.
    pub(super) batch_stride: usize,
    pub(super) by_columns: bool,
    pub(super) dtype: DType,
}

impl Pipeline {
    /// Whether the kernel may write to the binding of this number.
    pub(super) fn writes(&self, binding: usize) -> bool {
        match self {
            Pipeline::Wgpu(pipeline) => pipeline.writes(binding),
            Pipeline::Cuda(pipeline) => pipeline.writes(binding),
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
            Engine::Cuda(engine) => Ok(engine.create(len, data)?.map(Buffer::Cuda)),
        }
    }

    /// Lets go of dropped buffers: of what is remembered about them, and waits until the device freed them.
    pub(super) fn reclaim(&self) {
        match self {
            Engine::Wgpu(engine) => engine.reclaim(),
            Engine::Cuda(engine) => engine.reclaim(),
        }
    }

    /// The compiled variant of a kernel; the first request compiles it.
    ///
    /// # Errors
    /// When the device refuses the kernel's text.
    pub(super) fn pipeline(&self, kernel: &'static Kernel, variant: Variant<'_>) -> Result<Pipeline> {
        match self {
            Engine::Wgpu(engine) => Ok(Pipeline::Wgpu(engine.pipeline(kernel, variant)?)),
            Engine::Cuda(engine) => Ok(Pipeline::Cuda(engine.pipeline(kernel, variant)?)),
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
                let bindings: Vec<_> = bindings.iter().map(|binding| binding.and_then(Binding::of_wgpu)).collect();
                engine.dispatch(pipeline, &bindings, params, grid)
            }
            (Engine::Cuda(engine), Pipeline::Cuda(pipeline)) => {
                let bindings: Vec<_> = bindings.iter().map(|binding| binding.and_then(Binding::of_cuda)).collect();
                engine.dispatch(pipeline, &bindings, params, grid)
            }
            _ => Err(foreign()),
        }
    }

    /// The most shared memory of a CUDA kernel; 0 where such kernels do not run.
    pub(super) fn cuda_shared_memory(&self) -> usize {
        match self {
            Engine::Wgpu(_) => 0,
            Engine::Cuda(engine) => engine.cuda_shared_memory(),
        }
    }

    /// Whether kernels for Hopper run here.
    pub(super) fn is_hopper(&self) -> bool {
        match self {
            Engine::Wgpu(_) => false,
            Engine::Cuda(engine) => engine.is_hopper(),
        }
    }

    /// Enqueues a run of a CUDA kernel.
    ///
    /// # Errors
    /// When the compiler refuses it, or the device was lost.
    pub(super) fn launch_cuda(&self, launch: &CudaLaunch<'_>) -> Result<()> {
        match self {
            Engine::Wgpu(_) => Err(foreign()),
            Engine::Cuda(engine) => engine.launch_cuda(launch),
        }
    }

    /// Whether the library has products of its own.
    pub(super) fn has_products(&self) -> bool {
        match self {
            Engine::Wgpu(_) => false,
            Engine::Cuda(engine) => engine.has_products(),
        }
    }

    /// Enqueues `c = alpha · a · b + beta · c` for `count` matrices of sizes m, k, n; `false` if the library cannot.
    ///
    /// # Errors
    /// When the device was lost.
    pub(super) fn product(
        &self,
        operands: &[Operand<'_>; 3],
        sizes: [usize; 3],
        count: usize,
        factors: [f32; 2],
    ) -> Result<bool> {
        match self {
            Engine::Wgpu(_) => Ok(false),
            Engine::Cuda(engine) => engine.product(operands, sizes, count, factors),
        }
    }

    /// Enqueues a copy of `len` bytes; `len` and both offsets are multiples of 4.
    ///
    /// # Errors
    /// When the device was lost.
    pub(super) fn copy(&self, from: (&Buffer, usize), to: (&Buffer, usize), len: usize) -> Result<()> {
        match (self, from.0, to.0) {
            (Engine::Wgpu(engine), Buffer::Wgpu(source), Buffer::Wgpu(target)) => {
                engine.copy((source, from.1), (target, to.1), len);
                Ok(())
            }
            (Engine::Cuda(engine), Buffer::Cuda(source), Buffer::Cuda(target)) => {
                engine.copy((source, from.1), (target, to.1), len)
            }
            _ => Err(foreign()),
        }
    }

    /// Enqueues zeroing a whole buffer.
    ///
    /// # Errors
    /// When the device was lost.
    pub(super) fn clear(&self, buffer: &Buffer) -> Result<()> {
        match (self, buffer) {
            (Engine::Wgpu(engine), Buffer::Wgpu(buffer)) => {
                engine.clear(buffer);
                Ok(())
            }
            (Engine::Cuda(engine), Buffer::Cuda(buffer)) => engine.clear(buffer),
            _ => Err(foreign()),
        }
    }

    /// Writes `data` to the start of a buffer, after the enqueued launches that use it.
    ///
    /// # Errors
    /// When the device was lost.
    pub(super) fn write(&self, buffer: &Buffer, data: &[u8]) -> Result<()> {
        match (self, buffer) {
            (Engine::Wgpu(engine), Buffer::Wgpu(buffer)) => {
                engine.write(buffer, data);
                Ok(())
            }
            (Engine::Cuda(engine), Buffer::Cuda(buffer)) => engine.write(buffer, data),
            _ => Err(foreign()),
        }
    }

    /// Waits for the enqueued launches and reads bytes of a buffer of `capacity` bytes.
    ///
    /// # Errors
    /// When the device was lost.
    pub(super) fn read(&self, buffer: &Buffer, capacity: usize, range: Range<usize>) -> Result<Vec<u8>> {
        match (self, buffer) {
            (Engine::Wgpu(engine), Buffer::Wgpu(buffer)) => engine.read(buffer, capacity, range),
            (Engine::Cuda(engine), Buffer::Cuda(buffer)) => engine.read(buffer, range),
            _ => Err(foreign()),
        }
    }

    /// Waits until everything that was enqueued is done.
    ///
    /// # Errors
    /// When the device was lost or refused something.
    pub(super) fn wait(&self) -> Result<()> {
        match self {
            Engine::Wgpu(engine) => engine.wait(),
            Engine::Cuda(engine) => engine.wait(),
        }
    }

    /// Errs if something went wrong since the device was opened.
    ///
    /// # Errors
    /// When the device was lost or refused something.
    pub(super) fn check_alive(&self) -> Result<()> {
        match self {
            Engine::Wgpu(engine) => engine.check_alive(),
            Engine::Cuda(engine) => engine.check_alive(),
        }
    }

    /// Every shader that was compiled so far.
    pub(super) fn shaders(&self) -> Vec<Shader> {
        match self {
            Engine::Wgpu(engine) => engine.shaders(),
            Engine::Cuda(engine) => engine.shaders(),
        }
    }

    /// Loses the device, as a crash of its driver does.
    pub(super) fn destroy_for_test(&self) {
        match self {
            Engine::Wgpu(engine) => engine.destroy_for_test(),
            Engine::Cuda(engine) => engine.destroy_for_test(),
        }
    }
}

/// The error of memory or a kernel of another engine, which the checks of a handle exclude.
pub(super) fn foreign() -> Error {
    Error::value("gpu", "the memory is of another library than the device")
}
