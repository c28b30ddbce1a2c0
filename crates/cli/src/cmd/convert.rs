use super::hub::find_model;
use crate::output::{bar, bytes, count};
use alluvium::DType;
use alluvium::lm::quantize::format::parse_packing;
use alluvium::lm::{Change, Converted, MixedRecipe, QuantConfig, convert, convert_gguf, convert_to_transformers};
use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Convert a model: to the layout of MLX or of transformers, to another dtype, quantized or dequantized
///
/// One tensor is in memory at a time.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the model, or its name on the Hugging Face Hub: org/name
    #[arg(long, visible_alias = "model", value_name = "DIR", required_unless_present = "gguf")]
    hf_path: Option<PathBuf>,
    /// GGUF file of llama.cpp, the first one of a split model; its values are kept, see docs/formats.md
    #[arg(long, value_name = "FILE", conflicts_with = "hf_path")]
    gguf: Option<PathBuf>,
    /// New folder; it must not exist
    #[arg(long, visible_alias = "output", value_name = "DIR", default_value = "mlx_model")]
    mlx_path: PathBuf,
    /// Layout of the new folder: that of MLX, or that of transformers, vLLM and llama.cpp's converter
    #[arg(long, default_value = "mlx")]
    to: Layout,
    /// Quantize the matrices
    #[arg(long, short, conflicts_with = "dequantize")]
    quantize: bool,
    #[command(flatten)]
    packing: PackingArgs,
    /// Data type of unquantized weights [default: torch_dtype from config.json, else unchanged]
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Dequantize a quantized model
    #[arg(long, short)]
    dequantize: bool,
    /// Write the result as JSON
    #[arg(long)]
    json: bool,
}

/// Quantization of the matrices.
#[derive(clap::Args)]
pub(crate) struct PackingArgs {
    /// Bits per weight: 1, 2, 3, 4, 5, 6 or 8 [default: 4]
    #[arg(long, value_name = "N")]
    q_bits: Option<usize>,
    /// Weights that share a scale: 32, 64 or 128 [default: 64]
    #[arg(long, value_name = "N")]
    q_group_size: Option<usize>,
    /// Format: affine, mxfp4, nvfp4 or mxfp8
    #[arg(long, value_name = "MODE", default_value = "affine")]
    q_mode: String,
    /// Recipe that gives some layers more bits: mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6
    #[arg(long, value_name = "RECIPE")]
    quant_predicate: Option<String>,
    /// Override for modules whose name contains PART: PART=BITS, PART=BITS:GROUP, PART=MODE or PART=none; may be given
    /// several times, the first match wins
    #[arg(long, value_name = "PART=BITS")]
    q_layer: Vec<String>,
}

/// The layout of a checkpoint.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Layout {
    Mlx,
    Hf,
}

/// A floating-point dtype.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Dtype {
    Float16,
    Bfloat16,
    Float32,
}

impl PackingArgs {
    pub(crate) fn scheme(&self) -> anyhow::Result<QuantConfig> {
        let packing = parse_packing(&self.q_mode, self.q_bits, self.q_group_size)
            .map_err(|why| anyhow!("{}: {why}", self.given()))?;
        let mut scheme = QuantConfig::of(packing);
        if let Some(name) = &self.quant_predicate {
            let known = MixedRecipe::NAMES.iter().find(|(known, _)| known == name);
            let all = MixedRecipe::NAMES.map(|(known, _)| known).join(", ");
            scheme.mixed = Some(
                known.with_context(|| format!("--quant-predicate: there is no recipe `{name}`; there are {all}"))?.1,
            );
        }
        for layer in &self.q_layer {
            let (part, how) =
                layer.split_once('=').with_context(|| format!("--q-layer {layer}: expected PART=BITS"))?;
            if part.is_empty() || how.is_empty() {
                bail!("--q-layer {layer}: expected PART=BITS, with something on both sides of the =");
            }
            let (bits, group) = how.split_once(':').map_or((how, None), |(bits, group)| (bits, Some(group)));
            let group = group
                .map(str::parse)
                .transpose()
                .with_context(|| format!("--q-layer {layer}: expected an integer after the :"))?;
            let packing = match (bits, bits.parse::<usize>()) {
                ("none", _) => None,
                (_, Ok(bits)) => Some(parse_packing("affine", Some(bits), group.or(self.q_group_size))),
                (mode, Err(_)) => Some(parse_packing(mode, None, group)),
            };
            scheme
                .modules
                .push((part.to_owned(), packing.transpose().map_err(|why| anyhow!("--q-layer {layer}: {why}"))?));
        }
        Ok(scheme)
    }

