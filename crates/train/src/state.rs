//! `trainer.safetensors`: what a run needs to resume, in one file that is written whole or not at all.

use crate::Optimizer;
use crate::data::{DataPosition, Task};
use crate::meter::WeightedSum;
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_lm::init::{Init, WeightSource};
use alluvium_lm::{Config, LanguageModel, visit_trainable_mut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The file's name in the folder of a run. Tools that read checkpoints look for `model*.safetensors`, so it is none of
/// those.
pub(crate) const FILE: &str = "trainer.safetensors";
/// The metadata key of [`Progress`].
const KEY: &str = "alluvium_run";

/// The data of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataSource {
    /// Files and folders of text.
    Text(Vec<PathBuf>),
    /// A synthetic task.
    Task(Task),
}

/// The progress of a run, besides its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) step: u64,
    pub(crate) tokens: u64,
    pub(crate) position: DataPosition,
    /// Hash of the training data: other data must not continue this run.
    pub(crate) fingerprint: u64,
    /// Absolute paths of the text, or the task; `None` where a path is not UTF-8 or the data came from a program.
    #[serde(default)]
    pub(crate) source: Option<DataSource>,
    /// Losses since the last row of the metrics.
    #[serde(default)]
    pub(crate) unreported: WeightedSum,
    /// The lowest validation loss so far.
    #[serde(default)]
    pub(crate) best: Option<f64>,
    /// The settings that the run was begun with, as its kind has them.
    pub(crate) settings: Value,
}

impl Progress {
    /// The settings of a run of a kind.
    pub(crate) fn settings<S: DeserializeOwned>(&self, path: &Path) -> Result<S> {
        serde_json::from_value(self.settings.clone())
            .map_err(|error| Error::file(path, format!("the settings of the run cannot be read: {error}")))
    }

    /// Whether a run can have counted this far: larger counts would overflow later.
    fn is_possible(&self) -> bool {
        const MOST: u64 = 1 << 53;
        let counts = [self.step, self.tokens, self.position.epoch, self.position.index];
        let sums = [self.unreported.sum, self.unreported.weight];
        counts.iter().all(|&n| n < MOST) && sums.iter().all(|x| x.is_finite())
    }
}

pub(crate) fn save(path: &Path, model: &dyn LanguageModel, optimizer: &Optimizer, progress: &Progress) -> Result<()> {
    let parameters = optimizer.masters().parameters(model).into_iter();
    let mut tensors: Vec<(String, &Tensor)> = parameters.map(|(name, x)| (format!("parameter.{name}"), x)).collect();
    tensors.extend(optimizer.state().into_iter().map(|(name, tensor)| (format!("moment.{name}"), tensor)));
    let progress = serde_json::to_string(progress).map_err(|e| Error::file(path, e.to_string()))?;
    safetensors::write(path, &tensors, &[(KEY.to_owned(), progress)])
}

/// Reads the progress of a run without its tensors.
pub(crate) fn progress(path: &Path) -> Result<Progress> {
    if !path.exists() {
        return Err(Error::file(path, "there is no run to resume; leave --resume out to begin one"));
    }
    let file = safetensors::read(path)?;
    let text = file.metadata().get(KEY).ok_or_else(|| Error::file(path, format!("no `{KEY}` in its metadata")))?;
    let progress: Progress =
        serde_json::from_str(text).map_err(|e| Error::file(path, format!("`{KEY}` cannot be read: {e}")))?;
    match progress.is_possible() {
        true => Ok(progress),
        false => Err(Error::file(path, format!("`{KEY}` counts more than a run can have done: {text}"))),
    }
}

/// Reads the run's model. Each tensor's shape is compared with the configuration before memory is allocated for it.
pub(crate) fn model(path: &Path, config: &Config, device: &Device) -> Result<Box<dyn LanguageModel>> {
    let mut parameters = Parameters { file: safetensors::read(path)?, path, device };
    alluvium_lm::build(config, &mut parameters)
}

/// The parameters in a state file.
struct Parameters<'a> {
    file: safetensors::File,
    path: &'a Path,
    device: &'a Device,
}

impl WeightSource for Parameters<'_> {
    fn tensor(&mut self, name: &str, shape: Shape, _: Init) -> Result<Tensor> {
        let stored = format!("parameter.{name}");
        if let Some(entry) = self.file.entry(&stored)
            && (entry.shape != shape || entry.dtype.tensor_dtype() != Some(DType::F32))
        {
            let why = format!("`{name}` is {} of {}, the model has {shape} of F32", entry.shape, entry.dtype);
            return Err(Error::file(self.path, why));
        }
        self.file.tensor(&stored, self.device)
    }
}

/// Reads the trainable parameters into a model that has all others.
pub(crate) fn restore_parameters(path: &Path, model: &mut dyn LanguageModel, device: &Device) -> Result<()> {
    let mut parameters = Parameters { file: safetensors::read(path)?, path, device };
    let mut result = Ok(());
    visit_trainable_mut(model, &mut |name, slot| {
        if result.is_ok() {
            result = parameters.tensor(&name, slot.shape(), Init::Zeros).map(|tensor| *slot = tensor);
        }
    });
    result
}

/// Reads the optimizer's moments.
pub(crate) fn restore(path: &Path, optimizer: &mut Optimizer, device: &Device) -> Result<()> {
    let file = safetensors::read(path)?;
    let moments: Vec<String> = file.names().filter_map(|n| Some(n.strip_prefix("moment.")?.to_owned())).collect();
    let tensors = moments.into_iter().map(|name| Ok((name.clone(), file.tensor(&format!("moment.{name}"), device)?)));
    optimizer.restore(tensors.collect::<Result<_>>()?)
}
