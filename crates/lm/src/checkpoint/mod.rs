//! Folders in the layout of MLX: `config.json`, `model*.safetensors`, the tokenizer's files.

pub mod convert;
pub mod folder;
mod weights;

use crate::formats::atomic::AtomicFile;
use crate::formats::config::Config;
use crate::formats::json::pretty;
use crate::formats::safetensors;
use crate::model::LanguageModel;
use crate::models::{ModelType, Registry};
use crate::quantize::format::{Quantization, in_words};
use crate::tokenizer::Tokenizer;
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_ops::Packing;
use folder::{Folder, INDEX, is_weight_file};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use weights::Weights;

/// What a folder held.
pub struct Loaded {
    /// The model, its matrices in the dtype that the files have.
    pub model: Box<dyn LanguageModel>,
    /// The tokenizer, where the folder has a `tokenizer.json`.
    pub tokenizer: Option<Tokenizer>,
    /// The model's `config.json`.
    pub config: Config,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} from {}", self.config.model_type().ok(), self.config.path().display())
    }
}

/// Loads the model in a folder, in the layout of MLX or of transformers.
///
/// Matrices stay in the dtype that they are stored in, and are read straight into the memory that they keep. All else,
/// which is small, is widened to f32: norms, filters, gates, biases.
///
/// # Errors
/// [`Kind::Io`](alluvium_core::Kind::Io) when a file cannot be read; `Kind::File`, with the file and what is wrong, when
/// one is not what it should be: a configuration of an unknown model or with sizes that cannot be, a tensor that is
/// missing, that nothing asks for, or that has another shape than the configuration says.
pub fn load(folder: &Path, device: &Device) -> Result<Loaded> {
    load_with(folder, &LoadOptions::new(device))
}

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where its tensors are to be.
    pub device: Device,
    /// The types of models that are known.
    pub registry: Registry,
}

impl LoadOptions {
    /// For the built-in models.
    pub fn new(device: &Device) -> Self {
        LoadOptions { device: device.clone(), registry: Registry::default() }
    }

    /// The same with a type of model of the caller's own.
    pub fn with_model_type(mut self, model_type: ModelType) -> Self {
        self.registry.register(model_type);
        self
    }
}

/// As [`load`], with options.
///
/// # Errors
/// As [`load`].
pub fn load_with(folder: &Path, options: &LoadOptions) -> Result<Loaded> {
    let config = Config::read(folder)?;
    let model_type = options.registry.get(&config)?;
    let mut weights = Weights::open(folder, &config, &model_type, &options.device)?;
    let model = model_type.build(&config, &mut weights)?;
    weights.finish()?;
    let tokenizer = Tokenizer::find(folder)?;
    Ok(Loaded { model, tokenizer, config })
}

/// Saves a model as mlx-lm loads it; the folder is made where there is none.
///
/// Every file is first written whole under a temporary name; only when all are on the disk are they renamed. A failure
/// leaves the files of an earlier save as they were.
///
/// # Errors
/// [`Kind::Io`](alluvium_core::Kind::Io) when the system refuses; `Kind::File` when the folder holds other weights that
/// a reader would take for a part of this model.
pub fn save(model: &dyn LanguageModel, tokenizer: Option<&Tokenizer>, folder: &Path) -> Result<()> {
    let config = model.config().ok_or_else(|| {
        Error::value("save", "the model has no configuration of its own; give it to `save_with_config`")
    })?;
    save_with_config(model, config, tokenizer, folder)
}

