//! What all models here are made of: an embedding, layers that mix tokens and then feed forward, a norm, a projection to words.

use super::attention::AttentionSizes;
use super::gated_delta_net::GatedDeltaNetConfig;
use super::mlp::MlpSizes;
use super::moe::MixtureSizes;
use super::{Ablation, Attention, Embedding, GatedDeltaNet, Linear, Mixture, Mlp, RmsNorm};
use crate::cache::{Cache, CacheShape, LayerCache};
use crate::init::VarBuilder;
use crate::model::{Batch, Checkpointing, LanguageModel};
use crate::parameters::{Parameters, Role, join};
use crate::params;
use crate::weight::Weight;
use alluvium_core::{Error, Result, Tensor, tape};
use alluvium_ops::add;

/// The standard deviation of new weights.
pub const DEVIATION: f64 = 0.02;

/// A decoder: all that its `config.json` makes of it is in the sizes of its parts.
#[derive(Clone, Debug)]
pub struct Decoder {
    prefix: &'static str,
    model: Trunk,
    lm_head: Option<Linear>,
}

/// The sizes of a [`Decoder`].
#[derive(Clone, Debug)]
pub struct DecoderSizes {
    /// What the names of all tensors begin with: `language_model`, or nothing.
    pub prefix: &'static str,
    /// Words.
    pub words: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Added to mean squares.
    pub eps: f32,
    /// Whether the output projection is the embedding.
    pub head: Head,
    /// The layers, first to last.
    pub layers: Vec<LayerSizes>,
}

/// Where the projection to words comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// It is the embedding.
    Tied,
    /// It is `lm_head`.
    Own,
}

/// One layer of a [`Decoder`].
#[derive(Clone, Copy, Debug)]
pub struct LayerSizes {
    /// How tokens are mixed.
    pub mixer: MixerSizes,
    /// What follows.
    pub feed_forward: FeedForwardSizes,
}

/// How a layer mixes tokens.
#[derive(Clone, Copy, Debug)]
pub enum MixerSizes {
    /// By the gated delta rule.
    Delta(GatedDeltaNetConfig),
    /// By softmax attention.
    Attention(AttentionSizes),
}

/// How a layer feeds forward.
#[derive(Clone, Copy, Debug)]
pub enum FeedForwardSizes {
    /// By one MLP for every token.
    Dense(MlpSizes),
    /// By experts that each token chooses.
    Mixture(MixtureSizes),
}

/// The deviation of projections that add to the residual stream: 2 of them a layer, so their sum keeps its size.
pub fn output_deviation(layers: usize) -> f64 {
    DEVIATION / (2.0 * layers as f64).sqrt()
}

#[derive(Clone, Debug)]
struct Trunk {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

params!(Trunk { embed_tokens, layers, norm });

#[derive(Clone, Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    mixer: Mixer,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

params!(Layer { input_layernorm, mixer: "", post_attention_layernorm, mlp });

/// What mixes tokens: `linear_attn` or `self_attn` in a file.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a model has a few hundred at most
pub enum Mixer {
    /// The gated delta rule.
    Delta(GatedDeltaNet),
    /// Softmax attention.
    Attention(Attention),
}

/// What follows the mixer: `mlp` in a file.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a model has a few hundred at most
pub enum FeedForward {
    /// One MLP for every token.
    Dense(Mlp),
    /// Experts that each token chooses.
    Mixture(Mixture),
}

params!(enum Mixer { Delta: "linear_attn", Attention: "self_attn" });

params!(
    enum FeedForward {
        Dense,
        Mixture,
    }
);

impl Parameters for Decoder {
    fn parameters<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor, Role)) {
        let prefix = join(prefix, self.prefix);
        self.model.parameters(&join(&prefix, "model"), f);
        self.lm_head.parameters(&join(&prefix, "lm_head"), f);
    }

    fn parameters_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor, &mut Role)) {
        let prefix = join(prefix, self.prefix);
        self.model.parameters_mut(&join(&prefix, "model"), f);
        self.lm_head.parameters_mut(&join(&prefix, "lm_head"), f);
    }
}

impl Decoder {
    /// From the root of a source.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`](crate::init::WeightSource::tensor).
    pub fn build(mut b: VarBuilder, sizes: &DecoderSizes) -> Result<Self> {
        let table = [sizes.words, sizes.width];
        let mut b = b.pp(sizes.prefix);
        let lm_head = match sizes.head {
            Head::Tied => None,
            Head::Own => Some(Linear::build(b.pp("lm_head"), table, DEVIATION)?),
        };
        let mut b = b.pp("model");
        let embed_tokens = Embedding::build(b.pp("embed_tokens"), table, DEVIATION)?;
        let layer = |(i, layer)| Layer::build(b.pp(&format!("layers.{i}")), layer, sizes);
        let layers = sizes.layers.iter().enumerate().map(layer).collect::<Result<_>>()?;
        let norm = RmsNorm::build(b.pp("norm"), sizes.width, sizes.eps)?;
        let model = Trunk { embed_tokens, layers, norm };
        Ok(Decoder { prefix: sizes.prefix, model, lm_head })
    }

