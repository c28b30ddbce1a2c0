//! The cache of a model: recurrent and convolution states, keys and values.

mod attention;
mod file;
mod recurrent;
mod snapshot;

pub(crate) use attention::KvBuffer;
pub use attention::{AttentionCache, KvView};
pub use file::{load_prompt_cache, save_prompt_cache};
pub use recurrent::DeltaCache;
pub use snapshot::Snapshot;

use alluvium_core::{DType, Error, Result, Shape, Tensor};
use alluvium_ops::concat;

/// The cache of a model for a batch of sequences, one part per layer. Each sequence has its own position and its own
/// keys, so sequences of different lengths are not padded.
#[derive(Clone, Debug)]
pub struct Cache {
    /// One per layer, in order.
    pub layers: Vec<LayerCache>,
    /// The number of tokens that each sequence has read, which is the position of its next one.
    offsets: Vec<usize>,
}

/// The cache of one layer.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a layer, and most are the large one")]
pub enum LayerCache {
    /// Of a linear layer: its size does not depend on the number of tokens.
    Delta(DeltaCache),
    /// Of an attention layer: the keys and values of every token.
    Attention(AttentionCache),
}

impl LayerCache {
    /// The cache of a linear layer.
    ///
    /// # Errors
    /// When it is one of an attention layer.
    pub fn delta(&mut self) -> Result<&mut DeltaCache> {
        match self {
            LayerCache::Delta(cache) => Ok(cache),
            LayerCache::Attention(_) => {
                Err(Error::value("cache", "it is an attention layer's, expected a linear layer's"))
            }
        }
    }

    /// The cache of an attention layer.
    ///
    /// # Errors
    /// When it is one of a linear layer.
    pub fn attention(&mut self) -> Result<&mut AttentionCache> {
        match self {
            LayerCache::Attention(cache) => Ok(cache),
            LayerCache::Delta(_) => Err(Error::value("cache", "it is a linear layer's, expected an attention layer's")),
        }
    }
}

/// The shapes of the cache of one layer for one sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CacheShape {
    /// Of a linear layer.
    Delta {
        /// `[1, K-1, C]`; none where the convolution has one tap.
        conv_state: Option<Shape>,
        /// `[1, G, V, K]`.
        recurrent_state: Shape,
    },
    /// Of an attention layer: keys and values of every token.
    Attention {
        /// The number of key and value heads.
        kv_heads: usize,
        /// The size of a head.
        head_dim: usize,
    },
}

impl CacheShape {
    /// The bytes of the cache of one sequence of `tokens` tokens in a model that computes in `dtype`.
    pub fn bytes(&self, tokens: usize, dtype: DType) -> usize {
        match self {
            CacheShape::Delta { conv_state, recurrent_state } => {
                let window = conv_state.as_ref().map_or(0, Shape::elements).saturating_mul(dtype.size());
                recurrent_state.elements().saturating_mul(size_of::<f32>()).saturating_add(window)
            }
            CacheShape::Attention { kv_heads, head_dim } => {
                [*kv_heads, *head_dim, tokens, dtype.size()].into_iter().fold(2, usize::saturating_mul)
            }
        }
    }
}

impl Cache {
    /// An empty cache for `batch` sequences.
    pub fn new(batch: usize, layers: Vec<LayerCache>) -> Self {
        Cache { layers, offsets: vec![0; batch] }
    }

    /// An empty cache for `batch` sequences of a model whose layers have these shapes.
    ///
    /// # Errors
    /// When `batch` is 0.
    pub fn empty(batch: usize, shapes: &[CacheShape]) -> Result<Self> {
        if batch == 0 {
            return Err(Error::value("cache", "a batch of 0 sequences was asked for, expected 1 or more"));
        }
        let layer = |shape: &CacheShape| match shape {
            CacheShape::Delta { .. } => LayerCache::Delta(DeltaCache::default()),
            CacheShape::Attention { .. } => LayerCache::Attention(AttentionCache::default()),
        };
        Ok(Cache::new(batch, shapes.iter().map(layer).collect()))
    }

    pub(crate) fn at(offset: usize, layers: Vec<LayerCache>) -> Self {
        Cache { layers, offsets: vec![offset] }
    }

    /// Tokens that each sequence has read.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Tokens that the first sequence has read.
    pub fn offset(&self) -> usize {
        self.offsets.first().copied().unwrap_or(0)
    }

    /// Moves the position of every sequence by `tokens`, once all layers have taken them in.
    pub fn advance(&mut self, tokens: usize) {
        self.offsets.iter_mut().for_each(|offset| *offset += tokens);
    }