/// As [`save`], for a model that does not hold its configuration.
///
/// # Errors
/// As [`save`].
pub fn save_with_config(
    model: &dyn LanguageModel,
    config: &Config,
    tokenizer: Option<&Tokenizer>,
    folder: &Path,
) -> Result<()> {
    check_destination(folder)?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    let weights = folder.join(WEIGHTS);
    let mut tensors = Vec::new();
    model.visit("", &mut |name, tensor| tensors.push((name, tensor)));
    tensors.sort_by(|a, b| a.0.cmp(&b.0));

    let mut staged = vec![safetensors::stage(&weights, &tensors, &[("format".to_owned(), "mlx".to_owned())])?];
    let mut stage = |name: &str, text: &[u8]| -> Result<()> {
        staged.push(AtomicFile::write(&folder.join(name), |out| out.write_all(text))?);
        Ok(())
    };
    stage(INDEX, pretty(&index(&tensors)).as_bytes())?;
    stage("config.json", pretty(&config_of_saved(config, &tensors)).as_bytes())?;
    for (name, text) in tokenizer.map(Tokenizer::files).transpose()?.unwrap_or_default() {
        stage(name, text.as_bytes())?;
    }
    staged.into_iter().try_for_each(AtomicFile::commit)
}

/// Checks that a model can be saved to a folder, which need not exist.
///
/// # Errors
/// [`Kind::File`](alluvium_core::Kind::File) when it holds weights under another name than a saved model's, which a
/// reader would take for a part of the model, or when it is not a folder.
pub fn check_destination(folder: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io(folder, "read"))?,
    };
    for entry in entries {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        if is_weight_file(&path) && path.file_name() != Some(WEIGHTS.as_ref()) {
            return Err(Error::file(path, "these weights would be read as a part of the saved model; save elsewhere"));
        }
    }
    Ok(())
}

/// The file of a saved model's weights.
const WEIGHTS: &str = "model.safetensors";

/// The configuration with the dtype of the saved tensors: the one that most floating elements have.
fn config_of_saved(config: &Config, tensors: &[(String, &Tensor)]) -> Value {
    let elements =
        |dtype: DType| -> usize { tensors.iter().filter(|(_, t)| t.dtype() == dtype).map(|(_, t)| t.elements()).sum() };
    let mut config = config.clone();
    if let Some(dtype) = [DType::F32, DType::BF16, DType::F16].into_iter().max_by_key(|&dtype| elements(dtype)) {
        config.set_dtype(dtype);
    }
    Value::Object(config.json().clone())
}

fn index(tensors: &[(String, &Tensor)]) -> Value {
    let elements: usize = tensors.iter().map(|(_, t)| t.elements()).sum();
    let bytes: usize = tensors.iter().map(|(_, t)| t.elements() * t.dtype().size()).sum();
    let map: Map<String, Value> = tensors.iter().map(|(name, _)| (name.clone(), WEIGHTS.into())).collect();
    json!({"metadata": {"total_size": bytes, "total_parameters": elements}, "weight_map": map})
}

/// What a checkpoint's files hold, without loading it.
#[derive(Clone, Debug)]
pub struct CheckpointInfo {
    /// The kind of model, where there is a `config.json`.
    pub model_type: Option<String>,
    /// The weight files and their sizes in bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// Their tensors, by file and name.
    pub tensors: Vec<TensorInfo>,
    /// How many modules are packed in which way.
    pub packings: BTreeMap<String, usize>,
    /// What the configuration says of them.
    said: Quantization,
    /// Free text in the headers: `format` is `mlx` or `pt`.
    pub metadata: BTreeMap<String, String>,
}

/// One tensor of a [`CheckpointInfo`].
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// The lengths of its axes.
    pub shape: Shape,
    /// As the file names it: `F32`, `BF16`, `U32`.
    pub dtype: &'static str,
    /// Its size in the file.
    pub bytes: usize,
}

impl CheckpointInfo {
    /// The parameters of the model. Quantized elements count; their scales and biases do not.
    pub fn parameters(&self) -> usize {
        let names = self.by_name();
        let of = |tensor: &TensorInfo| match self.format(tensor, &names) {
            // a word has 32 bits
            Some(packing) => tensor.shape.elements().saturating_mul(32) / packing.bits(),
            None if is_of_group(tensor, &names) => 0,
            None => tensor.shape.elements(),
        };
        self.tensors.iter().map(of).fold(0, usize::saturating_add)
    }

