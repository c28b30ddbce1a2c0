use super::convert::{Dtype, Job, Layout, PackingArgs};
use alluvium::lm::Change;
use std::io::Write;
use std::path::PathBuf;

/// Quantize the matrices of a model; the same as `convert -q`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the model, or its name on the Hugging Face Hub: org/name
    #[arg(long, visible_alias = "hf-path", value_name = "DIR")]
    model: PathBuf,
    /// New folder; it must not exist
    #[arg(long, visible_alias = "output", value_name = "DIR", default_value = "mlx_model")]
    mlx_path: PathBuf,
    #[command(flatten)]
    packing: PackingArgs,
    /// Data type of unquantized weights [default: torch_dtype from config.json, else unchanged]
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Write the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let Args { model, mlx_path, packing, dtype, json } = args;
    let job = Job { from: model, to: mlx_path, layout: Layout::Mlx, dtype: *dtype, json: *json };
    job.run(&Change::Quantize(packing.scheme()?), out)
}
