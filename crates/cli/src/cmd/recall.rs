use super::DeviceArg;
use crate::output::{say, seconds};
use alluvium::train::{STUDY, measure_all, write_report};
use std::io::Write;
use std::path::PathBuf;

/// Measure what the short convolution and the delta term are for: small models on two tasks of memory, with and without
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for recall.md, the table, and recall.svg, accuracy over steps
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seeds of each model; the first is 0
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Optimiser steps of each run, in place of those that the whole model needs
    #[arg(long, value_name = "N")]
    iters: Option<u64>,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let exercises = STUDY.iter().flat_map(|variant| (0..args.seeds).map(move |seed| (variant, seed)));
    let exercises =
        exercises.map(|(variant, seed)| variant.exercise(seed, args.iters)).collect::<Result<Vec<_>, _>>()?;
    let runs = measure_all(&exercises, &device, &|exercise, record| {
        if let Some(accuracy) = record.accuracy {
            say!("{exercise}: step {}, {:.1} %", record.step, 100.0 * accuracy);
        }
    })?;
    for run in &runs {
        writeln!(out, "{}: {:.1} % in {}", run.exercise, 100.0 * run.accuracy(), seconds(run.seconds))?;
    }
    write_report(&args.out, &runs, &device)?;
    writeln!(out, "table     {0}/recall.md\npicture   {0}/recall.svg", args.out.display())?;
    Ok(())
}
