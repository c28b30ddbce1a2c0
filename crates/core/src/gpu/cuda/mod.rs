//! The engine for NVIDIA's GPUs: CUDA's driver, with kernels that are compiled when they are first used.
//!
//! Nothing of CUDA is needed to build. A kernel without CUDA text of its own is translated from WGSL. There is one
//! stream, so launches run in order and nobody writes a barrier; a dropped buffer is reused at once. A thread feeds the
//! stream, because a launch costs the driver as long as its preparation costs here.

mod blas;
mod compiler;
mod driver;
mod libraries;
mod native;
mod pipeline;
mod queue;
mod translate;

pub(super) use pipeline::Pipeline;
pub(super) use translate::translate;

use super::engine::Operand;
use super::failure::Failure;
use super::variants::Variants;
use super::{Adapter, Builder, Kernel, Limits, Shader, Variant, failed};
use crate::Result;
use blas::Blas;
use compiler::Compiler;
use cudarc::driver::sys::CUdeviceptr;
use driver::{DriverError, Properties, Stream};
use native::NativePipeline;
use queue::Queue;
use std::ops::Range;
use std::sync::Arc;

/// The most bytes of a binding: kernels count elements of four bytes in 32 bits.
const BINDING: usize = (1 << 34) - 64;

/// An opened GPU: its stream and its compiled kernels.
pub(in crate::gpu) struct Engine {
    name: String,
    queue: Arc<Queue>,
    compiler: Compiler,
    /// The compute capability: 90 is 9.0.
    capability: u32,
    /// Threads of a block, and bytes of its shared memory, at most.
    threads: usize,
    shared: usize,
    /// Whether only what the plainest GPU has may be used.
    plain: bool,
    pipelines: Variants<Pipeline>,
    natives: Variants<NativePipeline>,
    /// cuBLASLt, where it is installed; products are kernels of our own otherwise.
    blas: Option<Arc<Blas>>,
    failure: Failure,
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(blas) = &self.blas {
            blas.destroy(self.queue.flushed());
        }
    }
}

/// Memory of the GPU, freed when dropped.
#[derive(Debug)]
pub(in crate::gpu) struct Buffer {
    pointer: CUdeviceptr,
    len: usize,
    queue: Arc<Queue>,
}

impl Drop for Buffer {
    /// Gives the memory back after the work that uses it.
    fn drop(&mut self) {
        let pointer = self.pointer;
        self.queue.push(move |stream| {
            stream.free(pointer);
            Ok(())
        });
    }
}

/// The part of a buffer that a kernel sees.
#[derive(Clone, Copy)]
pub(in crate::gpu) struct Binding<'a> {
    pub(in crate::gpu) buffer: &'a Buffer,
    pub(in crate::gpu) first: usize,
    pub(in crate::gpu) len: usize,
}

/// The GPUs of this machine, in the order of `--device cuda:n`; none where the driver is missing.
pub(in crate::gpu) fn adapters() -> Vec<Adapter> {
    let described = |index| Some(describe(index, &Properties::of(index).ok()?));
    let count = libraries::driver().ok().and_then(|()| driver::count().ok()).unwrap_or(0);
    (0..count).filter_map(described).collect()
}

fn describe(index: usize, properties: &Properties) -> Adapter {
    let Properties { name, memory, capability, multiprocessors, shared_most, .. } = properties;
    let version =
        driver::version().map_or(String::new(), |v| format!(", driver for CUDA {}.{}", v / 1000, v % 1000 / 10));
    let sizes = format!("{:.1} GiB, {} KiB shared", *memory as f64 / (1u64 << 30) as f64, shared_most >> 10);
    let kind = format!("CUDA, compute capability {}.{}", capability / 10, capability % 10);
    Adapter {
        device: format!("cuda:{index}"),
        name: name.clone(),
        software: false,
        details: format!("({kind}, {multiprocessors} multiprocessors{version}), {sizes}"),
    }
}

/// The most bytes that are copied for a write that waits in the queue; more are written once the queue is empty.
const KEPT: usize = 1 << 16;

