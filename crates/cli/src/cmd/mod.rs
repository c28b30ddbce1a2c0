//! The commands: one file each, arguments and no logic.

pub(crate) mod bench;
pub(crate) mod cache_prompt;
pub(crate) mod chat;
pub(crate) mod check;
pub(crate) mod convert;
pub(crate) mod devices;
pub(crate) mod generate;
pub(crate) mod info;
pub(crate) mod ops;
pub(crate) mod perplexity;
pub(crate) mod quantize;
pub(crate) mod train;

use alluvium::Device;
use alluvium::core::cpu::Cpu;
use alluvium::core::gpu::{Builder, Gpu};
use alluvium::ops::Op;
use anyhow::{Result, bail};
use etcetera::base_strategy::{BaseStrategy, choose_native_strategy};
use std::path::{Component, Path, PathBuf};

/// The device that work runs on.
#[derive(clap::Args)]
pub(crate) struct DeviceArg {
    /// Where to run: cpu, wgpu (the best GPU), wgpu:N, or auto (a GPU if there is a real one); see `alluvium devices`
    #[arg(long, default_value = "cpu")]
    device: String,
}

impl DeviceArg {
    pub(crate) fn open(&self) -> Result<Device> {
        Ok(Device::open(&self.device, gpu())?)
    }

    /// The same device with memory of its own that is filled with NaN before it is handed out.
    pub(crate) fn poisoned(&self) -> Result<Device> {
        Ok(match Device::open(&self.device, gpu().poison())? {
            Device::Cpu(_) => Cpu::builder().poison().open()?.into(),
            gpu => gpu,
        })
    }
}

/// How a GPU is opened: with the kernels that runs before have compiled.
fn gpu() -> Builder {
    match kernels() {
        Some(folder) => Gpu::builder().cache(folder),
        None => Gpu::builder(),
    }
}

/// The folder in which compiled kernels are kept, where the user has one for such things.
fn kernels() -> Option<PathBuf> {
    choose_native_strategy().ok().map(|folders| folders.cache_dir().join("alluvium"))
}

/// The operations of these names; all of them when none is given.
pub(crate) fn operations(names: &[String]) -> Result<Vec<&'static Op>> {
    if names.is_empty() {
        return Ok(alluvium::ops::OPS.to_vec());
    }
    let find = |name: &String| match alluvium::ops::find(name) {
        Some(op) => Ok(op),
        None => bail!("there is no operation `{name}`; `alluvium ops` lists them"),
    };
    names.iter().map(find).collect()
}

/// A folder of a model that is not there and looks like the name of a repository is said to be one.
pub(crate) fn is_here(model: &Path) -> Result<()> {
    let names = || model.components().all(|part| matches!(part, Component::Normal(_)));
    if model.exists() || model.components().count() != 2 || !names() {
        return Ok(());
    }
    let name = model.display();
    bail!(
        "{name}: there is no such folder, and nothing is downloaded; if that is a repository of Hugging Face, fetch it \
         (`hf download {name} --local-dir DIR`) and give the folder"
    )
}
