//! The models, one file each, named by the `model_type` of their `config.json`.

pub mod qwen3_5;

use crate::cache::Cache;
use crate::formats::config::Config;
use crate::nn::Ablation;
use crate::nn::build::{Builder, Random, Source};
use crate::nn::params::Parameters;
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
    fn head(&self) -> &Tensor;

    /// An empty cache for `batch` sequences.
    ///
    /// # Errors
    /// When `batch` is 0.
    fn cache(&self, batch: usize) -> Result<Cache>;

    /// For experiments: takes a part out of the model's Gated DeltaNet layers, or puts it back.
    fn ablate(&mut self, ablation: Ablation);
}

/// How a model of one type is built from named tensors.
type Build = fn(&Config, Builder) -> Result<Box<dyn LanguageModel>>;

/// The one table of models, by `model_type`.
pub static MODELS: &[(&str, Build)] = &[("qwen3_5", qwen3_5::build)];

/// Builds the model that `config` describes, its tensors from `source`.
///
/// # Errors
/// When the `model_type` is none of [`MODELS`], a key is missing or out of range, or the source lacks a tensor.
pub fn build(config: &Config, source: &mut dyn Source) -> Result<Box<dyn LanguageModel>> {
    let name = config.model_type()?;
    match MODELS.iter().find(|(known, _)| *known == name) {
        Some((_, build)) => build(config, Builder::new(source)),
        None => {
            let known: Vec<&str> = MODELS.iter().map(|(name, _)| *name).collect();
            Err(config.wrong(format!("model_type `{name}` is not known; known are {}", known.join(", "))))
        }
    }
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

pub(crate) fn batch_of_at_least_one(batch: usize) -> Result<()> {
    if batch == 0 {
        return Err(Error::value("cache", "a batch of 0 sequences was asked for, expected 1 or more"));
    }
    Ok(())
}
