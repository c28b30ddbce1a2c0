//! The models, one file each, named by the `model_type` of their `config.json`.

mod hybrid;
mod llama;
mod qwen3;
pub mod qwen3_5;
mod qwen3_5_moe;
mod qwen3_next;
mod rotary;

use crate::cache::{Cache, LayerShape};
use crate::formats::config::Config;
use crate::formats::folder::Folder;
use crate::formats::layout::{self, Recipes, Sanitize};
use crate::nn::build::{Builder, Random, Source};
use crate::nn::params::Parameters;
use crate::nn::{Ablation, Weight};
use alluvium_core::{Device, Error, Result, Tensor};

/// Tokens for training.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// `[B, T]`, u32.
    pub ids: &'a Tensor,
    /// Each token's place in its own text, `[B, T]`, u32.
    pub positions: &'a Tensor,
    /// Where packed texts begin and the last one ends, `[N + 1]`, u32, with B = 1; none where each row is one text.
    pub cu_seqlens: Option<&'a Tensor>,
}

/// What training keeps of a layer for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// What every operation needs: the quickest.
    Activations,
    /// The layer's input alone; the backward pass runs the layer again.
    Inputs,
}

/// A model that reads tokens and predicts the next one.
pub trait LanguageModel: Parameters + Send + Sync {
    /// The `config.json` it was built from.
    fn config(&self) -> &Config;

    /// Training: what is known after each token, `[B, T, D]`, after the final norm.
    ///
    /// # Errors
    /// When the tensors of the batch do not fit each other, or an id is not in the vocabulary.
    fn hidden(&self, batch: &Batch, keep: Keep) -> Result<Tensor>;

    /// Inference: as [`LanguageModel::hidden`] for new tokens `ids [B, T]` after those in `cache`, which takes them in.
    /// A prompt and a single token alike.
    ///
    /// # Errors
    /// As `hidden`, and when the cache was made for another batch; the cache is of no use after one.
    fn step(&self, ids: &Tensor, cache: &mut Cache) -> Result<Tensor>;

    /// The output projection, `[V, D]`: the embedding where the two are one.
    fn head(&self) -> &Weight;

    /// An empty cache for `batch` sequences.
    ///
    /// # Errors
    /// When `batch` is 0.
    fn cache(&self, batch: usize) -> Result<Cache>;

    /// The sizes of what each layer remembers of a sequence that is not empty.
    fn cache_shapes(&self) -> Vec<LayerShape>;

    /// For experiments: takes a part out of the model's Gated DeltaNet layers, or puts it back.
    fn ablate(&mut self, ablation: Ablation);
}

/// A type of model.
#[derive(Clone, Copy)]
pub struct ModelType {
    /// As `model_type` of a configuration names it.
    pub name: &'static str,
    build: fn(&Config, Builder) -> Result<Box<dyn LanguageModel>>,
    sanitize: Sanitize,
    /// Whether the output projection is the embedding where a configuration does not say: as in mlx-lm, and of `qwen3`, which
    /// mlx-lm refuses then, as in transformers.
    pub tied: bool,
    /// Ends of names whose tensors keep their dtype when a model is converted to another one.
    pub keeps_dtype: &'static [&'static str],
    /// Ends of modules' names that a quantised model has in 8 bits: routers, whose errors would choose other experts.
    pub sensitive: &'static [&'static str],
}

impl std::fmt::Debug for ModelType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The one table of models, by `model_type`.
#[rustfmt::skip]
pub static MODELS: &[ModelType] = &[
    ModelType { name: "llama", build: llama::build, sanitize: layout::plain, tied: true, keeps_dtype: &[], sensitive: &[] },
    ModelType { name: "qwen3", build: qwen3::build, sanitize: layout::plain, tied: false, keeps_dtype: &[], sensitive: &[] },
    ModelType { name: "qwen3_5", build: qwen3_5::build, sanitize: qwen3_5::sanitize, tied: false, keeps_dtype: &["A_log"], sensitive: ROUTERS },
    ModelType { name: "qwen3_5_moe", build: qwen3_5_moe::build, sanitize: qwen3_5_moe::sanitize, tied: false, keeps_dtype: &["A_log"], sensitive: ROUTERS },
    ModelType { name: "qwen3_next", build: qwen3_next::build, sanitize: qwen3_next::sanitize, tied: false, keeps_dtype: &[], sensitive: ROUTERS },
];

/// What chooses experts and weighs the one that all share.
const ROUTERS: &[&str] = &["mlp.gate", "shared_expert_gate"];

impl ModelType {
    /// The type of model that a configuration describes.
    ///
    /// # Errors
    /// When it is none of [`MODELS`].
    pub fn of(config: &Config) -> Result<Self> {
        let name = config.model_type()?;
        MODELS.iter().find(|known| known.name == name).copied().ok_or_else(|| {
            let known: Vec<&str> = MODELS.iter().map(|known| known.name).collect();
            config.wrong(format!("model_type `{name}` is not known; known are {}", known.join(", ")))
        })
    }
}

/// Builds the model that `config` describes, its tensors from `source`.
///
/// # Errors
/// When the `model_type` is none of [`MODELS`], a key is missing or out of range, or the source lacks a tensor.
pub fn build(config: &Config, source: &mut dyn Source) -> Result<Box<dyn LanguageModel>> {
    (ModelType::of(config)?.build)(config, Builder::new(source))
}

/// How the tensors of the model that `config` describes come out of a folder's files.
///
/// # Errors
/// When the `model_type` is none of [`MODELS`], or the tensors are those of no layout.
pub fn recipes(folder: &Folder, config: &Config) -> Result<Recipes> {
    (ModelType::of(config)?.sanitize)(&folder.stored(), config)
}

/// A new model with random weights; the same seed gives the same bits.
///
/// # Errors
/// As [`build`]; [`Kind::Value`](alluvium_core::Kind::Value) or `Memory` when it does not fit.
pub fn initialise(config: &Config, seed: u64, device: &Device) -> Result<Box<dyn LanguageModel>> {
    build(config, &mut Random { seed, device: device.clone() })
}

/// Holds a size of a configuration against what can be meant.
pub(crate) fn size_within(config: &Config, key: &str, size: usize, most: usize) -> Result<()> {
    if size == 0 || size > most {
        return Err(config.wrong(format!("`{key}` is {size}, expected 1 to {most}")));
    }
    Ok(())
}

/// Holds two counts of heads, by their keys, against each other.
pub(crate) fn multiple_of(config: &Config, many: (&str, usize), few: (&str, usize)) -> Result<()> {
    if !many.1.is_multiple_of(few.1) {
        let why = format!("`{}` is {}, expected a multiple of `{}` = {}", many.0, many.1, few.0, few.1);
        return Err(config.wrong(why));
    }
    Ok(())
}

pub(crate) fn batch_of_at_least_one(batch: usize) -> Result<()> {
    if batch == 0 {
        return Err(Error::value("cache", "a batch of 0 sequences was asked for, expected 1 or more"));
    }
    Ok(())
}
