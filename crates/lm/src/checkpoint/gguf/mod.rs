//! Models in llama.cpp's GGUF files, loaded as they are or converted to MLX's layout.
//!
//! The blocks of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K and Q5_K become affine groups of 32 with the same values; see
//! [`blocks`]. Rows and columns that llama.cpp orders in another way are put back; see [`names`].

mod blocks;
mod config;
mod names;
mod rows;
mod tokenizer;

use self::blocks::BlockType;
use self::names::Layout;
use self::rows::{Kept, Part, Rows};
pub(crate) use self::tokenizer::TokenizerFiles;
use super::convert::{Change, Converted, commit, convert, refuse_existing, write_shards};
use super::index::INDEX;
use super::inspect::{CheckpointInfo, TensorInfo};
use super::load::{LoadOptions, Loaded};
use crate::formats::atomic::TempPath;
use crate::formats::config::Config;
use crate::formats::gguf::{Entry, GgufFile};
use crate::formats::json::pretty;
use crate::formats::safetensors::TensorSpec;
use crate::init::{Init, WeightSource};
use crate::models::{ModelType, Registry};
use crate::parameters::{Parameter, Role, join};
use crate::quantize::format::Quantization;
use crate::tokenizer::Tokenizer;
use crate::weight::Weight;
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_ops::Packing;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A GGUF file as a source of parameters.
struct GgufWeights {
    gguf: GgufFile,
    layout: Layout,
    /// The dtype of dequantized matrices.
    dtype: DType,
    device: Device,
    /// Stored tensors that the model did not ask for yet.
    left: BTreeSet<String>,
    /// As [`LoadOptions::join_projections`].
    join_projections: bool,
}

impl GgufWeights {
    /// Opens a file and reads its configuration.
    fn open(path: &Path, dtype: Option<DType>, device: &Device) -> Result<(Self, Config)> {
        let gguf = GgufFile::open(path)?;
        // orders of rows are made of the shapes, so these must be those of the file's bytes
        for (name, entry) in &gguf.tensors {
            if let Ok(kind) = BlockType::of(entry.ggml_type) {
                let (elements, bytes) = kind.block();
                gguf.check_size(name, (entry.width() / elements).saturating_mul(bytes).saturating_mul(entry.rows()))?;
            }
        }
        let (mut config, layout) = config::config(&gguf)?;
        let has_bf16 = gguf.tensors.values().any(|entry| BlockType::of(entry.ggml_type) == Ok(BlockType::Bf16));
        let dtype = dtype.unwrap_or(if has_bf16 { DType::BF16 } else { DType::F16 });
        config.set("torch_dtype", "");
        config.set_dtype(dtype);
        // layers of multi-token prediction come after those of the model
        let layers = config.text().get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(0);
        let is_ahead = |name: &str| {
            let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
            layer.and_then(|(layer, _)| layer.parse::<u64>().ok()).is_some_and(|layer| layer >= layers)
        };
        let left =
            gguf.tensors.keys().filter(|name| !is_ahead(name) && *name != "rope_freqs.weight").cloned().collect();
        Ok((GgufWeights { gguf, layout, dtype, device: device.clone(), left, join_projections: false }, config))
    }

    /// The rows of a parameter, checked.
    fn rows(&mut self, name: &str, shape: Shape) -> Result<Rows> {
        let rows = self.layout.rows(name, &self.gguf)?;
        rows.check(&self.gguf, shape)?;
        for tensor in &rows.tensors {
            self.left.remove(tensor);
        }
        Ok(rows)
    }

    /// Errs when there are tensors that the model did not ask for.
    fn finish(&self) -> Result<()> {
        match self.left.first() {
            None => Ok(()),
            Some(name) => Err(self.gguf.error(format!("tensor `{name}` has no place in the model of its metadata"))),
        }
    }

    fn tokenizer(&self) -> Result<Option<TokenizerFiles>> {
        tokenizer::tokenizer(&self.gguf)
    }
}

impl WeightSource for GgufWeights {
    fn tensor(&mut self, name: &str, shape: Shape, _: Init) -> Result<Tensor> {
        self.rows(name, shape)?.dense(&self.gguf, shape, DType::F32, &self.device)
    }

    fn weight(&mut self, module: &str, shape: Shape, _: Init) -> Result<Weight> {
        let rows = self.rows(&join(module, "weight"), shape)?;
        match rows.kept(&self.gguf, self.dtype)? {
            Kept::Dense(dtype) => Ok(Weight::Dense(rows.dense(&self.gguf, shape, dtype, &self.device)?.into())),
            Kept::Affine { bits, scales } => {
                let part = |part| rows.part(&self.gguf, shape, (bits, scales), part, &self.device);
                let frozen = |tensor| Parameter::new(tensor, Role::Frozen);
                Ok(Weight::Quantized {
                    w: part(Part::Codes)?.into(),
                    scales: frozen(part(Part::Scales)?),
                    biases: Some(frozen(part(Part::Biases)?)),
                    packing: Packing::Affine { bits: bits as u32, group: blocks::GROUP },
                })
            }
        }
    }