/// The oldest GPUs that kernels are written for: A100 and GeForce 30.
const OLDEST: u32 = 80;

/// Opens the GPU that `builder` asks for.
///
/// # Errors
/// When a library is missing, there is no such GPU, it is too old, or the driver refuses.
pub(in crate::gpu) fn open(builder: &Builder) -> Result<(Adapter, Limits, Engine)> {
    let index = builder.index.unwrap_or(0);
    let name = format!("cuda:{index}");
    let refused = |why: String| failed(&name, why);
    libraries::driver().map_err(refused)?;
    let count = driver::count().map_err(|error| refused(unusable(&error)))?;
    if index >= count {
        return Err(refused(match count {
            0 => "no NVIDIA GPU was found; use --device auto or cpu".to_owned(),
            n => format!("there is no such GPU, only cuda:0 to cuda:{}; `alluvium devices` lists them", n - 1),
        }));
    }
    libraries::compiler().map_err(refused)?;
    let properties = Properties::of(index).map_err(|error| refused(unusable(&error)))?;
    let capability = properties.capability;
    if capability < OLDEST {
        let [major, minor] = [capability / 10, capability % 10];
        let why = format!("{} has compute capability {major}.{minor}, but kernels need 8.0", properties.name);
        return Err(refused(why + "; use --device wgpu or cpu"));
    }
    let stream = Stream::open(properties.device).map_err(|error| refused(unusable(&error)))?;
    let limits = limits(&properties, builder);
    let blas = match libraries::products() {
        Ok(()) if !builder.plain => Some(Arc::new(Blas::new(&stream).map_err(refused)?)),
        _ => None,
    };
    let failure = Failure::default();
    let engine = Engine {
        queue: Arc::new(Queue::new(stream, &failure).map_err(refused)?),
        blas,
        compiler: Compiler::new(capability, builder.cache.as_deref()).map_err(refused)?,
        capability,
        threads: limits.invocations,
        shared: properties.shared_most,
        plain: builder.plain,
        pipelines: Variants::default(),
        natives: Variants::default(),
        failure,
        name: name.clone(),
    };
    Ok((describe(index, &properties), limits, engine))
}

fn unusable(error: &DriverError) -> String {
    format!("it cannot be opened: {}; check it with nvidia-smi, or use --device cpu", error.words)
}

fn limits(properties: &Properties, builder: &Builder) -> Limits {
    Limits {
        binding: builder.binding_limit.unwrap_or(usize::MAX).min(BINDING) & !15,
        buffer: properties.memory,
        alignment: 16,
        groups: 65535,
        shared: properties.shared,
        invocations: properties.threads,
        subgroups: !builder.plain,
        matrices_f32: false,
        matrices_f16: false,
    }
}

impl Engine {
    /// An error of the driver. All but a launch that was refused at once end the context.
    fn lost(&self, error: DriverError) -> crate::Error {
        let why = format!("the device was lost ({})", error.words);
        self.failure.set(why.clone());
        failed(&self.name, why)
    }

    /// See [`super::engine::Engine::create`].
    pub(in crate::gpu) fn create(&self, len: usize, data: Option<&[u8]>) -> Result<Option<Buffer>> {
        let stream = self.queue.stream();
        let Some(pointer) = stream.allocate(len).map_err(|error| self.lost(error))? else { return Ok(None) };
        let buffer = Buffer { pointer, len, queue: self.queue.clone() };
        if let Some(data) = data {
            // no work knows the memory yet
            stream.write(pointer, data).map_err(|error| self.lost(error))?;
        }
        Ok(Some(buffer))
    }

    /// See [`super::engine::Engine::reclaim`].
    pub(in crate::gpu) fn reclaim(&self) {
        // a failure is kept by the next call
        let _ = self.queue.flushed().wait();
    }

