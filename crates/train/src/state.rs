//! What a run needs to go on: one file, written whole or not at all.

use crate::{Cursor, Optimiser, Settings};
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_lm::nn::{Init, Source};
use alluvium_lm::{Config, LanguageModel};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Its name in the run's folder. Tools that read checkpoints look for `model*.safetensors`, so it is none of those.
pub(crate) const FILE: &str = "trainer.safetensors";
/// The key of the metadata under which [`Progress`] stands.
const KEY: &str = "alluvium_run";

/// Where a run stands, besides its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) step: u64,
    pub(crate) tokens: u64,
    pub(crate) epoch: u64,
    pub(crate) document: usize,
    pub(crate) token: usize,
    /// Of the tokens that are trained on: another text must not continue this run.
    pub(crate) corpus: u64,
    /// Where the text was, absolute; empty where a path is no UTF-8.
    #[serde(default)]
    pub(crate) data: Vec<String>,
    /// The losses of the steps since the last line of the metrics, in sum, and how many there are.
    #[serde(default)]
    pub(crate) unreported: (f64, u64),
    pub(crate) settings: Settings,
}

impl Progress {
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { epoch: self.epoch, document: self.document, token: self.token }
    }

    /// Whether these counts can be those of a run, so that nothing that counts on can overflow.
    fn is_possible(&self) -> bool {
        const MOST: u64 = 1 << 53;
        let counts = [self.step, self.tokens, self.epoch, self.unreported.1];
        counts.iter().all(|&n| n < MOST) && self.unreported.0.is_finite()
    }
}

pub(crate) fn save(path: &Path, model: &dyn LanguageModel, optimiser: &Optimiser, progress: &Progress) -> Result<()> {
    let mut tensors: Vec<(String, &Tensor)> = Vec::new();
    model.visit("", &mut |name, parameter| tensors.push((format!("parameter.{name}"), parameter)));
    tensors.extend(optimiser.state().into_iter().map(|(name, tensor)| (format!("moment.{name}"), tensor)));
    let progress = serde_json::to_string(progress).map_err(|e| Error::file(path, e.to_string()))?;
    safetensors::write(path, &tensors, &[(KEY.to_owned(), progress)])
}

/// Reads where the run stands, without its tensors.
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

/// The run's model. Each tensor is held against the file before there is memory for it, so that a state which claims
/// another shape costs nothing.
pub(crate) fn model(path: &Path, config: &Config, device: &Device) -> Result<Box<dyn LanguageModel>> {
    let mut parameters = Parameters { file: safetensors::read(path)?, path, device };
    alluvium_lm::build(config, &mut parameters)
}

/// The parameters in a state.
struct Parameters<'a> {
    file: safetensors::File,
    path: &'a Path,
    device: &'a Device,
}

impl Source for Parameters<'_> {
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

/// Puts the run's moments back.
pub(crate) fn restore(path: &Path, optimiser: &mut Optimiser, device: &Device) -> Result<()> {
    let file = safetensors::read(path)?;
    let moments: Vec<String> = file.names().filter_map(|n| Some(n.strip_prefix("moment.")?.to_owned())).collect();
    let tensors = moments.into_iter().map(|name| Ok((name.clone(), file.tensor(&format!("moment.{name}"), device)?)));
    optimiser.restore(tensors.collect::<Result<_>>()?)
}
