//! Conversion to MLX's layout, to another dtype, quantized or dequantized.
//!
//! Each tensor is read, converted and written before the next one, so a conversion needs no more memory than the
//! largest matrix.

use super::index::{INDEX, is_weight_file};
use super::weights::{Matrix, Weights};
use crate::adapter::{AdaptedTensor, Adapter, Fuse, widened};
use crate::formats::atomic::{TempPath, sync_folder};
use crate::formats::config::Config;
use crate::formats::json::pretty;
use crate::formats::safetensors::{Shard, StoredDtype, TensorSpec};
use crate::init::{Init, WeightSource};
use crate::models::sanitize::Transform;
use crate::models::{ModelType, Registry};
use crate::parameters::join;
use crate::quantize::format::Quantization;
use crate::quantize::predicate::{Module, QuantConfig};
use crate::weight::Weight;
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_ops::{Packing, cast};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

/// The folder of further chat templates.
const TEMPLATES: &str = "additional_chat_templates";
/// The largest size of a weight file, in bytes.
const SHARD: usize = 5 << 30;

/// The change that a conversion makes to the matrices.
#[derive(Clone, Debug, Default)]
pub enum Change {
    /// Only the layout and the dtype change.
    #[default]
    None,
    /// Quantizes the matrices. Those that are quantized already must have the requested format and are kept.
    Quantize(QuantConfig),
    /// Dequantizes the matrices.
    Dequantize,
    /// Adds an adapter to the matrices. Tensors keep their dtypes.
    Fuse(Adapter, Fuse),
}

/// A summary of a conversion.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The number of parameters; quantized ones count, their scales and biases do not.
    pub parameters: usize,
    /// The bytes of its tensors.
    pub bytes: usize,
    /// The modules that are packed.
    pub packed: usize,
    /// Those among them that were packed before.
    pub packed_before: usize,
}

impl Converted {
    /// Bits that a number takes in the mean.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes as f64 / self.parameters.max(1) as f64
    }
}

