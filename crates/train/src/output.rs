//! The files of a checkpoint beside the state of the run.

use alluvium_core::{DType, Error, Result, Tensor};
use alluvium_lm::adapter::{ADAPTER_CONFIG, ADAPTERS};
use alluvium_lm::formats::{safetensors, write_atomic};
use alluvium_ops::cast;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The adapter of the lowest validation loss.
pub(crate) const BEST: &str = "best_adapters.safetensors";

/// The files of a checkpoint beside the state of the run.
#[derive(Clone, Debug)]
pub(crate) enum Output {
    /// The model, in the layout of MLX, and the settings as TOML.
    Model { settings: Option<String> },
    /// The trainable parameters, as mlx-lm's adapter.
    Adapter(AdapterOutput),
}

/// The configuration of an adapter and the dtypes in which its tensors are stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct AdapterOutput {
    pub(crate) config: Map<String, Value>,
    pub(crate) dtypes: BTreeMap<String, DType>,
}

impl AdapterOutput {
    /// Writes the adapter of a step, under mlx-lm's name and under that of the step.
    pub(crate) fn save(&self, parameters: &[(String, &Tensor)], out: &Path, step: u64) -> Result<()> {
        self.save_tensors(parameters, &Self::of_step(out, step))?;
        self.save_tensors(parameters, &out.join(ADAPTERS))?;
        let text = serde_json::to_string_pretty(&self.config).map_err(|e| Error::file(out, e.to_string()))?;
        write_atomic(out.join(ADAPTER_CONFIG), |file| file.write_all(text.as_bytes()))
    }

    /// The file that keeps the adapter of a step.
    pub(crate) fn of_step(out: &Path, step: u64) -> PathBuf {
        out.join(format!("{step:07}_{ADAPTERS}"))
    }

    /// Writes trained parameters in the dtypes of the adapter.
    pub(crate) fn save_tensors(&self, parameters: &[(String, &Tensor)], path: &Path) -> Result<()> {
        let stored = |(name, tensor): &(String, &Tensor)| {
            let dtype = self.dtypes.get(name).copied().unwrap_or(tensor.dtype());
            Ok((name.clone(), cast(&tensor.detach(), dtype)?))
        };
        let tensors: Vec<(String, Tensor)> = parameters.iter().map(stored).collect::<Result<_>>()?;
        let tensors: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        safetensors::write(path, &tensors, &[("format".to_owned(), "mlx".to_owned())])
    }
}
