//! Qwen3.5, dense: three Gated DeltaNet layers, then one of gated attention, each with a SwiGLU.
//!
//! Source: `qwen3_5.py` of mlx-lm; its numbers are this module's test.

use super::{Batch, Keep, LanguageModel, batch_of_at_least_one, size_within};
use crate::cache::{AttentionCache, Cache, DeltaCache, LayerCache};
use crate::formats::config::Config;
use crate::nn::attention::AttentionSizes;
use crate::nn::build::{Builder, Init};
use crate::nn::gated_delta_net::DeltaSizes;
use crate::nn::mlp::MlpSizes;
use crate::nn::{Ablation, GatedAttention, GatedDeltaNet, Linear, Mlp, RmsNorm};
use crate::params;
use alluvium_core::{Result, Tensor, tape};
use alluvium_ops::{Rope, add, embedding};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The sizes of a model, by the keys of `text_config`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between the projections of an MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Every this many layers one attends with softmax. With more than there are layers none does; mlx-lm runs
    /// only models that have at least this many.
    #[serde(default = "four")]
    pub full_attention_interval: usize,
    /// Query heads of attention.
    pub num_attention_heads: usize,
    /// Key and value heads of attention.
    pub num_key_value_heads: usize,
    /// Width of an attention head.
    pub head_dim: usize,
    /// Key heads of the delta rule.
    pub linear_num_key_heads: usize,
    /// Value heads of the delta rule.
    pub linear_num_value_heads: usize,
    /// Width of a key of the delta rule.
    pub linear_key_head_dim: usize,
    /// Width of a value of the delta rule.
    pub linear_value_head_dim: usize,
    /// Taps of the convolution.
    #[serde(default = "four")]
    pub linear_conv_kernel_dim: usize,
    /// Words.
    pub vocab_size: usize,
    /// Tokens that a text may have; nothing here depends on it.
    #[serde(default = "longest")]
    pub max_position_embeddings: usize,
    /// Added to mean squares.
    #[serde(default = "eps")]
    pub rms_norm_eps: f32,
    /// Whether the output projection is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Rotary positions.
    #[serde(default)]
    pub rope_parameters: RopeParameters,
}

/// Rotary positions, by the keys of `rope_parameters`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeParameters {
    /// Only `default` is known.
    #[serde(default = "default_rope")]
    pub rope_type: String,
    /// The base of the wavelengths.
    #[serde(default = "theta")]
    pub rope_theta: f32,
    /// The part of a head that turns.
    #[serde(default = "quarter")]
    pub partial_rotary_factor: f32,
}

impl Default for RopeParameters {
    fn default() -> Self {
        RopeParameters { rope_type: default_rope(), rope_theta: theta(), partial_rotary_factor: quarter() }
    }
}

fn four() -> usize {
    4
}
fn longest() -> usize {
    32_768
}
fn eps() -> f32 {
    1e-6
}
fn default_rope() -> String {
    "default".to_owned()
}
fn theta() -> f32 {
    100_000.0
}
fn quarter() -> f32 {
    0.25
}

impl Sizes {
    /// A `config.json` of these sizes, as mlx-lm and transformers read it.
    ///
    /// # Errors
    /// When the sizes are out of range.
    pub fn config(&self, eos_token_id: u32) -> Result<Config> {
        let mut text = json!(self);
        text["model_type"] = "qwen3_5_text".into();
        let config = Config::new(json!({
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "eos_token_id": eos_token_id,
            "model_type": "qwen3_5",
            "text_config": text,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": "float32",
        }))?;
        self.check(&config)?;
        Ok(config)
    }

    fn check(&self, config: &Config) -> Result<()> {
        let within = |key, size, most| size_within(config, key, size, most);
        within("hidden_size", self.hidden_size, 1 << 17)?;
        within("intermediate_size", self.intermediate_size, 1 << 20)?;
        within("num_hidden_layers", self.num_hidden_layers, 1 << 10)?;
        within("full_attention_interval", self.full_attention_interval, 1 << 10)?;
        within("num_attention_heads", self.num_attention_heads, 1 << 10)?;
        within("num_key_value_heads", self.num_key_value_heads, self.num_attention_heads)?;
        within("head_dim", self.head_dim, 1 << 10)?;
        within("linear_num_key_heads", self.linear_num_key_heads, 1 << 10)?;
        within("linear_num_value_heads", self.linear_num_value_heads, 1 << 10)?;
        within("linear_key_head_dim", self.linear_key_head_dim, 256)?;
        within("linear_value_head_dim", self.linear_value_head_dim, 256)?;
        within("linear_conv_kernel_dim", self.linear_conv_kernel_dim, 64)?;
        within("vocab_size", self.vocab_size, 1 << 24)?;
        for [(many, heads), (few, groups)] in [
            [("num_attention_heads", self.num_attention_heads), ("num_key_value_heads", self.num_key_value_heads)],
            [
                ("linear_num_value_heads", self.linear_num_value_heads),
                ("linear_num_key_heads", self.linear_num_key_heads),
            ],
        ] {
            if heads % groups != 0 {
                return Err(config.wrong(format!("`{many}` is {heads}, expected a multiple of `{few}` = {groups}")));
            }
        }
        self.check_numbers(config)
    }

