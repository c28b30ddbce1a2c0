//! Folders in the layout of MLX: `config.json`, `model*.safetensors`, the tokenizer's files.

use crate::formats::atomic::Staged;
use crate::formats::config::Config;
use crate::formats::safetensors::{self, File};
use crate::formats::tokenizer::Tokenizer;
use crate::formats::transformers;
use crate::models::{self, LanguageModel};
use crate::nn::build::{Init, Source};
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_ops::cast;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a folder held.
pub struct Loaded {
    /// The model, its tensors in f32.
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

/// Loads the model in a folder, in the layout of MLX or of transformers. Half precision is widened to f32.
///
/// # Errors
/// [`Kind::Io`](alluvium_core::Kind::Io) when a file cannot be read; `Kind::File`, with the file and what is wrong, when
/// one is not what it should be: a configuration of an unknown model or with sizes that cannot be, a tensor that is
/// missing, that nothing asks for, or that has another shape than the configuration says.
pub fn load(folder: &Path, device: &Device) -> Result<Loaded> {
    let config = Config::read(folder)?;
    let mut source = Files::open(folder, &config, device)?;
    let model = models::build(&config, &mut source)?;
    source.finish()?;
    let tokenizer = Tokenizer::find(folder)?;
    Ok(Loaded { model, tokenizer, config })
}

/// The weight files of a folder as a [`Source`].
struct Files {
    folder: PathBuf,
    files: Vec<File>,
    /// Tensors that were not yet asked for, by the name that MLX gives them.
    left: BTreeMap<String, Stored>,
    layout: Layout,
    device: Device,
}

/// Where a tensor is.
struct Stored {
    file: usize,
    name: String,
}

/// Who wrote the files.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Mlx,
    Transformers,
}

impl Files {
    fn open(folder: &Path, config: &Config, device: &Device) -> Result<Self> {
        let files: Vec<File> = weight_files(folder)?.iter().map(safetensors::read).collect::<Result<_>>()?;
        let foreign = files.iter().flat_map(File::entries).any(|(name, entry)| transformers::shows(name, entry.shape));
        let layout = if foreign { Layout::Transformers } else { Layout::Mlx };
        let mut left: BTreeMap<String, Stored> = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.names() {
                let known = match layout {
                    Layout::Mlx => Some(name.to_owned()),
                    Layout::Transformers => transformers::name(name).filter(|n| !(config.is_tied() && n == LM_HEAD)),
                };
                let Some(known) = known else { continue };
                if let Some(other) = left.insert(known, Stored { file: index, name: name.to_owned() }) {
                    let other = files[other.file].path().display();
                    return Err(Error::file(
                        file.path(),
                        format!("tensor `{name}` is in {other}, too; remove one file"),
                    ));
                }
            }
        }
        Ok(Files { folder: folder.to_owned(), files, left, layout, device: device.clone() })
    }

    /// Errs when there are tensors that the model did not ask for.
    fn finish(self) -> Result<()> {
        let Some(stored) = self.left.values().next() else { return Ok(()) };
        let more = match self.left.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let why = format!("tensor `{}`{more} has no place in the model that config.json describes", stored.name);
        Err(Error::file(self.files[stored.file].path(), why))
    }
}

/// Transformers saves it where it is the embedding, too.
const LM_HEAD: &str = "language_model.lm_head.weight";

impl Source for Files {
    fn tensor(&mut self, name: &str, shape: Shape, _: Init) -> Result<Tensor> {
        let Some(stored) = self.left.remove(name) else {
            let why = format!("tensor `{name}` {shape} is missing; config.json asks for it");
            return Err(Error::file(self.files.first().map_or(self.folder.as_path(), File::path), why));
        };
        let file = &self.files[stored.file];
        let wrong = |why: String| Error::file(file.path(), format!("tensor `{}` is {why}", stored.name));
        let want = match self.layout {
            Layout::Mlx => shape,
            Layout::Transformers => transformers::shape(name, shape),
        };
        if let Some(entry) = file.entry(&stored.name) {
            if !matches!(entry.dtype.as_str(), "F32" | "F16" | "BF16") {
                let why = format!("{}, expected F32, F16 or BF16; quantised models are not read", entry.dtype);
                return Err(wrong(why));
            }
            if entry.shape != want {
                return Err(wrong(format!("{}, config.json asks for {want}", entry.shape)));
            }
        }
        let tensor = match file.tensor(&stored.name, &self.device)? {
            tensor if tensor.dtype() == DType::F32 => tensor,
            half => cast(&half, DType::F32)?,
        };
        match self.layout {
            Layout::Mlx => Ok(tensor),
            Layout::Transformers => transformers::adapt(name, &tensor, shape),
        }
    }
}

/// `model*.safetensors` of a folder, sorted; all that an index names must be there.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        if is_weight_file(&path) {
            found.push(path);
        }
    }
    found.sort();
    let index = folder.join("model.safetensors.index.json");
    if let Some(json) = read_json(&index)? {
        let files = json.get("weight_map").and_then(Value::as_object).into_iter().flat_map(Map::values);
        let files: BTreeSet<&str> = files.filter_map(Value::as_str).collect();
        for file in files {
            if !found.contains(&folder.join(file)) {
                return Err(Error::file(
                    index,
                    format!("it names {file}, which is not in the folder; fetch that file"),
                ));
            }
        }
    }
    if found.is_empty() {
        return Err(Error::file(folder, "there are no weights: no file is called model*.safetensors"));
    }
    Ok(found)
}

fn is_weight_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("model") && name.ends_with(".safetensors")
}

fn read_json(path: &Path) -> Result<Option<Map<String, Value>>> {
    match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "read")(e)),
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(Value::Object(json)) => Ok(Some(json)),
            Ok(_) => Err(Error::file(path, "expected a JSON object")),
            Err(e) => Err(Error::file(path, format!("not valid JSON: {e}"))),
        },
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
    stage("model.safetensors.index.json", pretty(&index(&tensors)).as_bytes())?;
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
    let (paths, model_type) = match path.is_dir() {
        true => {
            let config = path.join("config.json");
            let config = config.exists().then(|| Config::read(path)).transpose()?;
            (weight_files(path)?, config.and_then(|c| c.model_type().ok().map(str::to_owned)))
        }
        false => (vec![path.to_owned()], None),
    };
    let mut description = Description { model_type, files: vec![], tensors: vec![], metadata: BTreeMap::new() };
    for path in paths {
        let file = safetensors::read(&path)?;
        description.files.push((path, file.bytes()));
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
