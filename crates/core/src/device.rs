//! Where a tensor lives.

use crate::cpu::Cpu;

/// Where tensors live and operations run. Cheap to clone: a handle.
///
/// Work on a device is done in the order it was asked for; nobody writes a barrier.
#[derive(Clone, Debug, PartialEq)]
pub enum Device {
    /// The processor: threads and SIMD.
    Cpu(Cpu),
}

impl Device {
    /// The processor, with all its cores: one handle for the whole process.
    pub fn cpu() -> Self {
        Device::Cpu(Cpu::shared())
    }

    /// Runs work that is made of many operations where the device's own threads are: on the processor each operation
    /// then finds its threads awake instead of calling them.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self {
            Device::Cpu(cpu) => cpu.run(work),
        }
    }

    /// The most bytes that were in use at once since the last [`Device::reset_peak`].
    pub fn peak_memory(&self) -> usize {
        match self {
            Device::Cpu(cpu) => cpu.memory().peak(),
        }
    }

    /// Bytes in use now.
    pub fn memory_in_use(&self) -> usize {
        match self {
            Device::Cpu(cpu) => cpu.memory().in_use(),
        }
    }

    /// Starts a new measurement of [`Device::peak_memory`].
    pub fn reset_peak(&self) {
        match self {
            Device::Cpu(cpu) => cpu.memory().reset_peak(),
        }
    }
}

impl From<Cpu> for Device {
    fn from(cpu: Cpu) -> Self {
        Device::Cpu(cpu)
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu(_) => f.pad("cpu"),
        }
    }
}