    /// The positions of the next `tokens` tokens, `[B, T]`, once `ids` is known to be `[B, T]`.
    ///
    /// # Errors
    /// When `ids` has another batch.
    pub fn positions(&self, ids: &Tensor) -> Result<Tensor> {
        let &[batch, tokens] = ids.shape().dims() else {
            return Err(Error::value("step", format!("`ids` is {}, expected [B, T]", ids.shape())));
        };
        if batch != self.offsets.len() {
            let why = format!("`ids` has {batch} sequences, the cache was made for {}", self.offsets.len());
            return Err(Error::value("step", why));
        }
        let first = |offset: usize| u32::try_from(offset).map_err(|_| Error::value("step", "positions end at 2^32"));
        if let ([offset], 1) = (&self.offsets[..], tokens) {
            return Tensor::from_slice(&[first(*offset)?], [1, 1], ids.device());
        }
        let mut positions = Vec::with_capacity(batch * tokens);
        for &offset in &self.offsets {
            let first = first(offset)?;
            positions.extend(first..first.saturating_add(tokens as u32));
        }
        Tensor::from_slice(&positions, [batch, tokens], ids.device())
    }

    /// Merges several caches into one, whose sequences step together from then on.
    ///
    /// # Errors
    /// When they are of different models, or one has read nothing.
    pub fn merge(caches: Vec<Cache>) -> Result<Self> {
        let differ = || Error::value("cache", "caches of different models, or one that is empty, cannot be merged");
        let offsets: Vec<usize> = caches.iter().flat_map(|cache| cache.offsets.iter().copied()).collect();
        let mut parts: Vec<Vec<LayerCache>> = Vec::new();
        for cache in caches {
            parts.resize_with(parts.len().max(cache.layers.len()), Vec::new);
            parts.iter_mut().zip(cache.layers).for_each(|(part, layer)| part.push(layer));
        }
        let one = |part: Vec<LayerCache>| match part.first() {
            Some(LayerCache::Attention(_)) => {
                let sequences = part.into_iter().map(|layer| match layer {
                    LayerCache::Attention(cache) => Ok(cache.sequences),
                    LayerCache::Delta(_) => Err(differ()),
                });
                let sequences = sequences.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
                Ok(LayerCache::Attention(AttentionCache { sequences }))
            }
            _ => {
                let parts = part.iter().map(|layer| match layer {
                    LayerCache::Delta(DeltaCache { conv_state, recurrent_state: Some(state) }) => {
                        Ok((conv_state.as_ref(), state))
                    }
                    _ => Err(differ()),
                });
                let (conv_states, states): (Vec<_>, Vec<_>) = parts.collect::<Result<Vec<_>>>()?.into_iter().unzip();
                let conv_states: Option<Vec<&Tensor>> = conv_states.into_iter().collect();
                let conv_state = conv_states.map(|conv_states| concat(&conv_states, 0)).transpose()?;
                Ok(LayerCache::Delta(DeltaCache { conv_state, recurrent_state: Some(concat(&states, 0)?) }))
            }
        };
        Ok(Cache { layers: parts.into_iter().map(one).collect::<Result<_>>()?, offsets })
    }

    /// Keeps the sequences at these places of the batch, in this order.
    ///
    /// # Errors
    /// When a place is not in the batch.
    pub fn select(&mut self, places: &[usize]) -> Result<()> {
        if let Some(place) = places.iter().find(|&&place| place >= self.offsets.len()) {
            return Err(Error::value("cache", format!("sequence {place} is not among {}", self.offsets.len())));
        }
        self.offsets = places.iter().map(|&place| self.offsets[place]).collect();
        let kept = |x: &Tensor| {
            let rows = places.iter().map(|&place| x.rows(place, 1)).collect::<Result<Vec<_>>>()?;
            concat(&rows.iter().collect::<Vec<_>>(), 0)
        };
        for layer in &mut self.layers {
            match layer {
                LayerCache::Attention(cache) if cache.sequences.is_empty() => {}
                LayerCache::Attention(cache) => {
                    cache.sequences = places.iter().map(|&place| cache.sequences[place].clone()).collect();
                }
                LayerCache::Delta(cache) => {
                    cache.conv_state = cache.conv_state.as_ref().map(kept).transpose()?;
                    cache.recurrent_state = cache.recurrent_state.as_ref().map(kept).transpose()?;
                }
            }
        }
        Ok(())
    }

    /// Whether all of it can forget its last tokens: it has no recurrent state.
    pub fn is_trimmable(&self) -> bool {
        self.layers.iter().all(|layer| matches!(layer, LayerCache::Attention(_)))
    }

    /// Forgets all but the first `tokens` of a single sequence, where [`Cache::is_trimmable`].
    pub(crate) fn trim_to(&mut self, tokens: usize) {
        for layer in &mut self.layers {
            if let LayerCache::Attention(cache) = layer {
                cache.sequences.iter_mut().for_each(|sequence| sequence.len = sequence.len.min(tokens));
            }
        }
        self.offsets.iter_mut().for_each(|offset| *offset = tokens.min(*offset));
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        let size = |x: &Option<Tensor>| x.as_ref().map_or(0, |x| x.elements() * x.dtype().size());
        let layer = |layer: &LayerCache| match layer {
            LayerCache::Delta(cache) => size(&cache.conv_state) + size(&cache.recurrent_state),
            LayerCache::Attention(cache) => cache.sequences.iter().map(|s| size(&s.keys) + size(&s.values)).sum(),
        };
        self.layers.iter().map(layer).sum()
    }
}
