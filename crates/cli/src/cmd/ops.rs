use crate::output::listing;
use alluvium::ops::docs;
use std::io::Write;

/// List the operations: arguments, results, gradients
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write docs/ops.md instead
    #[arg(long)]
    markdown: bool,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    if args.markdown {
        write!(out, "{}", docs::page())?;
        return Ok(());
    }
    let plain = |op: &&alluvium::ops::Op| docs::row(op).map(|cell| cell.replace('`', ""));
    listing(out, &alluvium::ops::OPS.iter().map(plain).collect::<Vec<_>>())?;
    Ok(())
}
