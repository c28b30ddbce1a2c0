use super::DeviceArg;
use super::hub::find_model;
use crate::output::{Interrupted, bar, note};
use crate::signals::Stoppable;
use alluvium::Device;
use alluvium::lm::quantize::format::parse_packing;
use alluvium::lm::{Change, LanguageModel, Tokenizer, convert, load, perplexity, refuse_existing};
use alluvium::ops::Packing;
use alluvium::train::data::{PackedBatch, Sample, Samples, read_calibration};
use alluvium::train::distill::{SensitivitySettings, choose_bits, sensitivities};
use anyhow::{Context, anyhow, bail};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Quantize a model with more bits where they matter: sensitivities of its matrices, then bits for a target size
///
/// Flags and defaults are those of mlx_lm.dynamic_quant. Bits between --low-bits and --high-bits are used, too. The
/// sensitivities are written to MODEL_sensitivities.json, so
/// that models of other sizes need no new ones.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the plain model
    #[arg(long, short, value_name = "DIR")]
    model: PathBuf,
    /// New folder; it must not exist
    #[arg(long, value_name = "DIR", default_value = "mlx_model")]
    mlx_path: PathBuf,
    /// Text file, or .jsonl file with the lines that `finetune` takes, to measure the sensitivities with
    #[arg(long, visible_alias = "data", value_name = "FILE", required_unless_present = "sensitivities")]
    data_path: Option<PathBuf>,
    /// Maximum number of samples; -1 takes all
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    num_samples: i64,
    /// Tokens of a sample
    #[arg(long, value_name = "N", default_value_t = 512)]
    sequence_length: usize,
    /// File of sensitivities that were measured before
    #[arg(long, value_name = "FILE")]
    sensitivities: Option<PathBuf>,
    /// Bits per weight of the result, at most
    #[arg(long, value_name = "X", default_value_t = 5.0)]
    target_bpw: f64,
    /// Bits of the less sensitive matrices
    #[arg(long, value_name = "N", default_value_t = 4)]
    low_bits: usize,
    /// Weights that share a scale in them
    #[arg(long, value_name = "N", default_value_t = 64)]
    low_group_size: usize,
    /// Bits of the more sensitive matrices
    #[arg(long, value_name = "N", default_value_t = 5)]
    high_bits: usize,
    /// Weights that share a scale in them
    #[arg(long, value_name = "N", default_value_t = 64)]
    high_group_size: usize,
    /// Measure the perplexity of the data before and after
    #[arg(long, requires = "data_path")]
    report_ppl: bool,
    /// Recompute layers in the backward pass, to take less memory
    #[arg(long)]
    grad_checkpoint: bool,
    /// Accepted because commands for mlx-lm have them: gradients are summed in f32, samples come in their order
    #[arg(long, hide = true, value_parser = ["float32", "bfloat16"])]
    accumulation_dtype: Option<String>,
    #[arg(long, hide = true)]
    seed: Option<u64>,
    /// Write the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArg,
}

/// Samples in a batch, as in mlx-lm.
const BATCH: usize = 4;

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let packing = |name: &str, bits, group| -> anyhow::Result<Packing> {
        let why = |why| anyhow!("--{name}-bits {bits} --{name}-group-size {group}: {why}");
        parse_packing("affine", Some(bits), Some(group)).map_err(why)
    };
    let settings = SensitivitySettings {
        low: packing("low", args.low_bits, args.low_group_size)?,
        high: packing("high", args.high_bits, args.high_group_size)?,
        grad_checkpoint: args.grad_checkpoint,
    };
    refuse_existing(&args.mlx_path)?;
    let (model, device) = (find_model(&args.model)?, args.device.open()?);
    let samples = match &args.data_path {
        Some(path) => args.samples(path, &model)?,
        None => Vec::new(),
    };
    let found = match &args.sensitivities {
        Some(path) => read(path)?,
        None => measure(args, (&model, &settings), &samples, &device)?,
    };
    let config = choose_bits(load(&model, &Device::cpu())?.model.as_mut(), &found, &settings, args.target_bpw)?;
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    config
        .modules
        .iter()
        .flat_map(|(_, packing)| packing)
        .for_each(|packing| *counts.entry(packing.bits()).or_default() += 1);
    let before = args.report_ppl.then(|| mean(&model, &samples, &device)).transpose()?;
    if let Some(before) = before.filter(|_| !args.json) {
        writeln!(out, "perplexity  {before:.3} before")?;
    }
    let converted = convert(&model, &args.mlx_path, None, &Change::Quantize(config), &mut |_, _| ())?;
    let after = args.report_ppl.then(|| mean(&args.mlx_path, &samples, &device)).transpose()?;
    let bits = converted.bits_per_weight();
    if args.json {
        let result = serde_json::json!({
            "path": args.mlx_path.display().to_string(),
            "bits_per_weight": bits,
            "modules_by_bits": counts,
            "perplexity_before": before,
            "perplexity": after,
        });
        writeln!(out, "{result}")?;
        return Ok(());
    }
    if let Some(after) = after {
        writeln!(out, "perplexity  {after:.3} after")?;
    }
    let counts: Vec<String> = counts.iter().map(|(bits, count)| format!("{count} with {bits}")).collect();
    writeln!(out, "{}: {bits:.3} bits per weight; modules: {} bits", args.mlx_path.display(), counts.join(", "))?;
    Ok(())
}