    /// See [`super::engine::Engine::pipeline`].
    pub(in crate::gpu) fn pipeline(&self, kernel: &'static Kernel, variant: Variant<'_>) -> Result<Arc<Pipeline>> {
        self.pipelines.get(kernel, variant, || self.compile(kernel, variant))
    }

    /// See [`super::engine::Engine::has_products`].
    pub(in crate::gpu) fn has_products(&self) -> bool {
        self.blas.is_some()
    }

    /// See [`super::engine::Engine::product`].
    pub(in crate::gpu) fn product(
        &self,
        operands: &[Operand<'_>; 3],
        sizes: [usize; 3],
        count: usize,
        factors: [f32; 2],
    ) -> Result<bool> {
        let Some(blas) = &self.blas else { return Ok(false) };
        let mut addresses = [0; 3];
        for (address, operand) in addresses.iter_mut().zip(operands) {
            let super::engine::Buffer::Cuda(buffer) = operand.buffer else { return Ok(false) };
            *address = buffer.pointer + operand.first as u64;
        }
        let plan = blas.plan(self.queue.stream(), operands, addresses, (sizes, count));
        let Some(plan) = plan.map_err(|why| failed(&self.name, why))? else { return Ok(false) };
        let blas = blas.clone();
        self.queue.push(move |stream| blas.product(stream, &plan, addresses, factors));
        Ok(true)
    }

    /// See [`super::engine::Engine::copy`].
    pub(in crate::gpu) fn copy(&self, from: (&Buffer, usize), to: (&Buffer, usize), len: usize) -> Result<()> {
        let (from, to) = (from.0.pointer + from.1 as u64, to.0.pointer + to.1 as u64);
        self.queue.push(move |stream| stream.copy(from, to, len).map_err(DriverError::into_words));
        self.check_alive()
    }

    /// See [`super::engine::Engine::clear`].
    pub(in crate::gpu) fn clear(&self, buffer: &Buffer) -> Result<()> {
        let (pointer, len) = (buffer.pointer, buffer.len);
        self.queue.push(move |stream| stream.clear(pointer, len).map_err(DriverError::into_words));
        self.check_alive()
    }

    /// See [`super::engine::Engine::write`].
    pub(in crate::gpu) fn write(&self, buffer: &Buffer, data: &[u8]) -> Result<()> {
        let pointer = buffer.pointer;
        if data.len() > KEPT {
            return self.queue.flushed().write(pointer, data).map_err(|error| self.lost(error));
        }
        let data = data.to_vec();
        self.queue.push(move |stream| stream.write(pointer, &data).map_err(DriverError::into_words));
        self.check_alive()
    }

    /// See [`super::engine::Engine::read`].
    pub(in crate::gpu) fn read(&self, buffer: &Buffer, range: Range<usize>) -> Result<Vec<u8>> {
        self.check_alive()?;
        let mut data = vec![0; range.len()];
        if !data.is_empty() {
            let from = buffer.pointer + range.start as u64;
            self.queue.flushed().read(from, &mut data).map_err(|error| self.lost(error))?;
        }
        Ok(data)
    }

    /// See [`super::engine::Engine::wait`].
    pub(in crate::gpu) fn wait(&self) -> Result<()> {
        self.check_alive()?;
        self.queue.flushed().wait().map_err(|error| self.lost(error))?;
        self.check_alive()
    }

    /// See [`super::engine::Engine::check_alive`].
    pub(in crate::gpu) fn check_alive(&self) -> Result<()> {
        self.failure.check(&self.name)
    }

    /// See [`super::engine::Engine::shaders`].
    pub(in crate::gpu) fn shaders(&self) -> Vec<Shader> {
        let mut shaders: Vec<Shader> = self.pipelines.all().iter().map(|pipeline| pipeline.shader().clone()).collect();
        shaders.sort_by(|a, b| (&a.name, a.entry).cmp(&(&b.name, b.entry)));
        shaders
    }

    /// See [`super::engine::Engine::destroy_for_test`].
    pub(in crate::gpu) fn destroy_for_test(&self) {
        self.failure.set("the device was lost (for a test)".to_owned());
    }
}
