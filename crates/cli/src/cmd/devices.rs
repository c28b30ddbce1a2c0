use alluvium::core::cpu::Cpu;
use alluvium::core::gpu::adapters;
use std::io::Write;

/// List the devices, by the names that --device takes
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let cpu = Cpu::shared();
    writeln!(out, "cpu     {} threads, {} ({} lanes of f32)", cpu.threads(), cpu.level(), cpu.level().lanes())?;
    for (index, adapter) in adapters().iter().enumerate() {
        writeln!(out, "{:<7} {adapter}", format!("wgpu:{index}"))?;
    }
    if let Some(folder) = super::kernels().filter(|folder| folder.is_dir()) {
        writeln!(out, "compiled kernels are cached in {}", folder.display())?;
    }
    Ok(())
}
