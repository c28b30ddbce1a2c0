use super::DeviceArg;
use super::memory::MemoryArg;
use super::model::{LoadArgs, open};
use crate::output::{bar, bytes, note, seconds};
use alluvium::lm::{Tokenizer, perplexity};
use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Measure the perplexity of a text
///
/// The text is cut into windows of --sequence-length tokens. Every token of a window except the first counts; a shorter
/// last window is left out unless it is the only one. In a .jsonl file each line's `text` is a document, followed by
/// the end-of-text token, in the order of the file. mlx_lm.perplexity measures the same, with the lines in random
/// order.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json and the safetensors files, or a name on the Hugging Face Hub: org/name
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
    /// Text file, or a .jsonl file with a `text` on each line
    #[arg(long, value_name = "FILE")]
    data_path: PathBuf,
    /// Tokens in a window
    #[arg(long, value_name = "N", default_value_t = 512)]
    sequence_length: usize,
    /// Maximum number of windows; -1 takes all
    #[arg(long, value_name = "N", default_value_t = -1)]
    num_samples: i64,
    /// Write the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArg,
    #[command(flatten)]
    memory: MemoryArg,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let length = args.sequence_length;
    if length < 2 {
        bail!("--sequence-length is {length}, expected 2 or more: the first token of a window is not counted");
    }
    let samples = match (args.num_samples, usize::try_from(args.num_samples)) {
        (-1, _) => usize::MAX,
        (_, Ok(samples)) if samples > 0 => samples,
        (samples, _) => bail!("--num-samples is {samples}, expected 1 or more, or -1 for all"),
    };
    let texts = read(&args.data_path)?;
    let opened = open(&args.model, &args.load, &args.device, length, &args.memory)?;
    let device = &opened.device;
    let mut ids = tokens(&opened.tokenizer, &texts)?;
    ids.truncate(samples.saturating_mul(length));
    if ids.len() < 2 {
        bail!("{}: it has {} tokens, expected 2 or more", args.data_path.display(), ids.len());
    }
    let start = Instant::now();
    let progress = bar(ids.len() as u64, 0);
    let score = perplexity::score(opened.model.as_ref(), &ids, length, &mut |done| {
        progress.set_position(done as u64);
    })
    .with_context(|| opened.name())?;
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
    let (perplexity, error, mean) = (score.perplexity(), score.standard_error(), score.mean());
    let tokens = score.tokens;
    writeln!(out, "perplexity {perplexity:.3} ± {error:.3} · {mean:.4} nats per token · {tokens} tokens")?;
    let (time, speed, peak) = (seconds(time), tokens as f64 / time.max(1e-9), bytes(device.peak_memory()));
    note!("time: {time}, {speed:.1} tokens/s · peak memory: {peak}");
    Ok(())
}

/// The text to measure.
enum Texts {
    /// Plain text.
    Plain(String),
    /// Documents, each followed by the end-of-text token.
    Documents(Vec<String>),
}

fn tokens(tokenizer: &Tokenizer, texts: &Texts) -> anyhow::Result<Vec<u32>> {
    let documents = match texts {
        Texts::Plain(text) => return Ok(tokenizer.encode(text)?),
        Texts::Documents(documents) => documents,
    };
    let end = tokenizer.end_of_text();
    let mut all = Vec::new();
    for document in documents {
        let ids = tokenizer.encode(document)?;
        let ended = ids.last().copied() == end;
        all.extend(ids);
        all.extend(end.filter(|_| !ended));
    }
    Ok(all)
}

fn read(path: &Path) -> anyhow::Result<Texts> {
    if path.is_dir() {
        bail!("--data-path {}: it is a folder; give one file of it", path.display());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    if path.extension().is_none_or(|extension| extension != "jsonl") {
        return Ok(Texts::Plain(text));
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let document = |(number, line): (usize, &str)| {
        document(line).map_err(|why| anyhow!("{}, line {}: {why}", path.display(), number + 1))
    };
    lines.map(document).collect::<anyhow::Result<_>>().map(Texts::Documents)
}

/// The `text` of a JSON line, or an error that says what is there instead.
fn document(line: &str) -> Result<String, String> {
    let line: Value = serde_json::from_str(line).map_err(|error| {
        let why = error.to_string();
        // the place that it names is one within this line
        let why = why.split(" at line ").next().unwrap_or_default();
        format!("not valid JSON: {why} at column {}", error.column())
    })?;
    let Value::Object(keys) = line else { return Err("expected a JSON object with a `text`".to_owned()) };
    match keys.get("text") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("`text` is {other}, expected a string")),
        None => {
            let keys: Vec<String> = keys.keys().map(|key| format!("`{key}`")).collect();
            Err(format!("only the key `text` is read, the line has {}", keys.join(", ")))
        }
    }
}
