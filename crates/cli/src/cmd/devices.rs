use alluvium::Device;
use std::io::Write;

/// List the devices that are here
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let Device::Cpu(cpu) = Device::cpu();
    writeln!(out, "cpu  {} threads, {} ({} lanes of f32)", cpu.threads(), cpu.level(), cpu.level().lanes())?;
    Ok(())
}
