use super::hub::find_model;
use crate::output::note;
use alluvium::Device;
use alluvium::lm::adapter::{Adapter, Fuse, write_peft};
use alluvium::lm::{Change, convert, convert_to_transformers};
use std::io::Write;
use std::path::PathBuf;

/// Add an adapter to the weights of its model
///
/// Flags and files are those of mlx_lm.fuse. Quantized matrices are quantized again in their own format; --dequantize,
/// and --to hf, make all of them plain. The adapter may be of mlx-lm or of PEFT.
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
    /// Layout to write: mlx; hf, the layout of transformers; or peft, the adapter alone as PEFT has it
    #[arg(long, value_name = "LAYOUT", value_parser = ["mlx", "hf", "peft"], default_value = "mlx")]
    to: String,
    /// Write plain matrices
    #[arg(long, alias = "de-quantize")]
    dequantize: bool,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let model = find_model(&args.model)?;
    let adapter = Adapter::read(&args.adapter_path, &Device::cpu())?;
    let (count, to) = (adapter.len(), &args.save_path);
    if args.to == "peft" {
        write_peft(&adapter, &model, to)?;
        writeln!(out, "{}: an adapter of {count} modules in PEFT's form", to.display())?;
        return Ok(());
    }
    note!("fusing {} with {} …", model.display(), args.adapter_path.display());
    let is_plain = args.dequantize || args.to == "hf";
    let change = Change::Fuse(adapter, if is_plain { Fuse::Dequantize } else { Fuse::Requantize });
    match args.to.as_str() {
        "hf" => {
            // the layout of transformers is made of a folder, which is removed again
            let staging = to.with_extension("fused");
            convert(&model, &staging, None, &change, &mut |_, _| ())?;
            let result = convert_to_transformers(&staging, to, None, &Change::None, &mut |_, _| ());
            std::fs::remove_dir_all(&staging)?;
            result?;
        }
        _ => {
            convert(&model, to, None, &change, &mut |_, _| ())?;
        }
    }
    writeln!(out, "{}: an adapter of {count} modules is added", to.display())?;
    Ok(())
}