    /// The tensors of each dtype: how many, and their bytes.
    pub fn dtypes(&self) -> Vec<(String, usize, usize)> {
        let mut all: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for tensor in &self.tensors {
            let (count, bytes) = all.entry(tensor.dtype).or_default();
            (*count, *bytes) = (*count + 1, *bytes + tensor.bytes);
        }
        all.into_iter().map(|(dtype, (count, bytes))| (dtype.to_owned(), count, bytes)).collect()
    }

    fn by_name(&self) -> HashMap<&str, &TensorInfo> {
        self.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect()
    }

    fn packings(&self) -> BTreeMap<String, usize> {
        let (names, mut all) = (self.by_name(), BTreeMap::new());
        for packing in self.tensors.iter().filter_map(|tensor| self.format(tensor, &names)) {
            *all.entry(in_words(packing)).or_default() += 1;
        }
        all
    }

    /// How a weight is packed. Its words and scales give bits times group. That alone tells the formats apart whose scales
    /// are bytes; of affine ones it says what the configuration says where that fits, and else the first group that does.
    fn format(&self, tensor: &TensorInfo, names: &HashMap<&str, &TensorInfo>) -> Option<Packing> {
        let module = tensor.name.strip_suffix(".weight").filter(|_| tensor.dtype == "U32")?;
        let scales = names.get(format!("{module}.scales").as_str())?;
        let product = tensor.shape.last().checked_mul(32)? / scales.shape.last().max(1);
        if scales.dtype == "U8" {
            let formats = [Packing::Nvfp4, Packing::Mxfp4, Packing::Mxfp8];
            return formats.into_iter().find(|packing| packing.bits() * packing.group() == product);
        }
        let said = self.said.modules.get(module).copied().flatten().or(self.said.default);
        let said = said.filter(|said| matches!(said, Packing::Affine { .. })).map_or(64, Packing::group);
        let bits =
            |group: usize| product.is_multiple_of(group).then_some(product / group).filter(|n| matches!(n, 1..=6 | 8));
        [said, 64, 32, 128].into_iter().find_map(|group| Some(Packing::Affine { bits: bits(group)? as u32, group }))
    }

    /// The size of all tensors.
    pub fn bytes(&self) -> usize {
        self.tensors.iter().map(|t| t.bytes).fold(0, usize::saturating_add)
    }
}

/// Whether a tensor holds the scales or biases of a quantized weight.
fn is_of_group(tensor: &TensorInfo, names: &HashMap<&str, &TensorInfo>) -> bool {
    let module = tensor.name.strip_suffix(".scales").or_else(|| tensor.name.strip_suffix(".biases"));
    module.is_some_and(|module| names.get(format!("{module}.weight").as_str()).is_some_and(|w| w.dtype == "U32"))
}

/// Inspects a folder, or a single safetensors file, from the headers alone.
///
/// # Errors
/// As [`load`], for what it reads.
pub fn inspect(path: &Path) -> Result<CheckpointInfo> {
    let (files, model_type, said) = match path.is_dir() {
        true => {
            let config = path.join("config.json");
            let config = config.exists().then(|| Config::read(path)).transpose()?;
            let said = config.as_ref().map(Quantization::read).transpose()?.unwrap_or_default();
            (Folder::open(path)?.into_files(), config.and_then(|c| c.model_type().ok().map(str::to_owned)), said)
        }
        false => (vec![safetensors::read(path)?], None, Quantization::default()),
    };
    let mut info = CheckpointInfo {
        model_type,
        said,
        files: vec![],
        tensors: vec![],
        packings: BTreeMap::new(),
        metadata: BTreeMap::new(),
    };
    for file in &files {
        info.files.push((file.path().to_owned(), file.bytes()));
        info.metadata.extend(file.metadata().clone());
        info.tensors.extend(file.entries().map(|(name, entry)| TensorInfo {
            name: name.to_owned(),
            shape: entry.shape,
            dtype: entry.dtype.name(),
            bytes: entry.bytes,
        }));
    }
    info.packings = info.packings();
    Ok(info)
}
