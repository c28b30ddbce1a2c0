use super::DeviceArg;
use crate::output::{say, seconds};
use alluvium::train::{Changes, Event, Exercise, Outcome, STUDY, measure, write_report};
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
    /// Optimiser steps of each run
    #[arg(long, value_name = "N")]
    iters: Option<u64>,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let mut runs = Vec::new();
    for (task, ablation, optimizer) in STUDY {
        for seed in 0..args.seeds {
            let changes =
                Changes { iters: args.iters, seed: Some(seed), optimizer: Some(optimizer), ..Changes::default() };
            let exercise = Exercise { task, settings: changes.settings_for(task)?, ablation };
            let run = measure(exercise, &device, &mut |event| {
                if let Event::Measured(record) = event
                    && let Some(accuracy) = record.accuracy
                {
                    let (name, step) = (task.name(), record.step);
                    say!("{name}, {ablation}, {optimizer}, seed {seed}: step {step}, {:.1} %", 100.0 * accuracy);
                }
                Outcome::Continue
            })?;
            let (accuracy, time) = (100.0 * run.accuracy(), seconds(run.seconds));
            writeln!(out, "{}, {ablation}, {optimizer}, seed {seed}: {accuracy:.1} % in {time}", task.name())?;
            runs.push(run);
        }
    }
    write_report(&args.out, &runs, &device)?;
    writeln!(out, "table     {0}/recall.md\npicture   {0}/recall.svg", args.out.display())?;
    Ok(())
}
