//! Built-in model types: how each reads its `config.json` and maps stored tensors to parameters.

mod hybrid;
mod keys;
mod llama;
mod olmo_hybrid;
mod qwen3;
pub mod qwen3_5;
mod qwen3_next;
mod rotary;
pub mod sanitize;

use crate::formats::config::Config;
use crate::init::{RandomInit, VarBuilder, WeightSource};
use crate::model::LanguageModel;
use crate::nn::Decoder;
use alluvium_core::{Device, Error, Result};
use sanitize::{Stored, Transform, WeightMap};

/// Builds a model from its configuration.
pub type Build = fn(&Config, VarBuilder) -> Result<Box<dyn LanguageModel>>;

/// Maps stored tensors to the parameters of a model. Stored tensors without a transform are ignored.
pub type Sanitize = fn(&Stored<'_>, &Config, &ModelType) -> Result<WeightMap>;

/// A model type, selected by the key `model_type` of `config.json`.
#[derive(Clone, Copy)]
pub struct ModelType {
    /// The value of `model_type`.
    pub name: &'static str,
    /// Builds the model.
    build: Builder,
    sanitize: Sanitize,
    /// The `model_type` of the same model in mlx-lm, which a conversion to MLX's layout writes.
    pub mlx_name: &'static str,
    /// The `model_type` of the text model in transformers, which a conversion to its layout writes.
    pub transformers_name: &'static str,
    /// Whether the layout of transformers stores the weights of norms minus 1.
    pub(crate) zero_centered_norms: bool,
    /// The default of `tie_word_embeddings` for new models. For a checkpoint the presence of an `lm_head` decides.
    pub tie_word_embeddings: bool,
    /// Suffixes of the names of tensors that keep their dtype in a conversion.
    pub keeps_dtype: &'static [&'static str],
    /// Suffixes of the names of modules that are quantized to 8 bits: quantization errors of a router select other
    /// experts.
    pub sensitive: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Builder {
    Decoder(fn(&Config, VarBuilder, &ModelType) -> Result<Decoder>),
    Any(Build),
}

impl std::fmt::Debug for ModelType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Routers and the gates of shared experts.
const ROUTERS: &[&str] = &["mlp.gate", "shared_expert_gate"];

/// The built-in models, by `model_type`.
static MODELS: &[ModelType] = &[
    ModelType { tie_word_embeddings: true, ..ModelType::decoder("llama", llama::build, plain) },
    ModelType::decoder("qwen2", llama::build_qwen2, plain),
    ModelType::decoder("qwen3", qwen3::build, plain),
    ModelType { sensitive: ROUTERS, ..ModelType::decoder("qwen3_moe", qwen3::build_moe, qwen3::sanitize_moe) },
    ModelType::decoder("olmo_hybrid", olmo_hybrid::build, olmo_hybrid::sanitize),
    QWEN3_5,
    ModelType { name: "qwen3_5_text", ..QWEN3_5 },
    QWEN3_5_MOE,
    ModelType { name: "qwen3_5_moe_text", ..QWEN3_5_MOE },
    ModelType {
        sensitive: ROUTERS,
        zero_centered_norms: true,
        ..ModelType::decoder("qwen3_next", qwen3_next::build, qwen3_next::sanitize)
    },
];

const QWEN3_5: ModelType = ModelType {
    transformers_name: "qwen3_5_text",
    zero_centered_norms: true,
    keeps_dtype: &["A_log"],
    sensitive: ROUTERS,
    ..ModelType::decoder("qwen3_5", qwen3_5::build, qwen3_5::sanitize)
};

const QWEN3_5_MOE: ModelType =
    ModelType { name: "qwen3_5_moe", mlx_name: "qwen3_5_moe", transformers_name: "qwen3_5_moe_text", ..QWEN3_5 };

impl ModelType {
    /// A model type of the caller. Its checkpoints hold every parameter under the parameter's name.
    pub const fn new(name: &'static str, build: Build) -> Self {
        ModelType {
            name,
            build: Builder::Any(build),
            sanitize: plain,
            mlx_name: name,
            transformers_name: name,
            zero_centered_norms: false,
            tie_word_embeddings: false,
            keeps_dtype: &[],
            sensitive: &[],
        }
    }

    const fn decoder(
        name: &'static str,
        build: fn(&Config, VarBuilder, &ModelType) -> Result<Decoder>,
        sanitize: Sanitize,
    ) -> Self {
        ModelType {
            name,
            build: Builder::Decoder(build),
            sanitize,
            mlx_name: name,
            transformers_name: name,
            zero_centered_norms: false,
            tie_word_embeddings: false,
            keeps_dtype: &[],
            sensitive: &[],
        }
    }

    /// Replaces the rules for stored tensors.
    pub const fn with_sanitize(self, sanitize: Sanitize) -> Self {
        ModelType { sanitize, ..self }
    }

    /// Builds the model from the tensors of `source`.
    ///
    /// # Errors
    /// When a key of the configuration is missing or out of range, or the source lacks a tensor.
    pub fn build(&self, config: &Config, source: &mut dyn WeightSource) -> Result<Box<dyn LanguageModel>> {
        match self.build {
            Builder::Decoder(build) => Ok(Box::new(build(config, VarBuilder::new(source), self)?)),
            Builder::Any(build) => build(config, VarBuilder::new(source)),
        }
    }

    /// A new model with random weights. The same seed gives bit-identical weights.
    ///
    /// # Errors
    /// As [`ModelType::build`].
    pub fn initialize(&self, config: &Config, seed: u64, device: &Device) -> Result<Box<dyn LanguageModel>> {
        self.build(config, &mut RandomInit { seed, device: device.clone() })
    }

    /// Maps stored tensors to the parameters of the model.
    ///
    /// # Errors
    /// When two stored tensors would become the same parameter, or experts are missing.
    pub fn weight_map(&self, stored: &Stored<'_>, config: &Config) -> Result<WeightMap> {
        (self.sanitize)(stored, config, self)
    }

    /// Whether the embedding is also the output projection: `tie_word_embeddings`, or the default of this type.
    ///
    /// # Errors
    /// When the key is neither true nor false.
    pub fn is_tied(&self, config: &Config) -> Result<bool> {
        let [outer, inner] = config.ties()?;
        Ok(inner.or(outer).unwrap_or(self.tie_word_embeddings))
    }
}

/// The model types that can be loaded.
#[derive(Clone, Debug)]
pub struct Registry {
    types: Vec<ModelType>,
}

/// The built-in models.
impl Default for Registry {
    fn default() -> Self {
        Registry { types: MODELS.to_vec() }
    }
}

impl Registry {
    /// Adds a model type, or replaces the one of the same name.
    pub fn register(&mut self, model_type: ModelType) {
        self.types.retain(|known| known.name != model_type.name);
        self.types.push(model_type);
    }

    /// The types, in the order of registration.
    pub fn types(&self) -> &[ModelType] {
        &self.types
    }

    /// The model type of a configuration.
    ///
    /// # Errors
    /// When its `model_type` is missing or not registered.
    pub fn get(&self, config: &Config) -> Result<ModelType> {
        let name = config.model_type()?;
        self.types.iter().find(|known| known.name == name).copied().ok_or_else(|| {
            let known: Vec<&str> = self.types.iter().map(|known| known.name).collect();
            config.unsupported(format!("model_type `{name}` is not known; known are {}", known.join(", ")))
        })
    }
}

/// Builds the built-in model that `config` describes from the tensors of `source`.
///
/// # Errors
/// When the `model_type` is not built in, a key is missing or out of range, or the source lacks a tensor.
pub fn build(config: &Config, source: &mut dyn WeightSource) -> Result<Box<dyn LanguageModel>> {
    Registry::default().get(config)?.build(config, source)
}

/// A new built-in model with random weights. The same seed gives bit-identical weights.
///
/// # Errors
/// As [`build`]; [`Kind::Value`](alluvium_core::Kind::Value) or `Memory` when it does not fit.
pub fn initialize(config: &Config, seed: u64, device: &Device) -> Result<Box<dyn LanguageModel>> {
    build(config, &mut RandomInit { seed, device: device.clone() })
}

/// As [`initialize`], but returns the concrete type of all built-in models.
///
/// # Errors
/// As [`initialize`].
pub fn initialize_decoder(config: &Config, seed: u64, device: &Device) -> Result<Decoder> {
    let model_type = Registry::default().get(config)?;
    let mut source = RandomInit { seed, device: device.clone() };
    match model_type.build {
        Builder::Decoder(build) => build(config, VarBuilder::new(&mut source), &model_type),
        Builder::Any(_) => Err(Error::value("initialize_decoder", "the model type is not built in; use `initialize`")),
    }
}

/// Keeps every tensor under its own name, except tables of rotary frequencies and a tied output projection.
fn plain(stored: &Stored<'_>, config: &Config, model_type: &ModelType) -> Result<WeightMap> {
    let tied = model_type.is_tied(config)?;
    let is_left_out =
        |name: &str| name.contains("self_attn.rotary_emb.inv_freq") || (tied && name.starts_with("lm_head."));
    let names = stored.keys().filter(|name| !is_left_out(name));
    Ok(names.map(|&name| (name.to_owned(), Transform::Same(name.to_owned()))).collect())
}

/// Checks that a size of a configuration is between 1 and `most`.
pub(crate) fn size_within(config: &Config, key: &str, size: usize, most: usize) -> Result<()> {
    if size == 0 || size > most {
        return Err(config.error(format!("`{key}` is {size}, expected 1 to {most}")));
    }
    Ok(())
}

/// Checks that one count of heads is a multiple of another. Each comes with its key.
pub(crate) fn multiple_of(config: &Config, many: (&str, usize), few: (&str, usize)) -> Result<()> {
    if !many.1.is_multiple_of(few.1) {
        let why = format!("`{}` is {}, expected a multiple of `{}` = {}", many.0, many.1, few.0, few.1);
        return Err(config.error(why));
    }
    Ok(())
}
