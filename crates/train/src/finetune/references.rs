//! The log-probabilities of a reference model, kept beside the adapter.

use super::{FinetuneData, FinetuneSettings};
use crate::data::PackedBatch;
use crate::{LossKind, NextToken, Objective, Preference, References};
use alluvium_core::{Error, Result};
use alluvium_lm::LanguageModel;
use alluvium_lm::formats::write_atomic;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The file's name in the folder of the adapter.
const FILE: &str = "reference_logprobs.json";

/// Its content.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// The reference model.
    model: String,
    /// Log-probabilities by the hash of an answer and what comes before it.
    logprobs: BTreeMap<String, f32>,
}

/// The log-probabilities of all answers under the model as it is before it is trained; none where the loss needs none.
pub(super) fn references(
    model: &dyn LanguageModel,
    settings: &FinetuneSettings,
    data: &FinetuneData,
) -> Result<Option<References>> {
    if settings.loss != LossKind::Dpo {
        return Ok(None);
    }
    let all = [&data.train, &data.validation, &data.test];
    let batches: Vec<PackedBatch> =
        all.iter().flat_map(|samples| samples.batches(settings.batch_size, usize::MAX)).collect();
    match read(&settings.adapter_path.join(FILE), settings) {
        Some(found) if found.cover(&batches) => Ok(Some(found)),
        _ => References::of(model, &batches).map(Some),
    }
}

/// What an earlier start of the run wrote. Anything else is computed anew.
fn read(path: &Path, settings: &FinetuneSettings) -> Option<References> {
    let stored: Stored = serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
    if stored.model != settings.model.to_string_lossy() {
        return None;
    }
    let entry = |(hash, value): (&String, &f32)| Some((u64::from_str_radix(hash, 16).ok()?, *value));
    let entries: Option<Vec<(u64, f32)>> = stored.logprobs.iter().map(entry).collect();
    Some(References::from_entries(entries?.into_iter()))
}

/// Writes them for a resumed run.
pub(super) fn write(references: &References, settings: &FinetuneSettings) -> Result<()> {
    let path = settings.adapter_path.join(FILE);
    let logprobs = references.entries().into_iter().map(|(hash, value)| (format!("{hash:016x}"), value)).collect();
    let stored = Stored { model: settings.model.to_string_lossy().into_owned(), logprobs };
    let text = serde_json::to_string(&stored).map_err(|error| Error::file(&path, error.to_string()))?;
    write_atomic(path, |file| file.write_all(text.as_bytes()))
}

/// The objective of a run.
pub(super) fn objective(
    forward: NextToken,
    settings: &FinetuneSettings,
    references: Option<References>,
) -> Box<dyn Objective<dyn LanguageModel, PackedBatch>> {
    match settings.loss {
        LossKind::Sft => Box::new(forward),
        _ => Box::new(Preference { model: forward, beta: settings.beta, reference: references }),
    }
}
