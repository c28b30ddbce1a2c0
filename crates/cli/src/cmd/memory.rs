//! Memory before it is allocated: what is needed is held against what the machine has.

use crate::output::{bytes, say};
use alluvium::Device;
use anyhow::bail;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// What to do where a model does not fit.
#[derive(clap::Args)]
pub(crate) struct MemoryArg {
    /// Begin also where the model does not fit into the memory of this machine
    #[arg(long)]
    pub(crate) ignore_memory: bool,
}

/// The memory of the machine, or of the container that this program runs in.
struct Machine {
    total: usize,
    available: usize,
}

impl Machine {
    fn new() -> Option<Self> {
        let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(memory).ok()?;
        let (total, available) = (system.total_memory(), system.available_memory());
        let limits = system.cgroup_limits().filter(|limits| limits.total_memory > 0 && limits.total_memory < total);
        let (total, available) = match limits {
            Some(limits) => (limits.total_memory, limits.free_memory.min(available)),
            None => (total, available),
        };
        // a system that does not say has no limit here
        (total > 0).then_some(Machine { total: total as usize, available: available as usize })
    }
}

/// The name of the CPU, where the system gives it.
pub(crate) fn cpu_name() -> Option<String> {
    let system = System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing())).ok()?;
    let name = system.cpus().first()?.brand().trim().to_owned();
    (!name.is_empty()).then_some(name)
}

/// Refuses work that needs more memory than the machine has, and warns of work that needs more than is free. The
/// memory of GPUs is not known beforehand.
pub(crate) fn check(needed: usize, device: &Device, remedy: &str, arg: &MemoryArg) -> anyhow::Result<()> {
    let Some(machine) = Machine::new().filter(|_| matches!(device, Device::Cpu(_))) else { return Ok(()) };
    let (needs, total) = (bytes(needed), bytes(machine.total));
    if needed > machine.total && !arg.ignore_memory {
        bail!(
            "this needs about {needs} of memory, and the machine has {total}: {remedy}; --ignore-memory begins anyhow"
        );
    }
    if needed > machine.available {
        let free = bytes(machine.available);
        say!("warning: this needs about {needs} of memory, and {free} of {total} are free; it may be slow or be ended");
    }
    Ok(())
}