    fn joins_projections(&self) -> bool {
        self.join_projections
    }
}

/// Loads a model from a GGUF file.
///
/// # Errors
/// As [`load`](super::load).
pub(super) fn load(path: &Path, options: &LoadOptions) -> Result<Loaded> {
    let (mut weights, config) = GgufWeights::open(path, None, &options.device)?;
    weights.join_projections = options.join_projections;
    let model = options.registry.get(&config)?.build(&config, &mut weights)?;
    weights.finish()?;
    let tokenizer = weights.tokenizer()?.map(|files| Tokenizer::from_files(files, path)).transpose()?;
    Ok(Loaded { model, tokenizer, config })
}

/// Converts a GGUF file to a new folder `to` in MLX's layout: weights, configuration, tokenizer and chat template.
///
/// Blocks of 4, 5 and 8 bits keep their values: they become affine groups of 32. Blocks that no affine format holds
/// (Q2_K, Q3_K, Q6_K) are dequantized to `dtype`, by default bf16 where the file has bf16 tensors, else f16. Other
/// tensors keep their dtype, or get `dtype` where it is given. `change` applies to the result.
///
/// # Errors
/// When `to` exists; when the file is not whole, of an unknown architecture, or has a tensor of a type that cannot be
/// read; as [`convert`] where `change` asks for more.
pub fn convert_gguf(
    from: &Path,
    to: &Path,
    dtype: Option<DType>,
    change: &Change,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Converted> {
    refuse_existing(to)?;
    let staging = TempPath::folder(to).map_err(Error::io(to, "create"))?;
    let (weights, config) = GgufWeights::open(from, dtype, &Device::cpu())?;
    let converted = write(weights, config, dtype, staging.path(), progress)?;
    if !matches!(change, Change::None) {
        return convert(staging.path(), to, dtype, change, progress);
    }
    commit(&staging, to)?;
    Ok(converted)
}

/// Writes all files of a conversion.
fn write(
    weights: GgufWeights,
    mut config: Config,
    dtype: Option<DType>,
    folder: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Converted> {
    let model_type = Registry::default().get(&config)?;
    let steps = Steps::of(weights, &model_type, &config, dtype)?;
    let specs: Vec<Vec<TensorSpec>> = steps.all.iter().map(Step::specs).collect::<Result<_>>()?;
    let quantization = steps.quantization();
    if quantization.default.is_some() {
        config.set("quantization", quantization.json());
        config.set("quantization_config", quantization.json());
    }
    let bytes: usize = specs.iter().flatten().map(TensorSpec::bytes).sum();
    let parameters: usize = steps.all.iter().map(|step| step.shape.elements()).sum();
    let mut map = write_shards(folder, &specs, "mlx", &mut |step| steps.make(step), progress)?;
    map.sort_keys();
    let index = json!({"metadata": {"total_size": bytes, "total_parameters": parameters}, "weight_map": map});
    let mut files = vec![(INDEX, index), ("config.json", Value::Object(config.json().clone()))];
    if let Some(tokenizer) = steps.weights.tokenizer()? {
        // what cannot be loaded again is refused before anything is there
        Tokenizer::from_files(tokenizer.clone(), steps.weights.gguf.path())?;
        files.push(("tokenizer.json", tokenizer.tokenizer));
        files.push(("tokenizer_config.json", tokenizer.config));
        files.push(("generation_config.json", tokenizer.generation));
    }
    for (name, json) in files {
        let path = folder.join(name);
        fs::write(&path, pretty(&json)).map_err(Error::io(&path, "write"))?;
    }
    let packed = steps.all.iter().filter(|step| step.kept.packing().is_some()).count();
    Ok(Converted { parameters, bytes, packed, packed_before: packed })
}

/// A parameter that is to be written.
struct Step {
    /// The tensor's name, or the module's where it is packed.
    name: String,
    shape: Shape,
    rows: Rows,
    kept: Kept,
}

impl Step {
    /// The tensors that it writes.
    fn specs(&self) -> Result<Vec<TensorSpec>> {
        let spec = |name: String, dtype: DType, shape| TensorSpec { name, dtype: dtype.into(), shape };
        Ok(match self.kept {
            Kept::Dense(dtype) => vec![spec(self.name.clone(), dtype, self.shape)],
            Kept::Affine { bits, scales } => {
                let axis = self.shape.rank() - 1;
                let width = |last: usize| self.shape.with(axis, last);
                let groups = width(self.shape.last() / blocks::GROUP);
                vec![
                    spec(join(&self.name, "weight"), DType::U32, width(self.shape.last() * bits / 32)),
                    spec(join(&self.name, "scales"), scales, groups),
                    spec(join(&self.name, "biases"), scales, groups),
                ]
            }
        })
    }
}

/// The parameters of a model in the order in which it asks for them.
struct Steps {
    weights: GgufWeights,
    all: Vec<Step>,
    nothing: Tensor,
}

impl Steps {
    fn of(weights: GgufWeights, model_type: &ModelType, config: &Config, given: Option<DType>) -> Result<Self> {
        let nothing = Tensor::zeros([1], DType::F32, &Device::cpu())?;
        let mut steps = Steps { weights, all: Vec::new(), nothing };
        model_type.build(config, &mut steps)?;
        steps.weights.finish()?;
        // a dtype that was asked for is that of every plain tensor, but for those that keep theirs in a conversion
        for step in &mut steps.all {
            let keeps = model_type.keeps_dtype.iter().any(|end| step.name.ends_with(end));
            match (&mut step.kept, given) {
                (Kept::Dense(dtype), Some(given)) if !keeps => *dtype = given,
                (Kept::Affine { scales, .. }, Some(DType::F32)) => *scales = DType::F32,
                _ => {}
            }
        }
        Ok(steps)
    }

    /// The most frequent format as the default, and the modules that differ.
    fn quantization(&self) -> Quantization {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        let packed = || self.all.iter().filter_map(|step| Some((step, step.kept.packing()?)));
        for (_, packing) in packed() {
            *counts.entry(packing.bits() as u32).or_default() += 1;
        }
        let most = counts.iter().max_by_key(|(_, count)| **count).map(|(&bits, _)| bits);
        let default = most.map(|bits| Packing::Affine { bits, group: blocks::GROUP });
        let others = packed().filter(|(_, packing)| Some(*packing) != default);
        Quantization { default, modules: others.map(|(step, packing)| (step.name.clone(), Some(packing))).collect() }
    }

    fn make(&self, step: usize) -> Result<Vec<Tensor>> {
        let Step { shape, rows, kept, .. } = &self.all[step];
        let GgufWeights { gguf, device, .. } = &self.weights;
        match *kept {
            Kept::Dense(dtype) => Ok(vec![rows.dense(gguf, *shape, dtype, device)?]),
            Kept::Affine { bits, scales } => [Part::Codes, Part::Scales, Part::Biases]
                .into_iter()
                .map(|part| rows.part(gguf, *shape, (bits, scales), part, device))
                .collect(),
        }
    }
}

impl WeightSource for Steps {
    fn tensor(&mut self, name: &str, shape: Shape, _: Init) -> Result<Tensor> {
        let rows = self.weights.rows(name, shape)?;
        let kept = match rows.kept(&self.weights.gguf, self.weights.dtype)? {
            Kept::Affine { .. } => Kept::Dense(self.weights.dtype),
            dense => dense,
        };
        self.all.push(Step { name: name.to_owned(), shape, rows, kept });
        Ok(self.nothing.clone())
    }

    fn weight(&mut self, module: &str, shape: Shape, _: Init) -> Result<Weight> {
        let weight = join(module, "weight");
        let rows = self.weights.rows(&weight, shape)?;
        let kept = rows.kept(&self.weights.gguf, self.weights.dtype)?;
        let name = if kept.packing().is_some() { module.to_owned() } else { weight };
        self.all.push(Step { name, shape, rows, kept });
        Ok(Weight::Dense(self.nothing.clone().into()))
    }
}

/// Inspects a GGUF file from its header alone.
///
/// # Errors
/// As [`load`], for the header.
pub(super) fn inspect(path: &Path) -> Result<CheckpointInfo> {
    let gguf = GgufFile::open(path)?;
    let tensor = |(name, entry): (&String, &Entry)| -> Result<TensorInfo> {
        let kind = BlockType::of(entry.ggml_type);
        let (elements, bytes) = kind.as_ref().map_or((1, 0), |kind| kind.block());
        Ok(TensorInfo {
            name: name.clone(),
            shape: Shape::new(&entry.dims)?,
            dtype: kind.map_or("unknown", BlockType::name),
            bytes: entry.rows().saturating_mul(entry.width() / elements).saturating_mul(bytes),
        })
    };
    let text = |key: &str| gguf.text(key).ok().flatten().map(|text| (key.to_owned(), text.to_owned()));
    let keys = ["general.name", "general.license", "tokenizer.ggml.model", "tokenizer.ggml.pre"];
    Ok(CheckpointInfo::new(
        gguf.text("general.architecture")?.map(str::to_owned),
        gguf.files().map(|(path, bytes)| (path.to_owned(), bytes)).collect(),
        gguf.tensors.iter().map(tensor).collect::<Result<_>>()?,
        keys.into_iter().filter_map(text).collect(),
    ))
}
