//! The trait of language models, for training and generation.

use crate::cache::{Cache, CacheShape};
use crate::parameters::Parameters;
use crate::weight::Weight;
use alluvium_core::{DType, Device, Result, Tensor};
use alluvium_ops::cast;
use std::ops::Deref;
use std::sync::Arc;

/// Tokens for training.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Token ids `[B, T]`, u32.
    pub ids: &'a Tensor,
    /// The position of each token in its own document, `[B, T]`, u32.
    pub positions: &'a Tensor,
    /// The starts of packed documents and the end of the last one, `[N + 1]`, u32, with B = 1. `None` where each row is
    /// one document.
    pub cu_seqlens: Option<&'a Tensor>,
}

/// The activations that a forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpointing {
    /// The activations of every operation: fastest.
    None,
    /// The input of each layer. The backward pass runs the layer again.
    Layers,
}

/// A decoder-only language model.
///
/// Training needs [`forward`](LanguageModel::forward) and [`lm_head`](LanguageModel::lm_head); generation needs
/// [`forward_cached`](LanguageModel::forward_cached) and [`cache_shapes`](LanguageModel::cache_shapes).
pub trait LanguageModel: Parameters + Send + Sync {
    /// Training: hidden states after the final norm, `[B, T, D]`.
    ///
    /// # Errors
    /// When the tensors of the batch do not fit each other, or an id is outside the vocabulary.
    fn forward(&self, batch: &Batch, checkpointing: Checkpointing) -> Result<Tensor>;

    /// Inference: hidden states of new tokens `ids [B, T]` that follow those in `cache`, `[B, T, D]`. The cache takes
    /// them in; call [`Cache::advance`] once all layers have.
    ///
    /// # Errors
    /// As `forward`, and when the cache was made for another batch. The cache cannot be used after an error.
    fn forward_cached(&self, ids: &Tensor, cache: &mut Cache) -> Result<Tensor>;

    /// The output projection `[V, D]`: the embedding where the two are tied. The fused loss multiplies with it in
    /// chunks.
    fn lm_head(&self) -> &Weight;

    /// The cache of each layer for one sequence.
    fn cache_shapes(&self) -> Vec<CacheShape>;

    /// Logits `[.., V]` of hidden states `[.., D]`, f32.
    ///
    /// # Errors
    /// As [`linear`](alluvium_ops::linear).
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.lm_head().linear(&cast(hidden, DType::F32)?)
    }

    /// The dtype of the hidden states. [`set_dtype`](crate::set_dtype) changes that of a built-in model.
    fn dtype(&self) -> DType {
        DType::F32
    }

    /// A second model with the same tensors, which are shared, not copied. Attaching an adapter to it leaves this one
    /// as it is. Built-in models return one; `None` where a model has no such copy.
    fn share(&self) -> Option<Box<dyn LanguageModel>> {
        None
    }

    /// The device of the parameters.
    fn device(&self) -> &Device {
        self.lm_head().device()
    }

    /// An empty cache for `batch` sequences.
    ///
    /// # Errors
    /// When `batch` is 0.
    fn cache(&self, batch: usize) -> Result<Cache> {
        Cache::empty(batch, &self.cache_shapes())
    }
}

/// A model that is borrowed or shared. What is made of a shared one, such as a [`Session`](crate::Session), borrows
/// nothing and can move to another thread.
#[derive(Clone)]
pub enum ModelRef<'m> {
    /// A borrowed model.
    Borrowed(&'m dyn LanguageModel),
    /// A model with several owners.
    Shared(Arc<dyn LanguageModel>),
}

impl std::fmt::Debug for ModelRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, ModelRef::Borrowed(_)) { "borrowed model" } else { "shared model" })
    }
}

impl<'m> Deref for ModelRef<'m> {
    type Target = dyn LanguageModel + 'm;

    fn deref(&self) -> &Self::Target {
        match self {
            ModelRef::Borrowed(model) => *model,
            ModelRef::Shared(model) => model.as_ref(),
        }
    }
}

impl<'m> From<&'m dyn LanguageModel> for ModelRef<'m> {
    fn from(model: &'m dyn LanguageModel) -> Self {
        ModelRef::Borrowed(model)
    }
}

impl<'m, M: LanguageModel> From<&'m M> for ModelRef<'m> {
    fn from(model: &'m M) -> Self {
        ModelRef::Borrowed(model)
    }
}

impl From<Arc<dyn LanguageModel>> for ModelRef<'_> {
    fn from(model: Arc<dyn LanguageModel>) -> Self {
        ModelRef::Shared(model)
    }
}
