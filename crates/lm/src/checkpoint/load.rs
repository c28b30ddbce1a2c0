//! Loading a model from a folder.

use super::gguf;
use super::weights::Weights;
use crate::formats::config::Config;
use crate::formats::gguf::is_gguf;
use crate::model::LanguageModel;
use crate::models::{ModelType, Registry};
use crate::tokenizer::Tokenizer;
use alluvium_core::{Device, Result};
use std::path::Path;

/// A loaded checkpoint.
pub struct Loaded {
    /// The model, its matrices in the dtype that the files have.
    pub model: Box<dyn LanguageModel>,
    /// The tokenizer, where there is one.
    pub tokenizer: Option<Tokenizer>,
    /// The model's `config.json`, or what the metadata of a GGUF file say in its terms.
    pub config: Config,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} from {}", self.config.model_type().ok(), self.config.path().display())
    }
}

/// Loads the model in a folder, in the layout of MLX or of transformers, or in a GGUF file.
///
/// Matrices stay in the dtype that they are stored in, and are read straight into the memory that they keep. All else,
/// which is small, is widened to f32: norms, filters, gates, biases.
///
/// # Errors
/// [`Kind::Io`](alluvium_core::Kind::Io) when a file cannot be read; `Kind::File`, with the file and what is wrong,
/// when one is not what it should be: a configuration of an unknown model or with sizes that cannot be, a tensor that
/// is missing, that nothing asks for, or that has another shape than the configuration says.
pub fn load(folder: &Path, device: &Device) -> Result<Loaded> {
    load_with(folder, &LoadOptions::new(device))
}

/// Options of [`load_with`].
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The device of the tensors.
    pub device: Device,
    /// The types of models that are known.
    pub registry: Registry,
    /// Whether the matrices that multiply one input are laid one after the other in memory: then one launch of a GPU
    /// multiplies all of them, which generation is faster for. No gain on the CPU, nor under an adapter.
    pub join_projections: bool,
}

impl LoadOptions {
    /// For the built-in models.
    pub fn new(device: &Device) -> Self {
        LoadOptions { device: device.clone(), registry: Registry::default(), join_projections: false }
    }

    /// For generation without an adapter: joins projections where the device is a GPU.
    pub fn for_generation(mut self) -> Self {
        self.join_projections = matches!(self.device, Device::Gpu(_));
        self
    }

    /// Adds a model type of the caller.
    pub fn with_model_type(mut self, model_type: ModelType) -> Self {
        self.registry.register(model_type);
        self
    }
}

/// As [`load`], with options.
///
/// # Errors
/// As [`load`].
pub fn load_with(folder: &Path, options: &LoadOptions) -> Result<Loaded> {
    if is_gguf(folder) {
        return gguf::load(folder, options);
    }
    let mut config = Config::read(folder)?;
    let model_type = options.registry.get(&config)?;
    let mut weights = Weights::open(folder, &mut config, &model_type, &options.device)?;
    weights.join_projections = options.join_projections;
    let model = model_type.build(&config, &mut weights)?;
    weights.finish()?;
    let tokenizer = Tokenizer::find(folder)?;
    Ok(Loaded { model, tokenizer, config })
}
