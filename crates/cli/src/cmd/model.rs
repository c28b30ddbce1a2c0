//! Opening a model: its folder, its memory, its tokenizer, and what is said about it before it is loaded.

use super::check::dtype;
use super::hub::find_model;
use super::memory::{self, MemoryArg};
use super::{ActivationBitsArg, DeviceArg};
use crate::output::{bytes, count, note, say, spinner};
use alluvium::lm::{
    Adapter, CacheShape, Config, LanguageModel, LoadOptions, Loaded, Registry, ShapeSource, Tokenizer, inspect,
    load_with, set_dtype,
};
use alluvium::{DType, Device};
use anyhow::bail;
use std::path::{Path, PathBuf};

/// A loaded model with a tokenizer.
pub(crate) struct Opened {
    pub(crate) folder: PathBuf,
    pub(crate) model: Box<dyn LanguageModel>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) config: Config,
    pub(crate) device: Device,
}

/// Finds and loads the model of a flag. Says on standard error what it is, where it runs and what it takes for a
/// sequence of `tokens` tokens, and refuses one that does not fit.
pub(crate) fn open(
    model: &Path,
    load_args: &LoadArgs,
    device: &DeviceArg,
    tokens: usize,
    memory: &MemoryArg,
) -> anyhow::Result<Opened> {
    let folder = find_model(model)?;
    if folder.is_file() && folder.extension().is_none_or(|end| !end.eq_ignore_ascii_case("gguf")) {
        bail!("{}: it is a file, expected the folder of a model", folder.display());
    }
    let device = device.open_with(load_args.activation_bits)?;
    // what is wrong with the files is said by loading them
    if let Ok(found) = inspect(&folder) {
        let caches = caches(&folder, tokens, load_args.dtype).unwrap_or(0);
        let model_type = found.model_type.as_deref().unwrap_or("unknown type");
        let (parameters, weights) = (count(found.parameters() as f64), found.bytes());
        note!("model     {model_type}, {parameters} parameters · {}", described(&device));
        note!("memory    {} of weights, {} of caches for {tokens} tokens", bytes(weights), bytes(caches));
        let remedy = "quantize the model (`alluvium quantize`), or choose a smaller one";
        memory::check(weights.saturating_add(caches), &device, remedy, memory)?;
    }
    let progress = spinner("loading the model …");
    let options = LoadOptions::new(&device);
    let is_adapted = load_args.is_adapted || load_args.adapter_path.is_some();
    let options = if is_adapted { options } else { options.for_generation() };
    let loaded = load_with(&folder, &options);
    progress.finish_and_clear();
    let Loaded { mut model, tokenizer, config } = loaded?;
    load_args.apply(model.as_mut())?;
    let tokenizer = super::prompt::tokenizer(tokenizer, &folder)?;
    Ok(Opened { folder, model, tokenizer, config, device })
}

/// The bytes of the caches of a model for one sequence, from its configuration alone.
fn caches(folder: &Path, tokens: usize, dtype: DType) -> alluvium::Result<usize> {
    let config = Config::read(folder)?;
    let shapes = Registry::default().get(&config)?.build(&config, &mut ShapeSource::new()?)?.cache_shapes();
    let bytes = |shape: &CacheShape| shape.bytes(tokens, dtype);
    Ok(shapes.iter().map(bytes).fold(0, usize::saturating_add))
}

/// A device with its threads.
pub(crate) fn described(device: &Device) -> String {
    match device {
        Device::Cpu(cpu) => format!("{device}, {} threads", cpu.threads()),
        Device::Gpu(_) => device.to_string(),
    }
}

/// The adapter of a model, and the dtype that it computes in.
#[derive(Clone, clap::Args)]
pub(crate) struct LoadArgs {
    /// Folder with an adapter for the model, as `alluvium finetune`, mlx-lm or PEFT write it
    #[arg(long, value_name = "DIR")]
    adapter_path: Option<PathBuf>,
    /// Dtype of activations, keys and values: bf16 and f16 halve their memory. Matrices are used as they are stored; gates,
    /// recurrent states and logits are f32
    #[arg(long, default_value = "f32", value_parser = dtype, value_name = "DTYPE")]
    dtype: DType,
    #[command(flatten)]
    activation_bits: ActivationBitsArg,
    /// An adapter is attached later: the matrices stay apart.
    #[arg(skip)]
    is_adapted: bool,
}

impl LoadArgs {
    /// No adapter, this dtype, and activations in these bits.
    pub(crate) fn computing_in(dtype: DType, activation_bits: ActivationBitsArg) -> Self {
        LoadArgs { adapter_path: None, dtype, activation_bits, is_adapted: false }
    }

    /// The same for a model to which adapters are attached after it was opened.
    pub(crate) fn for_adapters(&self) -> Self {
        LoadArgs { is_adapted: true, ..self.clone() }
    }

    /// Attaches the adapter of a folder, which then computes in the same dtype.
    pub(crate) fn attach(&self, folder: &Path, model: &mut dyn LanguageModel) -> anyhow::Result<()> {
        let device = model.device().clone();
        Adapter::read(&find_model(folder)?, &device)?.attach(model)?;
        Ok(set_dtype(model, self.dtype)?)
    }

    /// Applies the adapter to a model, and then the dtype to both.
    fn apply(&self, model: &mut dyn LanguageModel) -> anyhow::Result<()> {
        match &self.adapter_path {
            Some(folder) => self.attach(folder, model),
            None => Ok(set_dtype(model, self.dtype)?),
        }
    }
}

impl Opened {
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
