//! What the short convolution and the delta term of a Gated DeltaNet layer are for: small models on two synthetic memory
//! tasks, with and without each part.
//!
//! `cargo run --release --example recall_study -- docs` writes docs/recall.md and docs/recall.svg.
//! A second argument sets the number of seeds, a third the number of steps.

mod report;
mod study;

use alluvium::core::{Device, Error, Result};
use std::path::PathBuf;
use study::{STUDY, measure_all};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = || Error::value("recall_study", "expected: FOLDER [SEEDS [STEPS]]");
    let folder = PathBuf::from(args.next().ok_or_else(usage)?);
    let numbers: Vec<u64> = args.map(|arg| arg.parse().map_err(|_| usage())).collect::<Result<_>>()?;
    let (seeds, iters) = (numbers.first().copied().unwrap_or(3).max(1), numbers.get(1).copied());
    let experiments = STUDY.iter().flat_map(|variant| (0..seeds).map(move |seed| variant.experiment(seed, iters)));
    let experiments = experiments.collect::<Result<Vec<_>>>()?;
    let device = Device::cpu();
    let results = measure_all(&experiments, &device, &|experiment, row| {
        if let Some(accuracy) = row.accuracy {
            eprintln!("{experiment}: step {}, {:.1} %", row.step, 100.0 * accuracy);
        }
    })?;
    for result in &results {
        println!("{}: {:.1} % in {:.0} s", result.experiment, 100.0 * result.accuracy(), result.seconds);
    }
    report::write(&folder, &results, &device)
}
