use crate::output::note;
use alluvium::core::cpu::Cpu;
use alluvium::core::gpu::adapters;
use serde_json::{Value, json};
use std::io::Write;

/// List the devices, by the names that --device takes
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the devices as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let cpu = Cpu::shared();
    if args.json {
        let gpu = |(index, adapter)| json!({"device": format!("wgpu:{index}"), "name": format!("{adapter}")});
        let mut devices = vec![json!({"device": "cpu", "threads": cpu.threads(), "simd": cpu.isa().to_string()})];
        devices.extend(adapters().iter().enumerate().map(gpu));
        writeln!(out, "{}", Value::from(devices))?;
        return Ok(());
    }
    writeln!(out, "cpu     {} threads, {} ({} lanes of f32)", cpu.threads(), cpu.isa(), cpu.isa().lanes())?;
    if adapters().is_empty() {
        note!("no GPU was found: `--device wgpu` needs a driver for Vulkan, Metal or DX12");
    }
    for (index, adapter) in adapters().iter().enumerate() {
        writeln!(out, "{:<7} {adapter}", format!("wgpu:{index}"))?;
    }
    if let Some(folder) = super::kernels().filter(|folder| folder.is_dir()) {
        writeln!(out, "compiled kernels are cached in {}", folder.display())?;
    }
    Ok(())
}
