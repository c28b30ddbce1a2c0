//! GPUs: one handle, one kind of kernel and launch, and an engine for each library below.
//!
//! [`Gpu`] is one adapter with its queue and memory. A [`Launch`] is enqueued and returns at once; launches run in the
//! order they were made. Reading a tensor waits for them.
//!
//! | file | what it holds |
//! |---|---|
//! | `kernel` | [`Kernel`]: text with holes |
//! | `launch` | [`Launch`], and the checks before one is enqueued |
//! | `limits` | [`Limits`]: what plans of launches may ask for |
//! | `memory` | the pool of buffers, and the host's mirror of ids |
//! | `native` | kernels in CUDA C++, for GPUs whose units WGSL does not reach |
//! | `product` | matrix products by the GPU's own library |
//! | `elementwise` | kernels that fill, convert, copy and add tensors |
//! | `tables` | small tables that are sent once |
//! | `engine` | the functions that a GPU library provides; nothing above it depends on which library |
//! | `failure`, `variants` | what engines share: the first failure, the compiled kernels |
//! | `for_tests` | opens the GPU that tests run on |
//! | `wgpu` | the engine for Metal, Vulkan and DX12 |
//! | `cuda` | the engine for NVIDIA's GPUs, and the translation of WGSL into CUDA C++ |

mod cuda;
mod elementwise;
mod engine;
mod failure;
mod for_tests;
mod kernel;
mod launch;
mod limits;
mod memory;
mod native;
mod product;
mod tables;
#[cfg(test)]
mod tests;
mod variants;
mod wgpu;

pub(crate) use elementwise::accumulate;
pub use kernel::{Kernel, NativeBody, Shader};
pub use launch::{Bind, Groups, Launch};
pub use limits::Limits;
pub(crate) use memory::Bytes;
pub use memory::Memory;
pub use native::{CudaArgument, CudaKernel, CudaLaunch};
pub use product::{Matrix, Product};
pub use wgpu::BATCH;

use crate::{Error, Kind, Result};
use engine::Engine;
use kernel::{Natives, Variant};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use tables::Tables;

/// A library that drives GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Library {
    /// Metal, Vulkan and DX12 through wgpu.
    #[default]
    Wgpu,
    /// CUDA, for NVIDIA's GPUs.
    Cuda,
}

impl Library {
    /// Every library, in the order in which `--device auto` asks them.
    pub const ALL: [Library; 2] = [Library::Cuda, Library::Wgpu];

    /// The name that `--device` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Library::Wgpu => "wgpu",
            Library::Cuda => "cuda",
        }
    }

    /// The GPUs of this machine, in the order of `--device NAME:n`; none where the library's driver is missing.
    pub fn adapters(self) -> Vec<Adapter> {
        match self {
            Library::Wgpu => wgpu::adapters(),
            Library::Cuda => cuda::adapters(),
        }
    }
}

/// A handle on a GPU: its queue, its memory pool and its compiled kernels.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    adapter: Adapter,
    limits: Limits,
    engine: Arc<Engine>,
    memory: Memory,
    poison: bool,
    tables: Tables,
    launches: AtomicU64,
}

/// Two handles are equal when they share a queue and memory.
impl PartialEq for Gpu {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name(), self.0.adapter)
    }
}

/// The description of a GPU, as its driver gives it.
#[derive(Clone, Debug)]
pub struct Adapter {
    device: String,
    name: String,
    software: bool,
    details: String,
}

impl Adapter {
    /// The name that `--device` takes: `wgpu:0`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The product's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is emulated on the CPU: right, but slow.
    pub fn is_software(&self) -> bool {
        self.software
    }
}

impl std::fmt::Display for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.details)
    }
}

/// Options for opening a [`Gpu`].
#[derive(Clone, Debug, Default)]
pub struct Builder {
    library: Library,
    index: Option<usize>,
    memory_limit: Option<usize>,
    binding_limit: Option<usize>,
    plain: bool,
    poison: bool,
    cache: Option<PathBuf>,
}