    /// Whether any of these flags was given.
    fn asks(&self) -> bool {
        !self.given().is_empty() || self.quant_predicate.is_some() || !self.q_layer.is_empty()
    }

    /// The given flags that set the format of all matrices.
    fn given(&self) -> String {
        let number = |flag: &str, number: Option<usize>| number.map(|number| format!("{flag} {number}"));
        let mode = (self.q_mode != "affine").then(|| format!("--q-mode {}", self.q_mode));
        let flags = [mode, number("--q-bits", self.q_bits), number("--q-group-size", self.q_group_size)];
        flags.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let scheme = args.packing.scheme()?;
    let change = match (args.quantize, args.dequantize) {
        (true, _) => Change::Quantize(scheme),
        (_, true) => Change::Dequantize,
        _ if args.packing.asks() => bail!("the --q-* and --quant-predicate flags need -q; add it"),
        _ => Change::None,
    };
    let from = args.gguf.as_ref().or(args.hf_path.as_ref()).context("--hf-path or --gguf is missing")?;
    let job = Job { from, to: &args.mlx_path, layout: args.to, dtype: args.dtype, json: args.json };
    job.run(&change, out)
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float16 => DType::F16,
            Dtype::Bfloat16 => DType::BF16,
            Dtype::Float32 => DType::F32,
        }
    }
}

/// A conversion and how its result is written.
pub(crate) struct Job<'a> {
    pub(crate) from: &'a Path,
    pub(crate) to: &'a Path,
    pub(crate) layout: Layout,
    pub(crate) dtype: Option<Dtype>,
    pub(crate) json: bool,
}

impl Job<'_> {
    pub(crate) fn run(&self, change: &Change, out: &mut impl Write) -> anyhow::Result<()> {
        let &Job { from, to, layout, dtype, json } = self;
        let converted = convert_with_progress((from, to), layout, dtype.map(DType::from), change)?;
        match json {
            true => writeln!(out, "{}", as_json(to, &converted))?,
            false => writeln!(out, "{}", as_line(to, &converted))?,
        }
        Ok(())
    }
}

fn as_json(to: &Path, converted: &Converted) -> serde_json::Value {
    serde_json::json!({
        "path": to.display().to_string(),
        "parameters": converted.parameters,
        "bytes": converted.bytes,
        "bits_per_weight": converted.bits_per_weight(),
        "quantized_modules": converted.packed,
        "quantized_before": converted.packed_before,
    })
}

fn as_line(to: &Path, converted: &Converted) -> String {
    let before = match converted.packed_before {
        0 => String::new(),
        before => format!(", {before} of them before"),
    };
    format!(
        "{}: {} parameters in {}, {:.3} bits per weight, {} modules quantized{before}",
        to.display(),
        count(converted.parameters as f64),
        bytes(converted.bytes),
        converted.bits_per_weight(),
        converted.packed,
    )
}

fn convert_with_progress(
    (from, to): (&Path, &Path),
    layout: Layout,
    dtype: Option<DType>,
    change: &Change,
) -> anyhow::Result<Converted> {
    let from = &find_model(from)?;
    let progress = bar(0, 0);
    let mut show = |done, all| {
        progress.set_length(all as u64);
        progress.set_position(done as u64);
    };
    let converted = match layout {
        Layout::Mlx if from.is_file() => convert_gguf(from, to, dtype, change, &mut show)?,
        Layout::Hf if from.is_file() => {
            bail!("a GGUF file is converted to the layout of MLX first; then convert that folder with --to hf")
        }
        Layout::Mlx => convert(from, to, dtype, change, &mut show)?,
        Layout::Hf => convert_to_transformers(from, to, dtype, change, &mut show)?,
    };
    progress.finish_and_clear();
    Ok(converted)
}
