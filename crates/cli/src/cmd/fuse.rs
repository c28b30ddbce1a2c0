use super::hub::find_model;
use crate::output::note;
use alluvium::Device;
use alluvium::lm::adapter::{Adapter, Fuse};
use alluvium::lm::{Change, convert};
use std::io::Write;
use std::path::PathBuf;

/// Add an adapter to the weights of its model
///
/// Flags and files are those of mlx_lm.fuse. Quantized matrices are quantized again in their own format; --dequantize
/// makes all of them plain. The adapter may be of mlx-lm or of PEFT.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the model
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder of the adapter
    #[arg(long, value_name = "DIR", default_value = "adapters")]
    adapter_path: PathBuf,
    /// Folder to write; it must not exist
    #[arg(long, value_name = "DIR", default_value = "fused_model")]
    save_path: PathBuf,
    /// Write plain matrices
    #[arg(long, alias = "de-quantize")]
    dequantize: bool,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let model = find_model(&args.model)?;
    let form = if args.dequantize { Fuse::Dequantize } else { Fuse::Requantize };
    note!("fusing {} with {} …", model.display(), args.adapter_path.display());
    let adapter = Adapter::read(&args.adapter_path, &Device::cpu())?;
    let count = adapter.len();
    convert(&model, &args.save_path, None, &Change::Fuse(adapter, form), &mut |_, _| ())?;
    writeln!(out, "{}: an adapter of {count} modules is added", args.save_path.display())?;
    Ok(())
}