impl Builder {
    /// The library that drives the GPU.
    pub fn library(mut self, library: Library) -> Self {
        self.library = library;
        self
    }

    /// The adapter of this number in [`Library::adapters`]; the best one if it is left out.
    pub fn index(mut self, index: usize) -> Self {
        self.index = Some(index);
        self
    }

    /// At most this many bytes of memory.
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// At most this many bytes in one binding, even if the adapter takes more: tests of split launches use it.
    pub fn binding_limit(mut self, bytes: usize) -> Self {
        self.binding_limit = Some(bytes);
        self
    }

    /// Without subgroups and cooperative matrices, even if the adapter has them: tests of the plainest adapter use it.
    pub fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// Fills memory with NaN before it is handed out, so that tests find elements that were never written.
    pub fn poison(mut self) -> Self {
        self.poison = true;
        self
    }

    /// Saves compiled kernels in this folder when the handle is dropped, if the driver can and the folder is writable.
    /// A damaged file, or one of another driver, is not used.
    pub fn cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }

    /// Opens the adapter.
    ///
    /// # Errors
    /// [`Kind::Gpu`] when there is no such adapter, it lacks a feature that every kernel needs, or the driver refuses.
    pub fn open(self) -> Result<Gpu> {
        let (adapter, limits, engine) = match self.library {
            Library::Wgpu => {
                let (adapter, limits, engine) = wgpu::open(&self)?;
                (adapter, limits, Engine::Wgpu(engine))
            }
            Library::Cuda => {
                let (adapter, limits, engine) = cuda::open(&self)?;
                (adapter, limits, Engine::Cuda(Box::new(engine)))
            }
        };
        let engine = Arc::new(engine);
        let memory = Memory::new(&adapter.device, &engine, self.memory_limit, limits.buffer);
        let tables = Tables::default();
        let launches = AtomicU64::new(0);
        Ok(Gpu(Arc::new(Inner { adapter, limits, engine, memory, poison: self.poison, tables, launches })))
    }
}

impl Gpu {
    /// Options for opening an adapter.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The handle of a library that the whole process shares: the best adapter, no limit.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn shared(library: Library) -> Result<Self> {
        static SHARED: [OnceLock<Gpu>; 2] = [OnceLock::new(), OnceLock::new()];
        let shared = &SHARED[library as usize];
        if let Some(gpu) = shared.get() {
            return Ok(gpu.clone());
        }
        let gpu = Gpu::builder().library(library).open()?;
        Ok(shared.get_or_init(|| gpu).clone())
    }

    /// The name that `--device` takes: `wgpu:0`.
    pub fn name(&self) -> &str {
        self.0.adapter.device()
    }

    /// The adapter's description.
    pub fn adapter(&self) -> &Adapter {
        &self.0.adapter
    }

    /// Whether new memory is filled with NaN.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.0.poison
    }

    /// The adapter's limits.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The memory pool.
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// Every shader that was compiled so far, as the adapter got it.
    pub fn shaders(&self) -> Vec<Shader> {
        self.engine().shaders()
    }

    /// Waits until everything that was enqueued is done.
    ///
    /// # Errors
    /// [`Kind::Gpu`] when the device was lost or refused something.
    pub fn wait(&self) -> Result<()> {
        self.engine().wait()
    }

    /// Loses the device, as a crash of the driver does: tests of the errors after that use it.
    pub fn destroy_for_test(&self) {
        self.engine().destroy_for_test();
    }

    fn check_alive(&self) -> Result<()> {
        self.engine().check_alive()
    }

    fn engine(&self) -> &Engine {
        &self.0.engine
    }

    fn tables(&self) -> &Tables {
        &self.0.tables
    }
}

/// An error of this device.
fn failed(device: &str, why: impl Into<String>) -> Error {
    Kind::Gpu { device: device.to_owned(), why: why.into() }.into()
}