    /// Takes a part out of the Gated DeltaNet layers for an experiment, or puts it back. A checkpoint does not record it.
    pub fn ablate(&mut self, ablation: Ablation) {
        for layer in &mut self.model.layers {
            if let Mixer::Delta(mixer) = &mut layer.mixer {
                mixer.ablate(ablation);
            }
        }
    }
}

impl Layer {
    fn build(mut b: VarBuilder, layer: &LayerSizes, sizes: &DecoderSizes) -> Result<Self> {
        let (width, eps) = (sizes.width, sizes.eps);
        Ok(Layer {
            input_layernorm: RmsNorm::build(b.pp("input_layernorm"), width, eps)?,
            mixer: match &layer.mixer {
                MixerSizes::Delta(sizes) => Mixer::Delta(GatedDeltaNet::build(b.pp("linear_attn"), sizes)?),
                MixerSizes::Attention(sizes) => Mixer::Attention(Attention::build(b.pp("self_attn"), sizes)?),
            },
            post_attention_layernorm: RmsNorm::build(b.pp("post_attention_layernorm"), width, eps)?,
            mlp: match &layer.feed_forward {
                FeedForwardSizes::Dense(sizes) => FeedForward::Dense(Mlp::build(b.pp("mlp"), sizes)?),
                FeedForwardSizes::Mixture(sizes) => FeedForward::Mixture(Mixture::build(b.pp("mlp"), sizes)?),
            },
        })
    }

    fn forward(&self, x: &Tensor, positions: &Tensor, cu_seqlens: Option<&Tensor>) -> Result<Tensor> {
        let normed = self.input_layernorm.forward(x)?;
        let mixed = match &self.mixer {
            Mixer::Delta(mixer) => mixer.forward(&normed, cu_seqlens)?,
            Mixer::Attention(mixer) => mixer.forward(&normed, positions, cu_seqlens)?,
        };
        self.feed_forward(&add(x, &mixed)?)
    }

    fn step(&self, x: &Tensor, positions: &Tensor, cache: &mut LayerCache) -> Result<Tensor> {
        let normed = self.input_layernorm.forward(x)?;
        let mixed = match (&self.mixer, cache) {
            (Mixer::Delta(mixer), LayerCache::Delta(cache)) => mixer.step(&normed, cache)?,
            (Mixer::Attention(mixer), LayerCache::Attention(cache)) => mixer.step(&normed, positions, cache)?,
            _ => return Err(Error::value("step", "the cache was made by another model")),
        };
        self.feed_forward(&add(x, &mixed)?)
    }

    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        let normed = self.post_attention_layernorm.forward(x)?;
        let fed = match &self.mlp {
            FeedForward::Dense(mlp) => mlp.forward(&normed)?,
            FeedForward::Mixture(mixture) => mixture.forward(&normed)?,
        };
        add(x, &fed)
    }

    fn cache_shape(&self) -> CacheShape {
        match &self.mixer {
            Mixer::Delta(mixer) => mixer.cache_shape(),
            Mixer::Attention(mixer) => mixer.cache_shape(),
        }
    }
}

impl LanguageModel for Decoder {
    fn forward(&self, batch: &Batch, checkpointing: Checkpointing) -> Result<Tensor> {
        let Batch { ids, positions, cu_seqlens } = *batch;
        let mut x = self.model.embed_tokens.forward(ids)?;
        for layer in &self.model.layers {
            x = match checkpointing {
                Checkpointing::None => layer.forward(&x, positions, cu_seqlens)?,
                Checkpointing::Layers => {
                    // handles, not copies: what runs again later owns what it needs
                    let (layer, positions, cu_seqlens) = (layer.clone(), positions.clone(), cu_seqlens.cloned());
                    tape::recompute(&x, move |x| layer.forward(x, &positions, cu_seqlens.as_ref()))?
                }
            };
        }
        self.model.norm.forward(&x)
    }

    fn forward_cached(&self, ids: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let positions = cache.positions(ids)?;
        let mut x = self.model.embed_tokens.forward(ids)?;
        for (layer, cache) in self.model.layers.iter().zip(&mut cache.layers) {
            x = layer.step(&x, &positions, cache)?;
        }
        cache.advance(ids.shape()[1]);
        self.model.norm.forward(&x)
    }

    fn lm_head(&self) -> &Weight {
        match &self.lm_head {
            Some(head) => head.weight(),
            None => self.model.embed_tokens.weight(),
        }
    }

    fn cache_shapes(&self) -> Vec<CacheShape> {
        self.model.layers.iter().map(Layer::cache_shape).collect()
    }
}
