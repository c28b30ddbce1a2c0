//! The speed of a model: tokens per second of reading a prompt and of generating.

use super::memory::MemoryArg;
use super::model::{LoadArgs, described, open};
use super::{ActivationBitsArg, DeviceArg};
use crate::output::{bar, bytes, count};
use alluvium::DType;
use alluvium::lm::{GenerateOptions, LanguageModel, Session, inspect};
use serde_json::json;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::Path;

/// What is measured of a model.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// With --model: tokens of the prompt; 0 leaves this test out
    #[arg(long, short, value_name = "N", default_value_t = 512, requires = "model")]
    prompt_tokens: usize,
    /// With --model: tokens that are generated; 0 leaves this test out
    #[arg(long, short, value_name = "N", default_value_t = 128, requires = "model")]
    generation_tokens: usize,
    /// With --model: how often each test is repeated
    #[arg(
        long,
        short,
        alias = "repetitions",
        short_alias = 'r',
        value_name = "N",
        default_value = "5",
        requires = "model"
    )]
    num_trials: NonZeroUsize,
    #[command(flatten)]
    activation_bits: ActivationBitsArg,
}

/// The tokens per second of one test.
struct Speed {
    test: String,
    trials: Vec<f64>,
}

impl Speed {
    fn mean(&self) -> f64 {
        self.trials.iter().sum::<f64>() / self.trials.len() as f64
    }

    /// The standard deviation of the trials.
    fn spread(&self) -> f64 {
        let mean = self.mean();
        let squares: f64 = self.trials.iter().map(|x| (x - mean).powi(2)).sum();
        (squares / (self.trials.len() - 1).max(1) as f64).sqrt()
    }
}

/// Times a model and writes the table of llama-bench, or a line of JSON for each test.
pub(crate) fn run(
    model: &Path,
    args: &ModelArgs,
    dtype: DType,
    device: &DeviceArg,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let tokens = args.prompt_tokens.max(args.generation_tokens);
    let load = LoadArgs::computing_in(dtype, args.activation_bits);
    let opened = open(model, &load, device, tokens, &MemoryArg { ignore_memory: false })?;
    let (prompt, generated, trials) = (args.prompt_tokens, args.generation_tokens, args.num_trials.get());
    let progress = bar(2 * (trials as u64 + 1), 0);
    let mut speeds = Vec::new();
    let mut test = |name: String, run: &dyn Fn(&dyn LanguageModel) -> anyhow::Result<f64>| -> anyhow::Result<()> {
        progress.set_message(name.clone());
        // the first run fills caches and compiles kernels
        run(opened.model.as_ref())?;
        progress.inc(1);
        let mut speed = Speed { test: name, trials: Vec::new() };
        for _ in 0..trials {
            speed.trials.push(run(opened.model.as_ref())?);
            progress.inc(1);
        }
        speeds.push(speed);
        Ok(())
    };
    if prompt > 0 {
        test(format!("pp{prompt}"), &|model| read(model, prompt))?;
    }
    if generated > 0 {
        test(format!("tg{generated}"), &|model| generate(model, generated))?;
    }
    progress.finish_and_clear();
    let found = inspect(&opened.folder)?;
    let model_type = found.model_type.clone().unwrap_or_default();
    let (size, parameters) = (bytes(found.bytes()), count(found.parameters() as f64));
    if !json {
        writeln!(out, "| model | size | params | device | test | t/s |\n|---|---:|---:|---|---:|---:|")?;
    }
    for speed in &speeds {
        let device = described(&opened.device);
        match json {
            false => {
                let (mean, spread) = (speed.mean(), speed.spread());
                let row = format!("| {model_type} | {size} | {parameters} | {device} | {} |", speed.test);
                writeln!(out, "{row} {mean:.2} ± {spread:.2} |")?;
            }
            true => {
                let line = json!({
                    "model": opened.name(), "model_type": model_type, "bytes": found.bytes(),
                    "parameters": found.parameters(), "device": device, "test": speed.test,
                    "tokens_per_second": speed.mean(), "spread": speed.spread(), "trials": speed.trials,
                    "peak_memory": opened.device.peak_memory(),
                });
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(())
}

/// Tokens of a prompt that says nothing.
fn ids(model: &dyn LanguageModel, tokens: usize) -> Vec<u32> {
    let vocab_size = model.lm_head().shape()[0] as u64;
    (1..=tokens as u64).map(|i| (i * 2_654_435_761 % vocab_size) as u32).collect()
}

/// Reads a prompt and chooses the token after it: tokens per second.
fn read(model: &dyn LanguageModel, tokens: usize) -> anyhow::Result<f64> {
    let options = GenerateOptions { max_tokens: 1, ..GenerateOptions::default() };
    let mut session = Session::new(model)?.without_snapshots();
    let generation = session.generate(None, &ids(model, tokens), &options)?;
    Ok(tokens as f64 / generation.prefill_seconds.max(1e-9))
}

/// Generates after one token: tokens per second.
fn generate(model: &dyn LanguageModel, tokens: usize) -> anyhow::Result<f64> {
    // the time counts from the first token to the last
    let options = GenerateOptions { max_tokens: tokens + 1, ..GenerateOptions::default() };
    let generation = Session::new(model)?.without_snapshots().generate(None, &ids(model, 1), &options)?;
    Ok(tokens as f64 / generation.decode_seconds.max(1e-9))
}
