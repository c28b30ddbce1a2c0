//! Conversion to the layout of transformers.
//!
//! A checkpoint that is in this layout already is copied tensor by tensor, the parts that no text model reads included.
//! From MLX's layout the text model is written as its own class saves it: experts one by one, filters `[C, 1, K]`,
//! zero-centered norms minus 1.

use super::convert::{Change, Converted, IndexEntry, TensorIndex, commit, copy_files, refuse_existing, write_shards};
use super::index::INDEX;
use super::weights::{Matrix, Weights};
use crate::formats::atomic::TempPath;
use crate::formats::config::Config;
use crate::formats::json::pretty;
use crate::formats::safetensors::{StoredDtype, TensorSpec};
use crate::models::sanitize::{Export, Transform, export};
use crate::models::{ModelType, Registry};
use crate::weight::Weight;
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_ops::{cast, dequantize};
use serde_json::{Value, json};
use std::path::Path;

/// Converts the model in `from` to a new folder `to` in the layout of transformers. Floating-point tensors get `dtype`,
/// or keep theirs. `change` says what happens to quantized matrices, which transformers cannot read.
///
/// # Errors
/// When `to` exists, when a matrix is quantized and `change` is not [`Change::Dequantize`], when `change` is
/// [`Change::Quantize`], or as [`load`](crate::load).
pub fn convert_to_transformers(
    from: &Path,
    to: &Path,
    dtype: Option<DType>,
    change: &Change,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Converted> {
    refuse_existing(to)?;
    if let Change::Quantize(_) = change {
        return Err(Error::value("convert", "transformers does not read MLX's quantization; leave -q out, or --to hf"));
    }
    let mut config = Config::read(from)?;
    let model_type = Registry::default().get(&config)?;
    let weights = Weights::open(from, &mut config, &model_type, &Device::cpu())?;
    let index = TensorIndex::of(&model_type, &config, weights)?;
    let is_mlx = index.entries.iter().any(|(name, entry)| differs(name, entry, &model_type));
    let parameters = index.entries.iter().map(|(_, entry)| shape(entry).elements()).sum();
    let jobs = if is_mlx { from_mlx(&index, &model_type, dtype, change)? } else { copies(&index.weights, dtype)? };
    if is_mlx {
        config = text_config(&config, &model_type)?;
    } else if index.weights.folder().has_fp8() {
        config.forget_quantization();
    }
    dtype.into_iter().for_each(|dtype| config.set_dtype(dtype));

    let staging = TempPath::folder(to).map_err(Error::io(to, "create"))?;
    let specs: Vec<Vec<TensorSpec>> = jobs.iter().map(|job| job.specs.clone()).collect();
    let bytes: usize = specs.iter().flatten().map(TensorSpec::bytes).sum();
    let map = write_shards(staging.path(), &specs, "pt", &mut |job| jobs[job].make(&index, dtype), progress)?;
    let mut files = vec![("config.json", Value::Object(config.json().clone()))];
    if map.values().any(|file| file != "model.safetensors") {
        files.push((INDEX, json!({"metadata": {"total_size": bytes}, "weight_map": map})));
    }
    for (name, json) in files {
        let path = staging.path().join(name);
        std::fs::write(&path, pretty(&json)).map_err(Error::io(&path, "write"))?;
    }
    copy_files(from, staging.path())?;
    commit(&staging, to)?;
    Ok(Converted { parameters, bytes, packed: 0, packed_before: 0 })
}

/// Whether a parameter is stored otherwise than transformers stores it.
fn differs(name: &str, entry: &IndexEntry, model_type: &ModelType) -> bool {
    let transform = match entry {
        IndexEntry::Matrix(Matrix::Packed { .. }, _) => return true,
        IndexEntry::Matrix(Matrix::Plain(transform), _) | IndexEntry::Tensor(transform, _) => transform,
    };
    let name = if matches!(entry, IndexEntry::Matrix(..)) { format!("{name}.weight") } else { name.to_owned() };
    let is_stored_as_asked = matches!(transform, Transform::Same(stored) if *stored == name);
    is_stored_as_asked && export(&name, shape(entry), model_type.zero_centered_norms) != Export::Same(name)
}

fn shape(entry: &IndexEntry) -> Shape {
    match entry {
        IndexEntry::Tensor(_, shape) | IndexEntry::Matrix(_, shape) => *shape,
    }
}

/// Tensors that are written together.
struct TensorJob {
    specs: Vec<TensorSpec>,
    source: Source,
}

enum Source {
    /// A stored tensor, copied.
    Stored(Transform),
    /// A parameter, by its place in the index.
    Parameter(usize, Export),
}

/// Copies of all stored tensors.
fn copies(weights: &Weights, dtype: Option<DType>) -> Result<Vec<TensorJob>> {
    let copy = |name: &str| {
        let transform = Transform::Same(name.to_owned());
        let (stored, shape) = weights.folder().describe(&transform)?;
        let dtype = dtype.filter(|_| stored.is_float()).map_or(stored, StoredDtype::from);
        Ok(TensorJob {
            specs: vec![TensorSpec { name: name.to_owned(), dtype, shape }],
            source: Source::Stored(transform),
        })
    };
    weights.folder().stored().into_keys().map(copy).collect()
}

/// The parameters of a model in MLX's layout.
fn from_mlx(
    index: &TensorIndex,
    model_type: &ModelType,
    dtype: Option<DType>,
    change: &Change,
) -> Result<Vec<TensorJob>> {
    let job = |(place, (name, entry)): (usize, &(String, IndexEntry))| {
        let name = if matches!(entry, IndexEntry::Matrix(..)) { format!("{name}.weight") } else { name.clone() };
        let transform = match entry {
            IndexEntry::Matrix(Matrix::Packed { .. }, _) if !matches!(change, Change::Dequantize) => {
                let why = format!("`{name}` is quantized, which transformers does not read; add -d to dequantize");
                return Err(Error::value("convert", why));
            }
            IndexEntry::Matrix(Matrix::Packed { scales, .. }, _) => scales,
            IndexEntry::Matrix(Matrix::Plain(transform), _) | IndexEntry::Tensor(transform, _) => transform,
        };
        let stored = index.weights.folder().describe(transform)?.0.tensor_dtype().filter(|dtype| dtype.is_float());
        let dtype: StoredDtype = dtype.or(stored).unwrap_or(DType::BF16).into();
        let shape = shape(entry);
        let export = export(&name, shape, model_type.zero_centered_norms);
        let spec = |name: &String, shape| TensorSpec { name: name.clone(), dtype, shape };
        let specs = match &export {
            Export::Same(name) | Export::MinusOne(name) => vec![spec(name, shape)],
            Export::Filter(name) => vec![spec(name, [shape[0], 1, shape[1]].into())],
            Export::Experts(names) => {
                let one = Shape::new(&shape[1..])?;
                names.iter().map(|name| spec(name, one)).collect()
            }
        };
        Ok(TensorJob { specs, source: Source::Parameter(place, export) })
    };
    index.entries.iter().enumerate().map(job).collect()
}

impl TensorJob {
    fn make(&self, index: &TensorIndex, dtype: Option<DType>) -> Result<Vec<Tensor>> {
        let weights = &index.weights;
        let (place, export) = match &self.source {
            Source::Stored(transform) => {
                let tensor = weights.read(transform)?;
                let dtype = dtype.filter(|&dtype| tensor.dtype().is_float() && tensor.dtype() != dtype);
                return Ok(vec![dtype.map_or(Ok(tensor.clone()), |dtype| cast(&tensor, dtype))?]);
            }
            Source::Parameter(place, export) => (*place, export),
        };
        let dtype = self.specs.first().and_then(|spec| spec.dtype.tensor_dtype()).unwrap_or(DType::BF16);
        let tensor = match &index.entries[place].1 {
            IndexEntry::Tensor(transform, _) | IndexEntry::Matrix(Matrix::Plain(transform), _) => {
                weights.read(transform)?
            }
            IndexEntry::Matrix(matrix, _) => match weights.read_matrix(matrix)? {
                Weight::Dense(w) => w.into(),
                packed => match packed.quantized() {
                    Some(quantized) => dequantize(&quantized, dtype)?,
                    None => return Err(Error::value("convert", "the matrix is not quantized")),
                },
            },
        };
        let tensor = match export {
            Export::MinusOne(_) => {
                let values: Vec<f32> = cast(&tensor, DType::F32)?.to_vec::<f32>()?.iter().map(|x| x - 1.0).collect();
                Tensor::from_slice(&values, tensor.shape(), tensor.device())?
            }
            Export::Filter(_) => tensor.reshape(self.specs[0].shape)?,
            Export::Same(_) | Export::Experts(_) => tensor,
        };
        let tensor = if tensor.dtype() == dtype { tensor } else { cast(&tensor, dtype)? };
        match export {
            Export::Experts(names) => {
                let one = |expert| tensor.rows(expert, 1)?.reshape(self.specs[0].shape);
                (0..names.len()).map(one).collect()
            }
            _ => Ok(vec![tensor]),
        }
    }
}

/// The configuration of the text model alone.
fn text_config(config: &Config, model_type: &ModelType) -> Result<Config> {
    let mut text = config.clone();
    if config.json().contains_key("text_config") {
        text = Config::new(Value::Object(config.text().clone()))?;
        for (key, value) in config.json().iter().filter(|(key, _)| *key != "text_config") {
            if !text.json().contains_key(key) {
                text.set(key, value.clone());
            }
        }
        let class = match model_type.transformers_name {
            "qwen3_5_moe_text" => "Qwen3_5MoeForCausalLM",
            _ => "Qwen3_5ForCausalLM",
        };
        text.set("architectures", json!([class]));
    }
    text.set("model_type", model_type.transformers_name);
    text.forget_quantization();
    Ok(text)
}
