//! The contents of a checkpoint, read from its headers alone.

use super::folder::Folder;
use crate::formats::config::Config;
use crate::formats::gguf::is_gguf;
use crate::formats::safetensors;
use crate::quantize::format::{Quantization, in_words};
use alluvium_core::{Result, Shape};
use alluvium_ops::Packing;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The contents of a checkpoint.
#[derive(Clone, Debug)]
pub struct CheckpointInfo {
    /// The model type; `None` without a `config.json`.
    pub model_type: Option<String>,
    /// The weight files and their sizes in bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// Their tensors, by file and name.
    pub tensors: Vec<TensorInfo>,
    /// The number of quantized modules by format.
    pub packings: BTreeMap<String, usize>,
    /// The formats that the configuration names.
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
    /// The contents of files that have no modules of several tensors.
    pub(super) fn new(
        model_type: Option<String>,
        files: Vec<(PathBuf, u64)>,
        tensors: Vec<TensorInfo>,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        let said = Quantization::default();
        CheckpointInfo { model_type, files, tensors, packings: BTreeMap::new(), said, metadata }
    }

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

    /// The format of a quantized weight. The shapes of codes and scales give bits × group. That identifies the formats
    /// whose scales are bytes. For affine formats the group of the configuration is tried first, then all others.
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

/// Inspects a folder, or a single safetensors or GGUF file, from the headers alone.
///
/// # Errors
/// As [`load`](super::load), for the headers and the configuration.
pub fn inspect(path: &Path) -> Result<CheckpointInfo> {
    if is_gguf(path) {
        return super::gguf::inspect(path);
    }
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
