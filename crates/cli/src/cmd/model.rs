//! Opening a model: its folder, its tokenizer, and what is said about it before it is loaded.

use super::DeviceArg;
use crate::output::{bytes, count, note, say, spinner};
use alluvium::Device;
use alluvium::lm::{Adapter, Config, LanguageModel, Loaded, Tokenizer, inspect, load};
use std::path::{Path, PathBuf};

/// A loaded model with a tokenizer.
pub(crate) struct Opened {
    pub(crate) folder: PathBuf,
    pub(crate) model: Box<dyn LanguageModel>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) config: Config,
    pub(crate) device: Device,
}

/// Loads the model of a flag and says on standard error what it is and where it runs.
pub(crate) fn open(model: &Path, device: &DeviceArg) -> anyhow::Result<Opened> {
    super::is_here(model)?;
    let folder = model.to_owned();
    let device = device.open()?;
    if let Ok(found) = inspect(&folder) {
        let model_type = found.model_type.as_deref().unwrap_or("unknown type");
        let (parameters, weights) = (count(found.parameters() as f64), bytes(found.bytes()));
        note!("model     {model_type}, {parameters} parameters, {weights} · {}", described(&device));
    }
    let progress = spinner("loading the model …");
    let loaded = load(&folder, &device);
    progress.finish_and_clear();
    let Loaded { model, tokenizer, config } = loaded?;
    let tokenizer = super::prompt::tokenizer(tokenizer, &folder)?;
    Ok(Opened { folder, model, tokenizer, config, device })
}

/// A device with its threads.
pub(crate) fn described(device: &Device) -> String {
    match device {
        Device::Cpu(cpu) => format!("{device}, {} threads", cpu.threads()),
        Device::Gpu(_) => device.to_string(),
    }
}

/// The adapter of a fine-tuning run.
#[derive(clap::Args)]
pub(crate) struct AdapterArg {
    /// Folder with an adapter for the model, as `alluvium finetune`, mlx-lm or PEFT write it
    #[arg(long, value_name = "DIR")]
    adapter_path: Option<PathBuf>,
}

impl AdapterArg {
    /// Applies the adapter to a model.
    pub(crate) fn attach(&self, model: &mut dyn LanguageModel) -> anyhow::Result<()> {
        let Some(folder) = &self.adapter_path else { return Ok(()) };
        let device = model.device().clone();
        Ok(Adapter::read(folder, &device)?.attach(model)?)
    }
}

impl Opened {
    /// The model with an adapter.
    pub(crate) fn adapted(mut self, adapter: &AdapterArg) -> anyhow::Result<Self> {
        adapter.attach(self.model.as_mut())?;
        Ok(self)
    }

    /// The name of the model in errors.
    pub(crate) fn name(&self) -> String {
        self.folder.display().to_string()
    }

    /// Warns of a prompt that is longer than the model was made for.
    pub(crate) fn warn_of_length(&self, prompt: usize) {
        let limit = self.config.text().get("max_position_embeddings").and_then(serde_json::Value::as_u64);
        if let Some(limit) = limit.filter(|&limit| prompt as u64 > limit) {
            say!("warning: the prompt has {prompt} tokens, the model was made for {limit} (max_position_embeddings)");
        }
    }
}
