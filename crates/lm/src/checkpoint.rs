//! Folders in the layout of MLX: `config.json`, `model*.safetensors`, the tokenizer's files.

use crate::formats::atomic::Staged;
use crate::formats::config::Config;
use crate::formats::folder::{Folder, INDEX, is_weight_file};
use crate::formats::quantization::{Quantization, in_words};
use crate::formats::safetensors;
use crate::formats::tokenizer::Tokenizer;
use crate::models::{self, LanguageModel};
use crate::weights::Weights;
use alluvium_core::{Device, Error, Result, Shape, Tensor};
use alluvium_ops::Packing;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
    let config = Config::read(folder)?;
    let mut weights = Weights::open(folder, &config, device)?;
    let model = models::build(&config, &mut weights)?;
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
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    let weights = folder.join("model.safetensors");
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        if is_weight_file(&path) && path != weights {
            return Err(Error::file(path, "these weights would be read as a part of the saved model; save elsewhere"));
        }
    }
    let mut tensors = Vec::new();
    model.visit("", &mut |name, tensor| tensors.push((name, tensor)));
    tensors.sort_by(|a, b| a.0.cmp(&b.0));

    let mut staged = vec![safetensors::stage(&weights, &tensors, &[("format".to_owned(), "mlx".to_owned())])?];
    let mut stage = |name: &str, text: &[u8]| -> Result<()> {
        staged.push(Staged::write(&folder.join(name), |out| out.write_all(text))?);
        Ok(())
    };
    stage(INDEX, pretty(&index(&tensors)).as_bytes())?;
    stage("config.json", pretty(&config_of_saved(model.config())).as_bytes())?;
    for (name, text) in tokenizer.map(Tokenizer::files).transpose()?.unwrap_or_default() {
        stage(name, text.as_bytes())?;
    }
    staged.into_iter().try_for_each(Staged::commit)
}

/// The configuration as it came, but for the dtype, which is now that of the saved tensors.
fn config_of_saved(config: &Config) -> Value {
    let mut json = Value::Object(config.json().clone());
    for key in ["/torch_dtype", "/dtype", "/text_config/torch_dtype", "/text_config/dtype"] {
        if let Some(dtype) = json.pointer_mut(key) {
            *dtype = "float32".into();
        }
    }
    json
}

fn index(tensors: &[(String, &Tensor)]) -> Value {
    let elements: usize = tensors.iter().map(|(_, t)| t.elements()).sum();
    let bytes: usize = tensors.iter().map(|(_, t)| t.elements() * t.dtype().size()).sum();
    let map: Map<String, Value> = tensors.iter().map(|(name, _)| (name.clone(), "model.safetensors".into())).collect();
    json!({"metadata": {"total_size": bytes, "total_parameters": elements}, "weight_map": map})
}

pub(crate) fn pretty(json: &Value) -> String {
    format!("{json:#}\n")
}

/// What a checkpoint's files hold, without loading it.
#[derive(Clone, Debug)]
pub struct Description {
    /// The kind of model, where there is a `config.json`.
    pub model_type: Option<String>,
    /// The weight files and their sizes in bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// Their tensors, by file and name.
    pub tensors: Vec<Described>,
    /// How many modules are packed in which way.
    pub packings: BTreeMap<String, usize>,
    /// What the configuration says of them.
    said: Quantization,
    /// Free text in the headers: `format` is `mlx` or `pt`.
    pub metadata: BTreeMap<String, String>,
}

/// One tensor of a [`Description`].
#[derive(Clone, Debug)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// The lengths of its axes.
    pub shape: Shape,
    /// As the file names it: `F32`, `BF16`, `U32`.
    pub dtype: String,
    /// Its size in the file.
    pub bytes: usize,
}

impl Description {
    /// The numbers of the model: packed ones are counted as such, their scales and biases are not.
    pub fn parameters(&self) -> usize {
        let of = |tensor: &Described| match self.module(tensor) {
            // 32 bits a word
            Some(packing) => tensor.shape.elements() * 32 / packing.bits(),
            None if self.is_of_group(tensor) => 0,
            None => tensor.shape.elements(),
        };
        self.tensors.iter().map(of).sum()
    }

