//! The commands, one file each: arguments and output, no logic.

pub(crate) mod bench;
mod bench_model;
pub(crate) mod cache_prompt;
pub(crate) mod chat;
pub(crate) mod check;
pub(crate) mod convert;
pub(crate) mod devices;
pub(crate) mod distill;
pub(crate) mod docs;
pub(crate) mod dwq;
pub(crate) mod dynamic_quant;
pub(crate) mod finetune;
pub(crate) mod fuse;
pub(crate) mod generate;
pub(crate) mod hub;
pub(crate) mod info;
pub(crate) mod memory;
pub(crate) mod model;
pub(crate) mod ops;
pub(crate) mod perplexity;
pub(crate) mod prompt;
pub(crate) mod quantize;
mod report;
pub(crate) mod response;
mod samples;
pub(crate) mod sampling;
pub(crate) mod serve;
pub(crate) mod train;

use alluvium::Device;
use alluvium::core::cpu::{ActivationBits, Cpu};
use alluvium::core::gpu::{Builder, Gpu};
use alluvium::ops::Op;
use anyhow::{Result, bail};
use etcetera::base_strategy::{BaseStrategy, choose_native_strategy};
use std::path::PathBuf;

/// The device to run on.
#[derive(clap::Args)]
pub(crate) struct DeviceArg {
    /// Device: cpu, cuda or cuda:N (NVIDIA), wgpu or wgpu:N (any GPU), or auto (the fastest of these); see `alluvium
    /// devices`
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// How exactly products with quantized weights read their activations.
#[derive(Clone, Copy, Default, clap::Args)]
pub(crate) struct ActivationBitsArg {
    /// Bits of activations in products with weights of less than 8 bits on the CPU: 8 is faster and less exact (see
    /// docs/numerics.md); all of them when left out
    #[arg(long, value_name = "BITS", value_parser = activation_bits)]
    activation_bits: Option<ActivationBits>,
}

/// The activation bits of a flag.
fn activation_bits(text: &str) -> Result<ActivationBits, String> {
    match text {
        "8" => Ok(ActivationBits::Eight),
        _ => Err("expected 8, or no flag for all bits".to_owned()),
    }
}

impl DeviceArg {
    pub(crate) fn open(&self) -> Result<Device> {
        self.check()?;
        Ok(Device::open(&self.device, gpu())?)
    }

    /// As [`DeviceArg::open`], with activations of these bits; a GPU is refused where bits are given.
    pub(crate) fn open_with(&self, bits: ActivationBitsArg) -> Result<Device> {
        match (self.open()?, bits.activation_bits) {
            (Device::Cpu(cpu), Some(bits)) => {
                Ok(Cpu::builder().threads(cpu.threads()).activation_bits(bits).open()?.into())
            }
            (Device::Gpu(gpu), Some(_)) => {
                bail!("--activation-bits: the device is {}, expected --device cpu: GPUs use all bits", gpu.name())
            }
            (device, None) => Ok(device),
        }
    }

    /// Refuses names of other programs.
    fn check(&self) -> Result<()> {
        if self.device.starts_with("mps") || self.device.starts_with("metal") {
            bail!("--device {}: Apple's GPUs are `wgpu` here, through Metal", self.device);
        }
        Ok(())
    }

    /// The same device, with a memory pool that fills allocations with NaN.
    pub(crate) fn poisoned(&self) -> Result<Device> {
        self.check()?;
        Ok(match Device::open(&self.device, gpu().poison())? {
            Device::Cpu(cpu) => Cpu::builder().threads(cpu.threads()).poison().open()?.into(),
            gpu => gpu,
        })
    }
}

/// Opens GPUs with the cache of compiled kernels.
fn gpu() -> Builder {
    match kernels() {
        Some(folder) => Gpu::builder().cache(folder),
        None => Gpu::builder(),
    }
}

/// The folder of compiled kernels, in the user's cache folder.
fn kernels() -> Option<PathBuf> {
    choose_native_strategy().ok().map(|folders| folders.cache_dir().join("alluvium"))
}

/// The operations of these names; all operations for an empty list.
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
