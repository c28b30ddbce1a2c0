//! Devices: the CPU, and GPUs.

use crate::cpu::Cpu;
use crate::gpu::{Builder, Gpu};
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
    pub const KINDS: &[(&str, &str)] =
        &[("cpu", "the CPU: threads and SIMD"), ("wgpu", "GPUs through Metal, Vulkan or DX12")];

    /// The CPU with all its cores: one handle for the whole process.
    pub fn cpu() -> Self {
        Device::Cpu(Cpu::shared())
    }

    /// The device of a name: `cpu`, `wgpu` (the best GPU), `wgpu:n`, or `auto` (a hardware GPU if there is one, or the
    /// CPU).
    ///
    /// # Errors
    /// When the name is another one, or there is no such device.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Device::auto()),
            "wgpu" => Ok(Gpu::shared()?.into()),
            _ => Device::open(name, Gpu::builder()),
        }
    }

    /// As [`Device::named`], with a new handle on a GPU, opened with these options.
    ///
    /// # Errors
    /// As [`Device::named`].
    pub fn open(name: &str, gpu: Builder) -> Result<Self> {
        match name {
            "cpu" => Ok(Device::cpu()),
            "auto" => Ok(Device::hardware_or_cpu(gpu.open())),
            "wgpu" => Ok(gpu.open()?.into()),
            _ => {
                let index = name.strip_prefix("wgpu:").and_then(|index| index.parse().ok());
                let wrong = || Error::value("device", format!("{name:?} came, expected auto, cpu, wgpu or wgpu:n"));
                Ok(gpu.index(index.ok_or_else(wrong)?).open()?.into())
            }
        }
    }

    /// A hardware GPU if there is one that opens, or the CPU.
    pub fn auto() -> Self {
        Device::hardware_or_cpu(Gpu::shared())
    }

    fn hardware_or_cpu(gpu: Result<Gpu>) -> Self {
        match gpu {
            Ok(gpu) if !gpu.adapter().is_software() => gpu.into(),
            _ => Device::cpu(),
        }
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