    /// The tensors of each dtype: how many, and their bytes.
    pub fn dtypes(&self) -> Vec<(String, usize, usize)> {
        let mut all: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for tensor in &self.tensors {
            let (count, bytes) = all.entry(&tensor.dtype).or_default();
            (*count, *bytes) = (*count + 1, *bytes + tensor.bytes);
        }
        all.into_iter().map(|(dtype, (count, bytes))| (dtype.to_owned(), count, bytes)).collect()
    }

    fn packings(&self) -> BTreeMap<String, usize> {
        let mut all = BTreeMap::new();
        for packing in self.tensors.iter().filter_map(|tensor| self.module(tensor)) {
            *all.entry(in_words(packing)).or_default() += 1;
        }
        all
    }

    fn scales(&self, tensor: &Described) -> Option<&Described> {
        let name = format!("{}.scales", tensor.name.strip_suffix(".weight")?);
        self.tensors.iter().find(|other| other.name == name)
    }

    /// How a weight is packed. Its words and scales give bits times group. That alone tells the formats apart whose scales
    /// are bytes; of affine ones it says what the configuration says where that fits, and else the first group that does.
    fn module(&self, tensor: &Described) -> Option<Packing> {
        let scales = if tensor.dtype == "U32" { self.scales(tensor)? } else { return None };
        let product = 32 * tensor.shape.last() / scales.shape.last().max(1);
        if scales.dtype == "U8" {
            let formats = [Packing::Nvfp4, Packing::Mxfp4, Packing::Mxfp8];
            return formats.into_iter().find(|packing| packing.bits() * packing.group() == product);
        }
        let said = self.said.modules.get(tensor.name.strip_suffix(".weight")?).copied().flatten().or(self.said.default);
        let said = said.filter(|said| matches!(said, Packing::Affine { .. })).map_or(64, Packing::group);
        let bits =
            |group: usize| product.is_multiple_of(group).then_some(product / group).filter(|n| matches!(n, 1..=6 | 8));
        [said, 64, 32, 128].into_iter().find_map(|group| Some(Packing::Affine { bits: bits(group)? as u32, group }))
    }

    fn is_of_group(&self, tensor: &Described) -> bool {
        let module = tensor.name.strip_suffix(".scales").or_else(|| tensor.name.strip_suffix(".biases"));
        module.is_some_and(|module| {
            let weight = format!("{module}.weight");
            self.tensors.iter().any(|other| other.name == weight && other.dtype == "U32")
        })
    }

    /// The size of all tensors.
    pub fn bytes(&self) -> usize {
        self.tensors.iter().map(|t| t.bytes).sum()
    }
}

/// Describes a folder, or a single safetensors file, from the headers alone.
///
/// # Errors
/// As [`load`], for what it reads.
pub fn describe(path: &Path) -> Result<Description> {
    let (files, model_type, said) = match path.is_dir() {
        true => {
            let config = path.join("config.json");
            let config = config.exists().then(|| Config::read(path)).transpose()?;
            let said = config.as_ref().map(Quantization::read).transpose()?.unwrap_or_default();
            (Folder::open(path)?.into_files(), config.and_then(|c| c.model_type().ok().map(str::to_owned)), said)
        }
        false => (vec![safetensors::read(path)?], None, Quantization::default()),
    };
    let mut description = Description {
        model_type,
        said,
        files: vec![],
        tensors: vec![],
        packings: BTreeMap::new(),
        metadata: BTreeMap::new(),
    };
    for file in &files {
        description.files.push((file.path().to_owned(), file.bytes()));
        description.metadata.extend(file.metadata().clone());
        description.tensors.extend(file.entries().map(|(name, entry)| Described {
            name: name.to_owned(),
            shape: entry.shape,
            dtype: entry.dtype.clone(),
            bytes: entry.bytes,
        }));
    }
    description.packings = description.packings();
    Ok(description)
}