/// Converts the model in `from` to a new folder `to` in MLX's layout. Floating-point tensors get `dtype`, else the
/// configuration's `torch_dtype`, else they keep theirs. `progress` gets the tensors done and the number of all.
///
/// The folder is written under a temporary name and renamed: it exists whole or not at all.
///
/// # Errors
/// When `to` exists, when a module that is packed is to be packed in another way, or as [`load`](crate::load).
pub fn convert(
    from: &Path,
    to: &Path,
    dtype: Option<DType>,
    change: &Change,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Converted> {
    refuse_existing(to)?;
    let config = Config::read(from)?;
    let dtype = match change {
        Change::Fuse(..) => dtype,
        _ => dtype.or_else(|| config.dtype()),
    };
    let plan = ConversionPlan::new(from, config, dtype, change)?;
    let staging = TempPath::folder(to).map_err(Error::io(to, "create"))?;
    let converted = plan.write(staging.path(), progress)?;
    copy_files(from, staging.path())?;
    commit(&staging, to)?;
    Ok(converted)
}

/// Errs when there is something at the path of a new folder.
///
/// # Errors
/// [`Kind::File`](alluvium_core::Kind::File) with the path.
pub fn refuse_existing(to: &Path) -> Result<()> {
    // a link is a file, too, even where it leads nowhere
    match to.symlink_metadata() {
        Ok(_) => Err(Error::file(to, "it exists already; choose another folder or remove it")),
        Err(_) => Ok(()),
    }
}

/// The tensors of a model in the order in which it asks for them, each with its place in the source.
pub(super) struct TensorIndex {
    pub(super) weights: Weights,
    pub(super) entries: Vec<(String, IndexEntry)>,
    nothing: Tensor,
}

pub(super) enum IndexEntry {
    Tensor(Transform, Shape),
    Matrix(Matrix, Shape),
}

impl TensorIndex {
    /// Asks a model for its tensors.
    pub(super) fn of(model_type: &ModelType, config: &Config, weights: Weights) -> Result<Self> {
        let nothing = Tensor::zeros([1], DType::F32, &Device::cpu())?;
        let mut index = TensorIndex { weights, entries: Vec::new(), nothing };
        model_type.build(config, &mut index)?;
        index.weights.finish()?;
        Ok(index)
    }
}

impl WeightSource for TensorIndex {
    fn tensor(&mut self, name: &str, shape: Shape, _: Init) -> Result<Tensor> {
        let transform = self.weights.tensor(name, shape)?;
        self.entries.push((name.to_owned(), IndexEntry::Tensor(transform, shape)));
        Ok(self.nothing.clone())
    }

    fn weight(&mut self, module: &str, shape: Shape, _: Init) -> Result<Weight> {
        let matrix = self.weights.matrix(module, shape)?;
        self.entries.push((module.to_owned(), IndexEntry::Matrix(matrix, shape)));
        Ok(Weight::Dense(self.nothing.clone().into()))
    }
}

/// The tensors that a conversion writes, in order.
struct ConversionPlan {
    weights: Weights,
    jobs: Vec<TensorJob>,
    config: Config,
}

struct TensorJob {
    name: String,
    entry: IndexEntry,
    /// The dtype that floating-point tensors are cast to; `None` keeps theirs.
    dtype: Option<DType>,
    action: Action,
    /// The adapter's part.
    adapted: Option<(AdaptedTensor, Fuse)>,
}

#[derive(Clone, Copy)]
enum Action {
    Keep,
    Pack(Packing),
    Unpack,
}

impl ConversionPlan {
    fn new(from: &Path, mut config: Config, dtype: Option<DType>, change: &Change) -> Result<Self> {
        let device = Device::cpu();
        let model_type = Registry::default().get(&config)?;
        let weights = Weights::open(from, &mut config, &model_type, &device)?;
        let TensorIndex { weights, entries, .. } = TensorIndex::of(&model_type, &config, weights)?;
        let keeps = model_type.keeps_dtype;
        let modules: Vec<Module<'_>> = entries
            .iter()
            .filter_map(|(name, entry)| match entry {
                IndexEntry::Matrix(matrix, shape) => Some(Module { name, shape: *shape, packing: matrix.packing() }),
                IndexEntry::Tensor(..) => None,
            })
            .collect();
        let mut quantization = Quantization::read(&config)?;
        let mut chosen = match change {
            Change::Quantize(scheme) => scheme.choose((&config, model_type.sensitive), &modules, &mut quantization)?,
            Change::None | Change::Dequantize | Change::Fuse(..) => Default::default(),
        };
        let job = |(name, entry): (String, IndexEntry)| {
            let action = match (&entry, change) {
                (IndexEntry::Matrix(Matrix::Plain(_), _), _) => chosen.remove(&name).map_or(Action::Keep, Action::Pack),
                (
                    IndexEntry::Matrix(Matrix::Packed { .. }, _),
                    Change::Dequantize | Change::Fuse(_, Fuse::Dequantize),
                ) => Action::Unpack,
                _ => Action::Keep,
            };
            let dtype = dtype.filter(|_| !keeps.iter().any(|end| name.ends_with(end)));
            let adapted = match change {
                Change::Fuse(adapter, form) => adapter.part(&name).map(|part| (part, *form)),
                _ => None,
            };
            TensorJob { name, entry, dtype, action, adapted }
        };
        let jobs: Vec<TensorJob> = entries.into_iter().map(job).collect();
        if let Change::Fuse(adapter, _) = change {
            adapter.check_all_placed(jobs.iter().filter_map(|job| Some(&job.adapted.as_ref()?.0)))?;
        }
        match change {
            Change::None | Change::Fuse(_, Fuse::Requantize) => {}
            Change::Dequantize | Change::Fuse(_, Fuse::Dequantize) => {
                config.forget(&["quantization", "quantization_config"]);
            }
            Change::Quantize(_) => {
                config.set("quantization", quantization.json());
                config.set("quantization_config", quantization.json());
            }
        }
        if weights.folder().has_fp8() {
            config.forget_quantization();
        }
        config.set("model_type", model_type.mlx_name);
        config.forget(&["vision_config", "_name_or_path"]);
        if let Some(dtype) = dtype {
            config.set_dtype(dtype);
        }
        Ok(ConversionPlan { weights, jobs, config })
    }

    fn write(self, folder: &Path, progress: &mut dyn FnMut(usize, usize)) -> Result<Converted> {
        let mut all = Vec::new();
        for job in &self.jobs {
            all.push(job.specs(&self.weights)?);
        }
        let bytes: usize = all.iter().flatten().map(TensorSpec::bytes).sum();
        let parameters = self.jobs.iter().map(|job| job.shape().elements()).sum();
        let packed = self.jobs.iter().filter(|job| job.is_packed()).count();
        let packed_before = self.jobs.iter().filter(|job| job.is_packed() && job.was_packed()).count();
        let mut map = write_shards(folder, &all, "mlx", &mut |job| self.jobs[job].make(&self.weights), progress)?;
        map.sort_keys();
        let index = json!({"metadata": {"total_size": bytes, "total_parameters": parameters}, "weight_map": map});
        let mut config = self.config.json().clone();
        config.sort_keys();
        for (name, json) in [(INDEX, index), ("config.json", Value::Object(config))] {
            let path = folder.join(name);
            fs::write(&path, pretty(&json)).map_err(Error::io(&path, "write"))?;
        }
        Ok(Converted { parameters, bytes, packed, packed_before })
    }
}

/// Writes tensors to as few files as [`SHARD`] allows; the file of each tensor. `specs` are the tensors of each job,
/// which `make` makes; a job's tensors share a file.
pub(super) fn write_shards(
    folder: &Path,
    specs: &[Vec<TensorSpec>],
    format: &str,
    make: &mut dyn FnMut(usize) -> Result<Vec<Tensor>>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Map<String, Value>> {
    let (mut map, shards) = (Map::new(), shards(specs));
    for (index, range) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let specs: Vec<TensorSpec> = specs[range.clone()].iter().flatten().cloned().collect();
        let mut shard = Shard::create(&folder.join(&name), &specs, &[("format".to_owned(), format.to_owned())])?;
        for job in range.clone() {
            make(job)?.iter().try_for_each(|tensor| shard.append(tensor))?;
            progress(job + 1, specs.len());
        }
        shard.finish()?;
        map.extend(specs.into_iter().map(|piece| (piece.name, name.clone().into())));
    }
    Ok(map)
}

/// Which jobs go to one file.
fn shards(all: &[Vec<TensorSpec>]) -> Vec<std::ops::Range<usize>> {
    let (mut shards, mut first, mut size) = (Vec::new(), 0, 0);
    for (index, specs) in all.iter().enumerate() {
        let bytes: usize = specs.iter().map(TensorSpec::bytes).sum();
        if index > first && size + bytes > SHARD {
            shards.push(first..index);
            (first, size) = (index, 0);
        }
        size += bytes;
    }
    shards.push(first..all.len());
    shards
}

impl TensorJob {
    /// The tensors it writes, in the order in which [`TensorJob::make`] makes them.
    fn specs(&self, weights: &Weights) -> Result<Vec<TensorSpec>> {
        let of = |transform: &Transform, name: String| {
            let (dtype, shape) = weights.folder().describe(transform)?;
            dtype.tensor_dtype().ok_or_else(|| Error::value("convert", format!("`{name}` is {dtype}")))?;
            let dtype = self.dtype.filter(|_| dtype.is_float()).map_or(dtype, StoredDtype::from);
            Ok::<_, Error>(TensorSpec { name, dtype, shape })
        };
        let weight = || join(&self.name, "weight");
        match (&self.entry, self.action) {
            (IndexEntry::Tensor(transform, _), _) => Ok(vec![of(transform, self.name.clone())?]),
            (IndexEntry::Matrix(Matrix::Plain(transform), shape), Action::Pack(packing)) => {
                let plain = of(transform, weight())?;
                let rows = &shape[..shape.rank() - 1];
                let with = |last: usize| Shape::new(&[rows, &[last]].concat());
                let groups = with(shape.last() / packing.group())?;
                let scales = join(&self.name, "scales");
                let mut specs = vec![TensorSpec {
                    name: weight(),
                    dtype: DType::U32.into(),
                    shape: with(shape.last() * packing.bits() / 32)?,
                }];
                match packing {
                    Packing::Affine { .. } => {
                        specs.push(TensorSpec { name: scales, dtype: plain.dtype, shape: groups });
                        specs.push(TensorSpec { name: join(&self.name, "biases"), dtype: plain.dtype, shape: groups });
                    }
                    _ => specs.push(TensorSpec { name: scales, dtype: DType::U8.into(), shape: groups }),
                }
                Ok(specs)
            }
            (IndexEntry::Matrix(Matrix::Plain(transform), _), _) => Ok(vec![of(transform, weight())?]),
            (IndexEntry::Matrix(Matrix::Packed { scales, .. }, shape), Action::Unpack) => {
                Ok(vec![TensorSpec { name: weight(), dtype: self.unpacked(weights, scales)?.into(), shape: *shape }])
            }
            (IndexEntry::Matrix(Matrix::Packed { w, scales, biases, .. }, _), _) => {
                let mut specs = vec![of(w, weight())?, of(scales, join(&self.name, "scales"))?];
                if let Some(biases) = biases {
                    specs.push(of(biases, join(&self.name, "biases"))?);
                }
                Ok(specs)
            }
        }
    }

    /// The dtype of an unpacked matrix: that of its scales, or bf16 where the scales are bytes.
    fn unpacked(&self, weights: &Weights, scales: &Transform) -> Result<DType> {
        let dtype = weights.folder().describe(scales)?.0.tensor_dtype().filter(|dtype| dtype.is_float());
        Ok(self.dtype.or(dtype).unwrap_or(DType::BF16))
    }

    fn make(&self, weights: &Weights) -> Result<Vec<Tensor>> {
        let cast = |x: Tensor| match self.dtype {
            Some(dtype) if x.dtype().is_float() && x.dtype() != dtype => cast(&x, dtype),
            _ => Ok(x),
        };
        let matrix = match &self.entry {
            IndexEntry::Tensor(transform, _) => {
                let stored = weights.read(transform)?;
                return match &self.adapted {
                    Some((part, _)) => Ok(vec![part.replace(&self.name, &stored)?]),
                    None => Ok(vec![cast(stored)?]),
                };
            }
            IndexEntry::Matrix(matrix, _) => matrix,
        };
        let stored = weights.read_matrix(matrix)?;
        let weight = match &self.adapted {
            Some((part, form)) => part.fuse(&self.name, stored, *form)?,
            None => stored,
        };
        match (weight, self.action) {
            (Weight::Dense(w), Action::Pack(packing)) => QuantConfig::pack(&cast(w.into())?, packing),
            (Weight::Dense(w), _) => Ok(vec![cast(w.into())?]),
            (packed @ Weight::Quantized { .. }, Action::Unpack) => {
                let dtype = match matrix {
                    Matrix::Packed { scales, .. } => self.unpacked(weights, scales)?,
                    Matrix::Plain(_) => DType::BF16,
                };
                Ok(vec![widened(&packed, dtype)?])
            }
            (Weight::Quantized { w, scales, biases, .. }, _) => {
                [Some(w), Some(scales), biases].into_iter().flatten().map(|x| cast(x.into())).collect()
            }
            (Weight::Adapted(_), _) => Err(Error::value("convert", "a stored matrix has no adapter")),
        }
    }

    /// The shape of the dequantized matrix.
    fn shape(&self) -> Shape {
        match &self.entry {
            IndexEntry::Tensor(_, shape) | IndexEntry::Matrix(_, shape) => *shape,
        }
    }

    fn was_packed(&self) -> bool {
        matches!(&self.entry, IndexEntry::Matrix(Matrix::Packed { .. }, _))
    }

    /// Whether it is packed afterwards.
    fn is_packed(&self) -> bool {
        match self.action {
            Action::Pack(_) => true,
            Action::Keep => self.was_packed(),
            Action::Unpack => false,
        }
    }
}

/// Everything beside the weights that a reader of the model wants: the tokenizer's files, templates, settings of
/// generation.
pub(super) fn copy_files(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).map_err(Error::io(from, "read"))? {
        let path = entry.map_err(Error::io(from, "read"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kind = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = matches!(kind.as_str(), "json" | "jinja" | "txt" | "model" | "tiktoken") && !is_weight_file(&path);
        let ours = name == "config.json" || name.ends_with(".index.json") || name == "hf_quant_config.json";
        if wanted && !ours && path.is_file() {
            fs::copy(&path, to.join(&name)).map_err(Error::io(&path, "copy"))?;
        }
        if name == TEMPLATES && path.is_dir() {
            let to = to.join(TEMPLATES);
            fs::create_dir_all(&to).map_err(Error::io(&to, "create"))?;
            copy_files(&path, &to)?;
        }
    }
    Ok(())
}

/// Renames a complete folder to its target.
pub(super) fn commit(staging: &TempPath, target: &Path) -> Result<()> {
    sync_folder(staging.path());
    // renaming replaces an empty folder, and one may have been made meanwhile
    if target.symlink_metadata().is_ok() {
        return Err(Error::file(target, "it was made by another program during the conversion"));
    }
    staging.rename(target).map_err(Error::io(target, "write"))?;
    if let Some(parent) = target.parent() {
        sync_folder(parent);
    }
    Ok(())
}