impl Args {
    fn samples(&self, path: &Path, model: &Path) -> anyhow::Result<Vec<Sample>> {
        if self.sequence_length < 2 {
            bail!("--sequence-length is {}, expected 2 or more", self.sequence_length);
        }
        let most = match (self.num_samples, usize::try_from(self.num_samples)) {
            (-1, _) => usize::MAX,
            (_, Ok(most)) if most > 0 => most,
            (other, _) => bail!("--num-samples is {other}, expected 1 or more, or -1 for all"),
        };
        let tokenizer = Tokenizer::find(model)?
            .with_context(|| format!("{}: the folder has no tokenizer.json", model.display()))?;
        let mut samples = read_calibration(path, &tokenizer, self.sequence_length)?;
        samples.iter_mut().for_each(|sample| sample.tokens.truncate(self.sequence_length));
        samples.retain(|sample| sample.tokens.len() > 1);
        samples.truncate(most);
        if samples.is_empty() {
            bail!("--data-path {}: it has no sample of 2 tokens or more", path.display());
        }
        Ok(samples)
    }
}

/// Measures sensitivities and writes them to a file for later.
fn measure(
    args: &Args,
    (model, settings): (&Path, &SensitivitySettings),
    samples: &[Sample],
    device: &Device,
) -> anyhow::Result<BTreeMap<String, f64>> {
    let all: Vec<Sample> = samples.iter().map(|sample| Sample::whole(sample.tokens.clone())).collect();
    let batches: Vec<PackedBatch> = Samples { samples: all.into(), ..Samples::default() }.batches(BATCH, usize::MAX);
    note!("measuring sensitivities with {} samples …", samples.len());
    let (progress, stoppable) = (bar(batches.len() as u64, 0), Stoppable::new());
    let found = sensitivities(model, &batches, settings, device, &mut |done| {
        progress.set_position(done as u64);
        stoppable.check()
    })?;
    progress.finish_and_clear();
    let Some(found) = found else { return Err(Interrupted.into()) };
    // of a folder its own name, of a name on the Hub all of it
    let own = args.model.file_name().filter(|_| args.model.exists()).map(Path::new);
    let name = own.unwrap_or(&args.model).to_string_lossy().replace('/', "_");
    let path = PathBuf::from(format!("{name}_sensitivities.json"));
    // pairs, as mlx-lm writes and reads them
    let pairs: Vec<(&String, f64)> = found.iter().map(|(name, x)| (name, *x)).collect();
    let text = serde_json::to_string(&pairs)?;
    alluvium::lm::formats::write_atomic(&path, |file| file.write_all(text.as_bytes()))?;
    note!("sensitivities {}", path.display());
    Ok(found)
}

fn read(path: &Path) -> anyhow::Result<BTreeMap<String, f64>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let pairs: Vec<(String, f64)> = serde_json::from_str(&text)
        .with_context(|| format!("{}: expected a list of names and sensitivities", path.display()))?;
    Ok(pairs.into_iter().collect())
}

/// The perplexity of samples.
fn mean(folder: &Path, samples: &[Sample], device: &Device) -> anyhow::Result<f64> {
    let model: Box<dyn LanguageModel> = load(folder, device)?.model;
    let (mut sum, mut tokens) = (0.0, 0);
    for sample in samples {
        let losses = perplexity::nll(model.as_ref(), &sample.tokens)?;
        tokens += losses.len();
        sum += losses.iter().sum::<f64>();
    }
    Ok((sum / tokens.max(1) as f64).exp())
}
