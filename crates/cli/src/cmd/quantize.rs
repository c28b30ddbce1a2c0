use super::convert::{Layout, PackingArgs, write};
use alluvium::lm::Change;
use std::io::Write;
use std::path::PathBuf;

/// Quantize the matrices of a model; the same as `convert -q`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the model
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// New folder; it must not exist
    #[arg(long, value_name = "DIR")]
    mlx_path: PathBuf,
    #[command(flatten)]
    packing: PackingArgs,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    write((&args.model, &args.mlx_path), Layout::Mlx, None, &Change::Quantize(args.packing.scheme()?), out)
}
