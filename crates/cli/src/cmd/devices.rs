use crate::output::note;
use alluvium::core::cpu::Cpu;
use alluvium::core::gpu::{Adapter, Library};
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
    let adapters: Vec<_> = Library::ALL.into_iter().flat_map(Library::adapters).collect();
    if args.json {
        let gpu = |adapter: &Adapter| json!({"device": adapter.device(), "name": adapter.to_string()});
        let mut devices = vec![json!({"device": "cpu", "threads": cpu.threads(), "simd": cpu.isa().to_string()})];
        devices.extend(adapters.iter().map(gpu));
        writeln!(out, "{}", Value::from(devices))?;
        return Ok(());
    }
    writeln!(out, "cpu     {} threads, {} ({} lanes of f32)", cpu.threads(), cpu.isa(), cpu.isa().lanes())?;
    if adapters.is_empty() {
        note!("no GPU was found: a driver for Vulkan, Metal, DX12 or CUDA is needed");
    }
    for adapter in &adapters {
        writeln!(out, "{:<7} {adapter}", adapter.device())?;
    }
    if let Some(folder) = super::kernels().filter(|folder| folder.is_dir()) {
        writeln!(out, "compiled kernels are cached in {}", folder.display())?;
    }
    Ok(())
}
