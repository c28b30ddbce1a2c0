//! Folders in the layout of MLX: `config.json`, `model*.safetensors`, the tokenizer's files.

use crate::formats::atomic::Staged;
use crate::formats::config::Config;
use crate::formats::folder::{Folder, INDEX, is_weight_file};
use crate::formats::layout::Recipes;
use crate::formats::safetensors;
use crate::formats::tokenizer::Tokenizer;
use crate::models::{self, LanguageModel};
use crate::nn::Weight;
use crate::nn::build::{Init, Source};
use crate::nn::params::join;
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_ops::cast;
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

/// The weight files of a folder as a [`Source`].
struct Weights {
    folder: Folder,
    /// Recipes of tensors that were not yet asked for.
    left: Recipes,
    device: Device,
}

impl Weights {
    fn open(folder: &Path, config: &Config, device: &Device) -> Result<Self> {
        let folder = Folder::open(folder)?;
        let left = models::recipes(&folder, config)?;
        Ok(Weights { folder, left, device: device.clone() })
    }

    /// Errs when there are tensors that the model did not ask for.
    fn finish(self) -> Result<()> {
        let Some(recipe) = self.left.values().next() else { return Ok(()) };
        let more = match self.left.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let name = recipe.stored().first().map_or("", String::as_str);
        let why = format!("tensor `{name}`{more} has no place in the model that config.json describes");
        Err(Error::file(self.folder.place(name), why))
    }

    /// A floating tensor as it is stored.
    fn take(&mut self, name: &str, shape: Shape) -> Result<Tensor> {
        let Some(recipe) = self.left.remove(name) else {
            let why = format!("tensor `{name}` {shape} is missing; config.json asks for it");
            return Err(Error::file(self.folder.place(name), why));
        };
        let stored = recipe.stored().first().map_or("", String::as_str);
        let wrong = |why: String| Error::file(self.folder.place(stored), format!("tensor `{stored}` is {why}"));
        let (dtype, found) = self.folder.describe(&recipe)?;
        if !matches!(dtype, "F32" | "F16" | "BF16") {
            return Err(wrong(format!("{dtype}, expected F32, F16 or BF16")));
        }
        if found != shape {
            return Err(wrong(format!("{found}, config.json asks for {shape}")));
        }
        self.folder.tensor(&recipe, &self.device)
    }
}

impl Source for Weights {
    fn tensor(&mut self, name: &str, shape: Shape, _: Init) -> Result<Tensor> {
        match self.take(name, shape)? {
            tensor if tensor.dtype() == DType::F32 => Ok(tensor),
            half => cast(&half, DType::F32),
        }
    }

    fn weight(&mut self, module: &str, shape: Shape, _: Init) -> Result<Weight> {
        Ok(Weight::Dense(self.take(&join(module, "weight"), shape)?))
    }
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
    /// The number of elements in all tensors.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(|t| t.shape.elements()).sum()
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
    let (files, model_type) = match path.is_dir() {
        true => {
            let config = path.join("config.json");
            let config = config.exists().then(|| Config::read(path)).transpose()?;
            (Folder::open(path)?.into_files(), config.and_then(|c| c.model_type().ok().map(str::to_owned)))
        }
        false => (vec![safetensors::read(path)?], None),
    };
    let mut description = Description { model_type, files: vec![], tensors: vec![], metadata: BTreeMap::new() };
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
    Ok(description)
}