    fn check_numbers(&self, config: &Config) -> Result<()> {
        let RopeParameters { rope_type, rope_theta, partial_rotary_factor } = &self.rope_parameters;
        if rope_type != "default" {
            return Err(config.wrong(format!("rope_type `{rope_type}` is not known; known is default")));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(config.wrong(format!("`rms_norm_eps` is {}, expected 0 or more", self.rms_norm_eps)));
        }
        if !(rope_theta.is_finite() && *rope_theta > 0.0) {
            return Err(config.wrong(format!("`rope_theta` is {rope_theta}, expected a number above 0")));
        }
        let turning = self.turning();
        if !(0.0..=1.0).contains(partial_rotary_factor) || turning < 2 || !turning.is_multiple_of(2) {
            let why = format!(
                "`partial_rotary_factor` {partial_rotary_factor} turns {turning} of `head_dim` = {}",
                self.head_dim
            );
            return Err(config.wrong(format!("{why}, expected an even number of at least 2")));
        }
        if self.elements() > 1 << 40 {
            return Err(config.wrong(format!("it describes {} parameters, more than 2^40", self.elements())));
        }
        Ok(())
    }

    /// Numbers of a head that turn with the position.
    fn turning(&self) -> usize {
        (self.head_dim as f32 * self.rope_parameters.partial_rotary_factor) as usize
    }

    /// The number of parameters in large matrices: sizes are small enough here that nothing overflows.
    fn elements(&self) -> usize {
        let delta = self.delta();
        let mixer = self.hidden_size * (delta.channels() + 2 * delta.values());
        self.vocab_size * self.hidden_size
            + self.num_hidden_layers * (mixer + 3 * self.hidden_size * self.intermediate_size)
    }

    /// The deviation of projections that add to the residual stream: 2 of them a layer, so their sum keeps its size.
    fn output_deviation(&self) -> f64 {
        DEVIATION / (2.0 * self.num_hidden_layers as f64).sqrt()
    }

    fn delta(&self) -> DeltaSizes {
        DeltaSizes {
            width: self.hidden_size,
            key_heads: self.linear_num_key_heads,
            value_heads: self.linear_num_value_heads,
            key: self.linear_key_head_dim,
            value: self.linear_value_head_dim,
            taps: self.linear_conv_kernel_dim,
            eps: self.rms_norm_eps,
            deviation: DEVIATION,
            output_deviation: self.output_deviation(),
        }
    }

    fn attention(&self) -> AttentionSizes {
        AttentionSizes {
            width: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head: self.head_dim,
            eps: self.rms_norm_eps,
            rope: Rope { theta: self.rope_parameters.rope_theta, dims: self.turning() },
            deviation: DEVIATION,
            output_deviation: self.output_deviation(),
        }
    }

    fn mlp(&self) -> MlpSizes {
        MlpSizes {
            width: self.hidden_size,
            hidden: self.intermediate_size,
            deviation: DEVIATION,
            output_deviation: self.output_deviation(),
        }
    }

    fn is_linear(&self, layer: usize) -> bool {
        !(layer + 1).is_multiple_of(self.full_attention_interval)
    }
}

/// Of new weights.
const DEVIATION: f64 = 0.02;

/// The model. In a checkpoint all of it is called `language_model`.
#[derive(Clone, Debug)]
struct Model {
    language_model: Language,
    config: Config,
}

params!(Model { language_model });

#[derive(Clone, Debug)]
struct Language {
    model: Trunk,
    lm_head: Option<Linear>,
}

params!(Language { model, lm_head });

