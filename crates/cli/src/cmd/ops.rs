use crate::output::listing;
use alluvium::ops::docs;
use std::io::Write;

/// List the operations: what they take, what they give, whether they have a gradient
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the page docs/ops.md instead
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
