//! The decoder of all built-in models: an embedding, layers, a norm and an output projection.

use super::attention::AttentionConfig;
use super::gated_delta_net::GatedDeltaNetConfig;
use super::mlp::MlpConfig;
use super::moe::SparseMoeConfig;
use super::{Ablation, Attention, Embedding, GatedDeltaNet, Linear, Mlp, RmsNorm, SparseMoe};
use crate::cache::{Cache, CacheShape, LayerCache};
use crate::init::VarBuilder;
use crate::model::{Batch, Checkpointing, LanguageModel};
use crate::parameters::{ModuleKind, Parameters, Role, join};
use crate::params;
use crate::weight::Weight;
use alluvium_core::{DType, Error, Result, Tensor, tape};
use alluvium_ops::{AddRmsNorm, add};

/// The standard deviation of random weights.
pub const INIT_STD: f64 = 0.02;

/// A decoder: an embedding, layers of a token mixer and a feed-forward network, a norm and an output projection.
#[derive(Clone, Debug)]
pub struct Decoder {
    prefix: &'static str,
    model: Trunk,
    lm_head: Option<Linear>,
}

/// The sizes of a [`Decoder`] and its layers.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// The prefix of all tensor names: `language_model`, or nothing.
    pub prefix: &'static str,
    /// The number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// The size of the hidden states.
    pub hidden_size: usize,
    /// The epsilon of the norms.
    pub eps: f32,
    /// Whether the embedding is the output projection, too.
    pub tie_word_embeddings: bool,
    /// The layers, first to last.
    pub layers: Vec<LayerConfig>,
}

/// One layer of a [`Decoder`].
#[derive(Clone, Copy, Debug)]
pub struct LayerConfig {
    /// The token mixer.
    pub mixer: MixerConfig,
    /// The feed-forward network.
    pub feed_forward: FeedForwardConfig,
    /// The place of the norms.
    pub norms: NormPlace,
}

/// The place of a layer's two norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    /// Of the inputs of the token mixer and of the feed-forward network.
    Inputs,
    /// Of their results, before these are added to the residual stream.
    Results,
}

/// The sizes of a token mixer.
#[derive(Clone, Copy, Debug)]
pub enum MixerConfig {
    /// Gated DeltaNet.
    Delta(GatedDeltaNetConfig),
    /// Softmax attention.
    Attention(AttentionConfig),
}

/// The sizes of a feed-forward network.
#[derive(Clone, Copy, Debug)]
pub enum FeedForwardConfig {
    /// One MLP for all tokens.
    Dense(MlpConfig),
    /// A mixture of experts.
    SparseMoe(SparseMoeConfig),
}

/// The standard deviation of the random weights of projections that add to the residual stream. Each layer has two of
/// them: the variance of their sum does not grow with the number of layers.
pub fn residual_init_std(layers: usize) -> f64 {
    INIT_STD / (2.0 * layers as f64).sqrt()
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
    input_layernorm: Option<RmsNorm>,
    mixer: Mixer,
    /// Of the feed-forward network's input if there is an `input_layernorm`, else of the mixer's result.
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
    post_feedforward_layernorm: Option<RmsNorm>,
}

params!(Layer { input_layernorm, mixer: "", post_attention_layernorm, mlp, post_feedforward_layernorm });

/// A token mixer: `linear_attn` or `self_attn` in a checkpoint.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a model has a few hundred at most
pub enum Mixer {
    /// Gated DeltaNet.
    Delta(GatedDeltaNet),
    /// Softmax attention.
    Attention(Attention),
}

/// A feed-forward network: `mlp` in a checkpoint.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a model has a few hundred at most
pub enum FeedForward {
    /// One MLP for all tokens.
    Dense(Mlp),
    /// A mixture of experts.
    SparseMoe(SparseMoe),
}

params!(enum Mixer { Delta: "linear_attn", Attention: "self_attn" });

params!(
    enum FeedForward {
        Dense,
        SparseMoe,
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

    fn weights_mut(&mut self, prefix: &str, f: &mut dyn FnMut(&str, ModuleKind, &mut Weight)) {
        let prefix = join(prefix, self.prefix);
        self.model.weights_mut(&join(&prefix, "model"), f);
        self.lm_head.weights_mut(&join(&prefix, "lm_head"), f);
    }
}

impl Decoder {
    /// Builds the decoder from the root of a source.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`](crate::init::WeightSource::tensor).
    pub fn build(mut b: VarBuilder, config: &DecoderConfig) -> Result<Self> {
        let table = [config.vocab_size, config.hidden_size];
        let mut b = b.pp(config.prefix);
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(Linear::build(b.pp("lm_head"), table, INIT_STD)?),
        };
        let mut b = b.pp("model");
        let embed_tokens = Embedding::build(b.pp("embed_tokens"), table, INIT_STD)?;
        let layer = |(i, layer)| Layer::build(b.pp(&format!("layers.{i}")), layer, config);
        let layers = config.layers.iter().enumerate().map(layer).collect::<Result<_>>()?;
        let norm = RmsNorm::build(b.pp("norm"), config.hidden_size, config.eps)?;
        let model = Trunk { embed_tokens, layers, norm };
        Ok(Decoder { prefix: config.prefix, model, lm_head })
    }

    /// Removes a part of the Gated DeltaNet layers for an experiment, or restores it. A checkpoint does not record
    /// this.
    pub fn ablate(&mut self, ablation: Ablation) {
        for layer in &mut self.model.layers {
            if let Mixer::Delta(mixer) = &mut layer.mixer {
                mixer.ablate(ablation);
            }
        }
    }
}

