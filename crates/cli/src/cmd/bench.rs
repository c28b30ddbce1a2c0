use super::check::dtype;
use super::{DeviceArg, bench_model, operations};
use crate::output::{bar, bytes, seconds, table};
use alluvium::DType;
use alluvium::ops::bench::{Ceiling, Timing, cases, ceiling, time};
use alluvium::ops::check::{Zeros, check};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Time a model, or operations beside the device's measured limits: copy bandwidth, matrix product rate, launch cost
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these operations
    ops: Vec<String>,
    /// Time a model instead: reading a prompt (pp) and generating (tg), in the table of llama-bench
    #[arg(long, value_name = "DIR", conflicts_with = "ops")]
    model: Option<PathBuf>,
    #[command(flatten)]
    of_model: bench_model::ModelArgs,
    /// Dtype of a model's activations, or storage of an operation's arguments: f32, f16 or bf16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    dtype: DType,
    /// Write one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArg,
}

/// What a share above 100 % means.
const ABOVE: &str = "above 100 %: faster than `a += b` on as much data and the product of f32, by which limits are \
                     measured:\nit reads more than it writes, computes on integers or in matrix units, \
                     or the machine was busy then";

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    if let Some(model) = &args.model {
        return bench_model::run(model, &args.of_model, args.dtype, &args.device, args.json, out);
    }
    let device = args.device.open()?;
    let ops = operations(&args.ops)?;
    let ceiling = ceiling(&device)?;
    let (bandwidth, rate) = (ceiling.bandwidth / 1e9, ceiling.rate / 1e9);
    if args.json {
        writeln!(
            out,
            "{}",
            json!({
                "device": device.to_string(),
                "copy_gb_per_s": bandwidth,
                "copy_gb_per_s_by_bytes": ceiling.cached.iter().map(|(n, rate)| (n, rate / 1e9)).collect::<Vec<_>>(),
                "gemm_gflop_per_s": rate,
                "launch_seconds": ceiling.launch,
            })
        )?;
    } else {
        writeln!(
            out,
            "{device}: {bandwidth:.1} GB/s copied (read + written), {rate:.0} GFLOP/s in a {}³ matrix product",
            ceiling.side
        )?;
        if let Some((size, rate)) = ceiling.cached.iter().max_by(|a, b| a.1.total_cmp(&b.1)) {
            writeln!(out, "{device}: {:.1} GB/s of {} in caches", rate / 1e9, bytes(*size))?;
        }
        if let Some(launch) = ceiling.launch {
            writeln!(out, "{device}: {:.2} µs of host time per launch", launch * 1e6)?;
        }
        writeln!(out)?;
    }
    let (mut rows, mut fastest) = (Vec::new(), 0.0_f64);
    let progress = bar(ops.len() as u64, 0);
    for op in ops {
        progress.set_message(op.name());
        let mut red = None;
        for case in op.cases {
            red = red.or(check(op, case, args.dtype, &device, Zeros::MustFail)?.faults.into_iter().next());
        }
        if let Some(fault) = red {
            anyhow::bail!("{} is not timed because its check fails: {fault}", op.name());
        }
        for case in cases(op, &device) {
            let (forward, both) = time(op, case, args.dtype, &device)?;
            for (what, timing) in [("forward", Some(forward)), ("forward+backward", both)] {
                let Some(timing) = timing else { continue };
                fastest = fastest.max(timing.fraction(&ceiling));
                if args.json {
                    writeln!(out, "{}", line(op.name(), case.name, what, &timing, &ceiling))?;
                } else {
                    rows.push(row(op.name(), case.name, what, &timing, &ceiling));
                }
            }
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    if !args.json {
        table(out, ["operation, case", "", "time", "GB/s", "GFLOP/s", "of limit"], &rows)?;
        if fastest > 1.0 {
            writeln!(out, "\n{ABOVE}")?;
        }
    }
    Ok(())
}

fn row(op: &str, case: &str, what: &str, timing: &Timing, ceiling: &Ceiling) -> [String; 6] {
    [
        format!("{op}, {case}"),
        what.to_owned(),
        seconds(timing.seconds),
        format!("{:.1}", timing.bandwidth() / 1e9),
        format!("{:.1}", timing.rate() / 1e9),
        format!("{:.0} %", 100.0 * timing.fraction(ceiling)),
    ]
}

fn line(op: &str, case: &str, what: &str, timing: &Timing, ceiling: &Ceiling) -> serde_json::Value {
    json!({
        "op": op,
        "case": case,
        "pass": what,
        "seconds": timing.seconds,
        "gb_per_s": timing.bandwidth() / 1e9,
        "gflop_per_s": timing.rate() / 1e9,
        "of_ceiling": timing.fraction(ceiling),
    })
}
