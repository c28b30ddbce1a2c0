//! Devices: the CPU, and GPUs.

use crate::cpu::Cpu;
use crate::gpu::{Builder, Gpu, Library};
use crate::{Error, Result};

/// A device that holds tensors and runs operations. Cheap to clone: a handle.
///
/// A device runs operations in the order of the calls; callers need no barriers.
#[derive(Clone, Debug, PartialEq)]
pub enum Device {
    /// The CPU: threads and SIMD.
    Cpu(Cpu),
    /// A GPU, by the library that its handle was opened with.
    Gpu(Gpu),
}

impl Device {
    /// The kinds of devices that this build has: the name for [`Device::named`], and what it is.
    pub const KINDS: &[(&str, &str)] = &[
        ("cpu", "the CPU: threads and SIMD"),
        ("cuda", "NVIDIA's GPUs through CUDA"),
        ("wgpu", "GPUs through Metal, Vulkan or DX12"),
    ];

    /// The CPU with all its cores: one handle for the whole process.
    pub fn cpu() -> Self {
        Device::Cpu(Cpu::shared())
    }

    /// The device of a name: `cpu`, `cuda` or `wgpu` (the library's best GPU), `cuda:n`, `wgpu:n`, or `auto` (an NVIDIA
    /// GPU with CUDA, any other hardware GPU, or the CPU).
    ///
    /// # Errors
    /// When the name is another one, or there is no such device.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Device::auto()),
            "cuda" => Ok(Gpu::shared(Library::Cuda)?.into()),
            "wgpu" => Ok(Gpu::shared(Library::Wgpu)?.into()),
            _ => Device::open(name, Gpu::builder()),
        }
    }

    /// As [`Device::named`], with a new handle on a GPU, opened with these options.
    ///
    /// # Errors
    /// As [`Device::named`].
    pub fn open(name: &str, gpu: Builder) -> Result<Self> {
        match name {
            "cpu" => return Ok(Device::cpu()),
            "auto" => return Ok(Device::best(|library| gpu.clone().library(library).open())),
            _ => {}
        }
        let (library, index) = name.split_once(':').map_or((name, None), |(library, index)| (library, Some(index)));
        let unknown = || {
            let expected = "auto, cpu, cuda, cuda:n, wgpu or wgpu:n";
            Error::value("device", format!("{name:?} came, expected {expected}"))
        };
        let library = Library::ALL.into_iter().find(|known| known.name() == library);
        let gpu = gpu.library(library.ok_or_else(unknown)?);
        match index.map(str::parse) {
            None => Ok(gpu.open()?.into()),
            Some(Ok(index)) => Ok(gpu.index(index).open()?.into()),
            Some(Err(_)) => Err(unknown()),
        }
    }

    /// An NVIDIA GPU with CUDA if there is one that opens, any other hardware GPU, or the CPU.
    pub fn auto() -> Self {
        Device::best(Gpu::shared)
    }

    fn best(open: impl Fn(Library) -> Result<Gpu>) -> Self {
        let opened = Library::ALL.into_iter().filter_map(|library| open(library).ok());
        let mut hardware = opened.filter(|gpu| !gpu.adapter().is_software());
        hardware.next().map_or_else(Device::cpu, Device::Gpu)
    }

    /// Whether elements are in host memory and are read without waiting for a queue.
    pub fn is_host(&self) -> bool {
        matches!(self, Device::Cpu(_))
    }

    /// Waits until everything that was enqueued on the device is done.
    ///
    /// # Errors
    /// When the GPU was lost.
    pub fn wait(&self) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Gpu(gpu) => gpu.wait(),
        }
    }

    /// Runs work of many operations. On the CPU its threads spin between the operations instead of sleeping, so that
    /// short operations do not pay for waking them.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self {
            Device::Cpu(cpu) => cpu.run_spinning(work),
            Device::Gpu(_) => work(),
        }
    }

    /// The most bytes that were in use at once since the last [`Device::reset_peak`].
    pub fn peak_memory(&self) -> usize {
        match self {
            Device::Cpu(cpu) => cpu.memory().peak(),
            Device::Gpu(gpu) => gpu.memory().peak(),
        }
    }

    /// Bytes in use now.
    pub fn memory_in_use(&self) -> usize {
        match self {
            Device::Cpu(cpu) => cpu.memory().in_use(),
            Device::Gpu(gpu) => gpu.memory().in_use(),
        }
    }

    /// Starts a new measurement of [`Device::peak_memory`].
    pub fn reset_peak(&self) {
        match self {
            Device::Cpu(cpu) => cpu.memory().reset_peak(),
            Device::Gpu(gpu) => gpu.memory().reset_peak(),
        }
    }
}

impl From<Cpu> for Device {
    fn from(cpu: Cpu) -> Self {
        Device::Cpu(cpu)
    }
}

impl From<Gpu> for Device {
    fn from(gpu: Gpu) -> Self {
        Device::Gpu(gpu)
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu(_) => f.pad("cpu"),
            Device::Gpu(gpu) => f.pad(gpu.name()),
        }
    }
}
