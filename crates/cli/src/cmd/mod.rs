//! The commands: one file each, arguments and no logic.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod devices;
pub(crate) mod generate;
pub(crate) mod info;
pub(crate) mod ops;
pub(crate) mod recall;
pub(crate) mod train;

use alluvium::Device;
use alluvium::ops::Op;
use anyhow::{Result, bail};

/// The device that work runs on.
#[derive(clap::Args)]
pub(crate) struct DeviceArg {
    /// Where to run: cpu
    #[arg(long, default_value = "cpu")]
    device: String,
}

impl DeviceArg {
    pub(crate) fn open(&self) -> Result<Device> {
        match self.device.as_str() {
            "cpu" | "auto" => Ok(Device::cpu()),
            other => bail!("there is no device `{other}`; `alluvium devices` lists what is here"),
        }
    }
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