impl Layer {
    fn build(mut b: VarBuilder, layer: &LayerConfig, config: &DecoderConfig) -> Result<Self> {
        let (hidden_size, eps) = (config.hidden_size, config.eps);
        let norm = |b: VarBuilder, place| match layer.norms == place {
            true => RmsNorm::build(b, hidden_size, eps).map(Some),
            false => Ok(None),
        };
        Ok(Layer {
            input_layernorm: norm(b.pp("input_layernorm"), NormPlace::Inputs)?,
            mixer: match &layer.mixer {
                MixerConfig::Delta(config) => Mixer::Delta(GatedDeltaNet::build(b.pp("linear_attn"), config)?),
                MixerConfig::Attention(config) => Mixer::Attention(Attention::build(b.pp("self_attn"), config)?),
            },
            post_attention_layernorm: RmsNorm::build(b.pp("post_attention_layernorm"), hidden_size, eps)?,
            mlp: match &layer.feed_forward {
                FeedForwardConfig::Dense(config) => FeedForward::Dense(Mlp::build(b.pp("mlp"), config)?),
                FeedForwardConfig::SparseMoe(config) => FeedForward::SparseMoe(SparseMoe::build(b.pp("mlp"), config)?),
            },
            post_feedforward_layernorm: norm(b.pp("post_feedforward_layernorm"), NormPlace::Results)?,
        })
    }

    fn forward(&self, x: &Tensor, positions: &Tensor, cu_seqlens: Option<&Tensor>) -> Result<Tensor> {
        let normed = self.mixer_input(x)?;
        let mixed = match &self.mixer {
            Mixer::Delta(mixer) => mixer.forward(&normed, cu_seqlens)?,
            Mixer::Attention(mixer) => mixer.forward(&normed, positions, cu_seqlens)?,
        };
        self.feed_forward(x, &mixed)?.total()
    }

    /// Takes the residual stream and what is to be added to it; so does the next layer, whose norm adds the two.
    fn step(&self, stream: Stream, positions: &Tensor, cache: &mut LayerCache) -> Result<Stream> {
        let (x, normed) = match &self.input_layernorm {
            Some(norm) => stream.normed(norm)?,
            None => {
                let x = stream.total()?;
                (x.clone(), x)
            }
        };
        let mixed = match (&self.mixer, cache) {
            (Mixer::Delta(mixer), LayerCache::Delta(cache)) => mixer.step(&normed, cache)?,
            (Mixer::Attention(mixer), LayerCache::Attention(cache)) => mixer.step(&normed, positions, cache)?,
            _ => return Err(Error::value("step", "the cache was made by another model")),
        };
        self.feed_forward(&x, &mixed)
    }

    fn mixer_input(&self, x: &Tensor) -> Result<Tensor> {
        self.input_layernorm.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
    }

    /// Adds the mixer's result to the residual stream; that of the feed-forward network is still to be added.
    fn feed_forward(&self, x: &Tensor, mixed: &Tensor) -> Result<Stream> {
        let feed = |x: &Tensor| match &self.mlp {
            FeedForward::Dense(mlp) => mlp.forward(x),
            FeedForward::SparseMoe(moe) => moe.forward(x),
        };
        let norm = &self.post_attention_layernorm;
        match &self.post_feedforward_layernorm {
            None => {
                let AddRmsNorm { sum: x, y } = norm.of_sum(x, mixed)?;
                Ok(Stream { x, added: Some(feed(&y)?) })
            }
            Some(last) => {
                let x = add(x, &norm.forward(mixed)?)?;
                let added = last.forward(&feed(&x)?)?;
                Ok(Stream { x, added: Some(added) })
            }
        }
    }

    fn cache_shape(&self) -> CacheShape {
        match &self.mixer {
            Mixer::Delta(mixer) => mixer.cache_shape(),
            Mixer::Attention(mixer) => mixer.cache_shape(),
        }
    }
}

/// The residual stream between two layers.
struct Stream {
    x: Tensor,
    /// What the layer before adds to it.
    added: Option<Tensor>,
}

impl Stream {
    /// The stream with what was to be added, and its norm.
    fn normed(self, norm: &RmsNorm) -> Result<(Tensor, Tensor)> {
        match self.added {
            Some(added) => norm.of_sum(&self.x, &added).map(|AddRmsNorm { sum, y }| (sum, y)),
            None => norm.forward(&self.x).map(|y| (self.x, y)),
        }
    }

    fn total(self) -> Result<Tensor> {
        match self.added {
            Some(added) => add(&self.x, &added),
            None => Ok(self.x),
        }
    }
}

impl LanguageModel for Decoder {
    fn forward(&self, batch: &Batch, checkpointing: Checkpointing) -> Result<Tensor> {
        let Batch { ids, positions, cu_seqlens } = *batch;
        let mut x = self.model.embed_tokens.forward(ids, self.dtype())?;
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
        let mut stream = Stream { x: self.model.embed_tokens.forward(ids, self.dtype())?, added: None };
        for (layer, cache) in self.model.layers.iter().zip(&mut cache.layers) {
            stream = layer.step(stream, &positions, cache)?;
        }
        cache.advance(ids.shape()[1]);
        Ok(stream.normed(&self.model.norm)?.1)
    }

    fn dtype(&self) -> DType {
        self.model.norm.dtype()
    }

    fn share(&self) -> Option<Box<dyn LanguageModel>> {
        Some(Box::new(self.clone()))
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
