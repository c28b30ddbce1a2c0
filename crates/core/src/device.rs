//! Where a tensor lives.

use crate::cpu::Cpu;
use crate::gpu::{Builder, Gpu};
use crate::{Error, Result};

/// Where tensors live and operations run. Cheap to clone: a handle.
///
/// Work on a device is done in the order it was asked for; nobody writes a barrier.
#[derive(Clone, Debug, PartialEq)]
pub enum Device {
    /// The processor: threads and SIMD.
    Cpu(Cpu),
    /// A GPU through wgpu: Metal, Vulkan or DX12.
    Gpu(Gpu),
}

impl Device {
    /// The processor, with all its cores: one handle for the whole process.
    pub fn cpu() -> Self {
        Device::Cpu(Cpu::shared())
    }

    /// The device of a name: `cpu`, `wgpu` (the best GPU), `wgpu:n`, or `auto`: a GPU if there is a real one.
    ///
    /// # Errors
    /// When the name is none of these, or there is no such device.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Device::auto()),
            "wgpu" => Ok(Gpu::shared()?.into()),
            _ => Device::open(name, Gpu::builder()),
        }
    }

    /// As [`Device::named`], with a handle of its own on a GPU that is opened so.
    ///
    /// # Errors
    /// As [`Device::named`].
    pub fn open(name: &str, gpu: Builder) -> Result<Self> {
        match name {
            "cpu" => Ok(Device::cpu()),
            "auto" => Ok(Device::real(gpu.open())),
            "wgpu" => Ok(gpu.open()?.into()),
            _ => {
                let index = name.strip_prefix("wgpu:").and_then(|index| index.parse().ok());
                let wrong = || Error::value("device", format!("{name:?} came, expected auto, cpu, wgpu or wgpu:n"));
                Ok(gpu.index(index.ok_or_else(wrong)?).open()?.into())
            }
        }
    }

    /// A GPU if there is a real one that opens, or the processor.
    pub fn auto() -> Self {
        Device::real(Gpu::shared())
    }

    fn real(gpu: Result<Gpu>) -> Self {
        match gpu {
            Ok(gpu) if !gpu.adapter().is_software() => gpu.into(),
            _ => Device::cpu(),
        }
    }

    /// Whether a number can be read without waiting for a queue.
    pub fn reads_at_once(&self) -> bool {
        matches!(self, Device::Cpu(_))
    }

    /// Waits until everything that was asked of the device is done.
    ///
    /// # Errors
    /// When a GPU was lost.
    pub fn wait(&self) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Gpu(gpu) => gpu.wait(),
        }
    }

    /// Runs work that is made of many operations where the device's own threads are: on the processor each operation
    /// then finds its threads awake instead of calling them.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self {
            Device::Cpu(cpu) => cpu.run_awake(work),
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
