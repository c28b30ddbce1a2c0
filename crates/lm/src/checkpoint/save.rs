//! Saving a model to a folder.

use super::index::{INDEX, is_weight_file};
use crate::formats::atomic::AtomicFile;
use crate::formats::config::Config;
use crate::formats::json::pretty;
use crate::formats::safetensors;
use crate::model::LanguageModel;
use crate::tokenizer::{Tokenizer, make_parent};
use alluvium_core::{DType, Error, Result, Tensor};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Saves a model as mlx-lm loads it; the folder is made where there is none.
///
/// Every file is first written whole under a temporary name; only when all are on the disk are they renamed. A failure
/// leaves the files of an earlier save as they were.
///
/// # Errors
/// [`Kind::Io`](alluvium_core::Kind::Io) when the system refuses; `Kind::File` when the folder holds other weights that
/// a reader would take for a part of this model.
pub fn save(model: &dyn LanguageModel, config: &Config, tokenizer: Option<&Tokenizer>, folder: &Path) -> Result<()> {
    check_destination(folder)?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    let weights = folder.join(WEIGHTS);
    let mut tensors = Vec::new();
    model.visit("", &mut |name, tensor| tensors.push((name, tensor)));
    tensors.sort_by(|a, b| a.0.cmp(&b.0));

    let mut staged = vec![safetensors::stage(&weights, &tensors, &[("format".to_owned(), "mlx".to_owned())])?];
    let mut stage = |name: &str, text: &[u8]| -> Result<()> {
        make_parent(&folder.join(name))?;
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
