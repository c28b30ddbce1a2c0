use super::{DeviceArg, operations};
use crate::output::{bar, table};
use alluvium::DType;
use alluvium::ops::check::{Gap, QUESTIONS, Zeros, check};
use anyhow::bail;
use serde_json::json;
use std::io::Write;

/// Compare every operation on a device with its reference: values, gradients, unwritten memory, bit-identical results
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these operations
    ops: Vec<String>,
    /// Storage of floating arguments: f32, f16 or bf16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    dtype: DType,
    /// Ask every question on the CPU: values, gradients, differences, refusals, threads, need, random shapes
    #[arg(long, conflicts_with_all = ["dtype", "device"])]
    all: bool,
    /// Write one JSON object for each operation
    #[arg(long, conflicts_with = "all")]
    json: bool,
    #[command(flatten)]
    device: DeviceArg,
}

pub(super) fn dtype(name: &str) -> Result<DType, String> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => Err("expected f32, f16 or bf16".to_owned()),
    }
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    if args.all {
        return every_question(args, out);
    }
    // an element that a kernel leaves unwritten shows
    let device = args.device.poisoned()?;
    let (mut rows, mut faults, mut cases) = (Vec::new(), Vec::new(), 0);
    let ops = operations(&args.ops)?;
    let progress = bar(ops.len() as u64, 0);
    for op in ops {
        progress.set_message(op.name());
        let (mut worst, mut red) = (Gap::default(), 0);
        for case in op.cases {
            let report = check(op, case, args.dtype, &device, Zeros::MustFail)?;
            worst = worst.worse(report.worst);
            red += usize::from(!report.passed());
            faults.extend(report.faults.iter().map(|fault| format!("{}, {}: {fault}", op.name(), case.name)));
        }
        cases += op.cases.len();
        let verdict = if red == 0 { "ok".to_owned() } else { format!("{red} RED") };
        let gaps = [format!("{:.1e}", worst.relative), format!("{:.1e}", worst.worst)];
        let gradient = if op.differentiable() { "yes" } else { "no" };
        let [relative, element] = gaps;
        progress.inc(1);
        if args.json {
            let line = json!({
                "op": op.name(), "cases": op.cases.len(), "gradient": op.differentiable(), "faults": red,
                "relative_l2": worst.relative, "worst_element": worst.worst,
            });
            writeln!(out, "{line}")?;
        }
        rows.push([op.name().to_owned(), op.cases.len().to_string(), gradient.to_owned(), relative, element, verdict]);
    }
    progress.finish_and_clear();
    if args.json {
        return if faults.is_empty() { Ok(()) } else { bail!("{} faults: {}", faults.len(), faults.join("; ")) };
    }
    table(out, ["operation", "cases", "gradient", "relative L2", "worst element", ""], &rows)?;
    if faults.is_empty() {
        writeln!(
            out,
            "\n{} operation{}, {cases} cases on {device} in {}: all as the reference",
            rows.len(),
            if rows.len() == 1 { "" } else { "s" },
            args.dtype
        )?;
        return Ok(());
    }
    faults.iter().try_for_each(|fault| writeln!(out, "\n{fault}"))?;
    bail!("{} faults", faults.len())
}

/// Asks every question about the operations; each has a line.
fn every_question(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    for op in operations(&args.ops)? {
        for (question, ask) in QUESTIONS {
            let found = ask(op)?;
            let verdict = if found.is_empty() { "ok".to_owned() } else { format!("{} RED", found.len()) };
            writeln!(out, "{}: {question}: {verdict}", op.name())?;
            faults.extend(found);
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    faults.iter().try_for_each(|fault| writeln!(out, "\n{fault}"))?;
    bail!("{} faults", faults.len())
}
