use super::hub::find_model;
use crate::output::note;
use alluvium::Device;
use alluvium::lm::adapter::{Adapter, Fuse, write_peft};
use alluvium::lm::{Change, convert, convert_to_transformers};
use serde_json::json;
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
    /// Write the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let model = find_model(&args.model)?;
    let adapter = Adapter::read(&args.adapter_path, &Device::cpu())?;
    let (count, to) = (adapter.len(), &args.save_path);
    if args.to == "peft" {
        write_peft(&adapter, &model, to)?;
        return args.result(count, "in PEFT's form", out);
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
    args.result(count, "is added", out)
}

impl Args {
    /// Writes what was made of an adapter of `modules` modules.
    fn result(&self, modules: usize, what: &str, out: &mut impl Write) -> anyhow::Result<()> {
        let path = self.save_path.display();
        match self.json {
            true => {
                let result = json!({"path": path.to_string(), "layout": self.to, "adapted_modules": modules});
                writeln!(out, "{result}")?;
            }
            false => writeln!(out, "{path}: an adapter of {modules} modules {what}")?,
        }
        Ok(())
    }
}
