//! GPUs through wgpu: Metal, Vulkan and DX12 from one host path and one shader text.
//!
//! [`Gpu`] is one adapter with its queue. A [`Launch`] is recorded and returns at once; launches are submitted in
//! batches, run in the order they were asked for, and wgpu places the barriers between them. Reading a tensor waits.

mod adapter;
mod cache;
mod kernel;
mod memory;
mod queue;
mod tensors;
#[cfg(test)]
mod tests;

pub use adapter::{Adapter, adapters};
pub use kernel::{Kernel, Shader};
pub(crate) use memory::Bytes;
pub use memory::Memory;
pub use queue::{BATCH, Bind, Groups, Launch};
pub(crate) use tensors::accumulate;

use crate::{Error, Kind, Result};
use kernel::Kernels;
use queue::Queue;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// On every adapter a binding may start at a multiple of so many bytes.
pub const ALIGNMENT: usize = 256;

/// A handle on a GPU: its queue, its memory pool and its compiled kernels.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    name: String,
    adapter: Adapter,
    device: wgpu::Device,
    limits: Limits,
    memory: Memory,
    queue: Queue,
    kernels: Kernels,
    failure: Failure,
    poison: bool,
    unified: bool,
    /// Small tables that were sent, by what they hold.
    tables: Mutex<HashMap<Vec<u32>, Arc<Bytes>>>,
}

/// Two handles are equal when they share a queue and memory.
impl PartialEq for Gpu {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.0.name, self.0.adapter)
    }
}

/// What the adapter allows, as far as plans of launches depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most bytes of a buffer that a kernel sees at once.
    pub binding: usize,
    /// The most bytes of a buffer.
    pub buffer: usize,
    /// A binding starts at a multiple of so many bytes.
    pub alignment: usize,
    /// Workgroups along one axis of the grid.
    pub groups: usize,
    /// Bytes of memory that a workgroup shares.
    pub shared: usize,
    /// Invocations of a workgroup.
    pub invocations: usize,
    /// Whether reductions may use subgroups.
    pub subgroups: bool,
    /// Cooperative matrices of 8×8 f32, as Apple's GPUs have them.
    pub matrices_f32: bool,
    /// Cooperative matrices of 16×16 f16 with f32 sums, as NVIDIA's GPUs have them.
    pub matrices_f16: bool,
}

/// The first thing that went wrong behind the queue's back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    fn set(&self, why: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How to open a [`Gpu`].
#[derive(Clone, Debug, Default)]
pub struct Builder {
    index: Option<usize>,
    memory_limit: Option<usize>,
    binding_limit: Option<usize>,
    plain: bool,
    poison: bool,
    cache: Option<PathBuf>,
}

impl Builder {
    /// The adapter of this number in [`adapters`]; the best one when left out.
    pub fn index(mut self, index: usize) -> Self {
        self.index = Some(index);
        self
    }

    /// At most this many bytes of memory.
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// At most this many bytes in one binding, though the adapter takes more: what tests the splitting of launches.
    pub fn binding_limit(mut self, bytes: usize) -> Self {
        self.binding_limit = Some(bytes);
        self
    }

    /// Without subgroups and cooperative matrices, though the adapter has them: what the plainest adapter runs.
    pub fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// Fills memory with NaN before it is handed out, so that tests see what was not written.
    pub fn poison(mut self) -> Self {
        self.poison = true;
        self
    }

    /// Keeps compiled kernels in this folder when the handle is dropped, where the driver can and the folder may be written
    /// to. A file that is damaged, or of another driver, is not used.
    pub fn cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }

    /// Opens the adapter.
    ///
    /// # Errors
    /// [`Kind::Gpu`] when there is no such adapter, it lacks something that every kernel needs, or it refuses.
    pub fn open(self) -> Result<Gpu> {
        let (name, handle, adapter) = adapter::choose(self.index)?;
        adapter.check(&name)?;
        let opened = pollster::block_on(handle.request_device(&adapter::descriptor(&handle, self.plain)));
        let (device, queue) = opened.map_err(|e| failed(&name, format!("it cannot be opened: {e}")))?;
        let failure = Failure::default();
        let lost = failure.clone();
        device
            .set_device_lost_callback(move |reason, why| lost.set(format!("the device was lost ({reason:?}: {why})")));
        let wrong = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error| wrong.set(error.to_string())));

        let limits = adapter::limits(&handle, &device, self.binding_limit);
        let unified = device.features().contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS);
        let memory = Memory::new(&name, &device, self.memory_limit, limits.buffer, unified);
        let kernels = Kernels::new(&handle, &device, limits.subgroups, self.cache.as_deref());
        let queue = Queue::new(queue);
        let (poison, tables) = (self.poison, Mutex::default());
        Ok(Gpu(Arc::new(Inner {
            name,
            adapter,
            device,
            limits,
            memory,
            queue,
            kernels,
            failure,
            poison,
            unified,
            tables,
        })))
    }
}

impl Gpu {
    /// How to open an adapter.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The handle that the whole process shares: the best adapter, no limit.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn shared() -> Result<Self> {
        static SHARED: OnceLock<Gpu> = OnceLock::new();
        if let Some(gpu) = SHARED.get() {
            return Ok(gpu.clone());
        }
        let gpu = Gpu::builder().open()?;
        Ok(SHARED.get_or_init(|| gpu).clone())
    }

    /// The name that `--device` takes: `wgpu:0`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it is.
    pub fn adapter(&self) -> &Adapter {
        &self.0.adapter
    }

    /// What it allows.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The memory pool.
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// Every shader that was compiled so far, as the adapter got it.
    pub fn shaders(&self) -> Vec<Shader> {
        self.0.kernels.shaders()
    }

    /// Submits what was recorded and waits until all of it ran.
    ///
    /// # Errors
    /// [`Kind::Gpu`] when the device was lost or refused something.
    pub fn wait(&self) -> Result<()> {
        self.0.queue.submit(&self.0.device);
        self.poll()
    }

    /// Breaks the device, as a crash of the driver does: what tests the errors after that.
    pub fn lose(&self) {
        self.0.device.destroy();
    }

    /// Waits for everything that was submitted.
    fn poll(&self) -> Result<()> {
        let waited = self.0.device.poll(wgpu::PollType::wait_indefinitely());
        self.sound()?;
        waited.map(drop).map_err(|e| failed(&self.0.name, e.to_string()))
    }

    /// Errs if something went wrong since the device was opened.
    fn sound(&self) -> Result<()> {
        match self.0.failure.get() {
            Some(why) => Err(failed(&self.0.name, format!("{why}; files that were written are intact: start again"))),
            None => Ok(()),
        }
    }
}

/// What a GPU could not do.
fn failed(device: &str, why: impl Into<String>) -> Error {
    Kind::Gpu { device: device.to_owned(), why: why.into() }.into()
}
