use crate::output::listing;
use alluvium::ops::docs;
use std::io::Write;

/// List the operations
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write docs/ops.md instead
    #[arg(long)]
    markdown: bool,
    /// Write the operations as JSON
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    if args.markdown {
        write!(out, "{}", docs::page())?;
        return Ok(());
    }
    if args.json {
        let row = |op| {
            let [name, summary, _, _, gradient] = docs::row(op).map(|cell| cell.replace('`', ""));
            serde_json::json!({"operation": name, "has_gradient": gradient == "yes", "summary": summary})
        };
        writeln!(out, "{}", serde_json::Value::from_iter(alluvium::ops::OPS.iter().map(|op| row(op))))?;
        return Ok(());
    }
    let mut rows = vec![["operation", "gradient", ""].map(str::to_owned)];
    rows.extend(alluvium::ops::OPS.iter().map(|op| {
        let [name, summary, _, _, gradient] = docs::row(op).map(|cell| cell.replace('`', ""));
        let gradient = if gradient == "yes" { gradient } else { "no".to_owned() };
        [name, gradient, summary]
    }));
    listing(out, &rows)?;
    writeln!(out, "\narguments and results of each: docs/ops.md, or `alluvium ops --markdown`")?;
    Ok(())
}