#[derive(Clone, Debug)]
struct Trunk {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

params!(Trunk { embed_tokens, layers, norm });

#[derive(Clone, Debug)]
struct Embedding {
    weight: Tensor,
}

params!(Embedding { weight });

#[derive(Clone, Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    linear_attn: Option<GatedDeltaNet>,
    self_attn: Option<GatedAttention>,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

params!(Layer { input_layernorm, linear_attn, self_attn, post_attention_layernorm, mlp });

/// Builds the model; see [`super::build`].
pub(super) fn build(config: &Config, mut b: Builder) -> Result<Box<dyn LanguageModel>> {
    let sizes: Sizes = config.sizes()?;
    sizes.check(config)?;
    let mut b = b.at("language_model");
    let lm_head = match sizes.tie_word_embeddings {
        true => None,
        false => Some(Linear::build(b.at("lm_head"), [sizes.vocab_size, sizes.hidden_size], DEVIATION)?),
    };
    let mut b = b.at("model");
    let table = [sizes.vocab_size, sizes.hidden_size];
    let embed_tokens = Embedding { weight: b.at("embed_tokens").tensor("weight", table, Init::Normal(DEVIATION))? };
    let layers = (0..sizes.num_hidden_layers)
        .map(|i| Layer::build(b.at(&format!("layers.{i}")), &sizes, i))
        .collect::<Result<_>>()?;
    let norm = RmsNorm::build(b.at("norm"), sizes.hidden_size, sizes.rms_norm_eps)?;
    let language_model = Language { model: Trunk { embed_tokens, layers, norm }, lm_head };
    Ok(Box::new(Model { language_model, config: config.clone() }))
}

impl Layer {
    fn build(mut b: Builder, sizes: &Sizes, index: usize) -> Result<Self> {
        let (width, eps) = (sizes.hidden_size, sizes.rms_norm_eps);
        let (linear_attn, self_attn) = match sizes.is_linear(index) {
            true => (Some(GatedDeltaNet::build(b.at("linear_attn"), &sizes.delta())?), None),
            false => (None, Some(GatedAttention::build(b.at("self_attn"), &sizes.attention())?)),
        };
        Ok(Layer {
            input_layernorm: RmsNorm::build(b.at("input_layernorm"), width, eps)?,
            linear_attn,
            self_attn,
            post_attention_layernorm: RmsNorm::build(b.at("post_attention_layernorm"), width, eps)?,
            mlp: Mlp::build(b.at("mlp"), &sizes.mlp())?,
        })
    }

    fn forward(&self, x: &Tensor, positions: &Tensor, cu_seqlens: Option<&Tensor>) -> Result<Tensor> {
        let normed = self.input_layernorm.forward(x)?;
        let mixed = match (&self.linear_attn, &self.self_attn) {
            (Some(mixer), _) => mixer.forward(&normed, cu_seqlens)?,
            (None, Some(mixer)) => mixer.forward(&normed, positions, cu_seqlens)?,
            (None, None) => normed,
        };
        self.feed_forward(&add(x, &mixed)?)
    }

    fn step(&self, x: &Tensor, positions: &Tensor, cache: &mut LayerCache) -> Result<Tensor> {
        let normed = self.input_layernorm.forward(x)?;
        let mixed = match (&self.linear_attn, &self.self_attn, cache) {
            (Some(mixer), _, LayerCache::Delta(cache)) => mixer.step(&normed, cache)?,
            (_, Some(mixer), LayerCache::Attention(cache)) => mixer.step(&normed, positions, cache)?,
            _ => return Err(alluvium_core::Error::value("step", "the cache was made by another model")),
        };
        self.feed_forward(&add(x, &mixed)?)
    }

    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        add(x, &self.mlp.forward(&self.post_attention_layernorm.forward(x)?)?)
    }

    fn cache(&self) -> LayerCache {
        match self.linear_attn {
            Some(_) => LayerCache::Delta(DeltaCache::default()),
            None => LayerCache::Attention(AttentionCache::default()),
        }
    }
}

impl LanguageModel for Model {
    fn config(&self) -> &Config {
        &self.config
    }

    fn hidden(&self, batch: &Batch, keep: Keep) -> Result<Tensor> {
        let Batch { ids, positions, cu_seqlens } = *batch;
        let trunk = &self.language_model.model;
        let mut x = embedding(&trunk.embed_tokens.weight, ids)?;
        for layer in &trunk.layers {
            x = match keep {
                Keep::Activations => layer.forward(&x, positions, cu_seqlens)?,
                Keep::Inputs => {
                    // handles, not copies: what runs again later owns what it needs
                    let (layer, positions, cu_seqlens) = (layer.clone(), positions.clone(), cu_seqlens.cloned());
                    tape::recompute(&x, move |x| layer.forward(x, &positions, cu_seqlens.as_ref()))?
                }
            };
        }
        trunk.norm.forward(&x)
    }

    fn step(&self, ids: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let trunk = &self.language_model.model;
        let positions = cache.positions(ids)?;
        let mut x = embedding(&trunk.embed_tokens.weight, ids)?;
        for (layer, cache) in trunk.layers.iter().zip(&mut cache.layers) {
            x = layer.step(&x, &positions, cache)?;
        }
        cache.offset += ids.shape()[1];
        trunk.norm.forward(&x)
    }

    fn head(&self) -> &Tensor {
        match &self.language_model.lm_head {
            Some(head) => head.weight(),
            None => &self.language_model.model.embed_tokens.weight,
        }
    }

    fn cache(&self, batch: usize) -> Result<Cache> {
        batch_of_at_least_one(batch)?;
        Ok(Cache::new(batch, self.language_model.model.layers.iter().map(Layer::cache).collect()))
    }

    fn ablate(&mut self, ablation: Ablation) {
        self.language_model.model.layers.iter_mut().filter_map(|l| l.linear_attn.as_mut()).for_each(|mixer| {
            mixer.ablate(ablation);
        });
    }
}
