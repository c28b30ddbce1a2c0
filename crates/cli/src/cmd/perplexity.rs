use super::DeviceArg;
use super::generate::tokenizer;
use crate::output::{bar, bytes, seconds};
use alluvium::lm::{load, perplexity};
use anyhow::Context;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Measure how well a model predicts a text
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json and the safetensors files
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Text, or lines of JSON with a `text` each
    #[arg(long, value_name = "FILE")]
    data_path: PathBuf,
    /// Tokens that are read at once, each window from its own beginning
    #[arg(long, value_name = "N", default_value_t = 512)]
    sequence_length: usize,
    /// At most so many windows; -1 takes all
    #[arg(long, value_name = "N", default_value_t = -1)]
    num_samples: i64,
    /// Write the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let text = read(&args.data_path)?;
    let loaded = load(&args.model, &device)?;
    let mut ids = tokenizer(loaded.tokenizer, &args.model)?.encode(&text)?;
    if let Ok(samples) = usize::try_from(args.num_samples) {
        ids.truncate(samples.saturating_mul(args.sequence_length));
    }
    let start = Instant::now();
    let progress = bar(ids.len() as u64, 0);
    let score = perplexity::score(loaded.model.as_ref(), &ids, args.sequence_length, &mut |done| {
        progress.set_position(done as u64);
    })
    .with_context(|| args.model.display().to_string())?;
    progress.finish_and_clear();
    let time = start.elapsed().as_secs_f64();
    if args.json {
        let result = serde_json::json!({
            "perplexity": score.perplexity(), "standard_error": score.standard_error(), "nats_per_token": score.mean(),
            "tokens": score.tokens, "seconds": time, "peak_memory": device.peak_memory(),
        });
        writeln!(out, "{result}")?;
        return Ok(());
    }
    writeln!(
        out,
        "perplexity {:.3} ± {:.3} · {:.4} nats per token · {} tokens in {} ({:.0} tokens/s) · peak {}",
        score.perplexity(),
        score.standard_error(),
        score.mean(),
        score.tokens,
        seconds(time),
        score.tokens as f64 / time.max(1e-9),
        bytes(device.peak_memory()),
    )?;
    Ok(())
}

/// The text of a file; of lines of JSON, all their texts.
fn read(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    if path.extension().is_none_or(|extension| extension != "jsonl") {
        return Ok(text);
    }
    let mut all = String::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = || format!("{}: line {}", path.display(), number + 1);
        let line: serde_json::Value = serde_json::from_str(line).with_context(place)?;
        all += line["text"].as_str().with_context(|| format!("{} has no `text`", place()))?;
        all.push('\n');
    }
    Ok(all)
}
