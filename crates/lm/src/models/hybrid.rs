//! The hybrid architecture of Qwen3-Next and Qwen3.5: Gated DeltaNet layers with a gated attention layer at regular
//! intervals, each followed by an MLP or a mixture of experts.

use super::rotary::{self, Defaults};
use super::{keys, multiple_of, size_within};
use crate::formats::config::Config;
use crate::nn::Rotary;
use crate::nn::attention::{AttentionConfig, Gate, HeadNorm};
use crate::nn::decoder::{
    DecoderConfig, FeedForwardConfig, INIT_STD, LayerConfig, MixerConfig, NormPlace, residual_init_std,
};
use crate::nn::gated_delta_net::GatedDeltaNetConfig;
use crate::nn::gated_delta_net::Layout;
use crate::nn::linear::Bias;
use crate::nn::mlp::MlpConfig;
use crate::nn::moe::SparseMoeConfig;
use alluvium_core::Result;
use serde::{Deserialize, Serialize};

/// The hyperparameters of a hybrid model, named as in `text_config`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between the projections of an MLP; not needed where every layer has experts.
    #[serde(default)]
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Each layer whose number, counted from 1, is a multiple of this is an attention layer, unless `layer_types` is
    /// given. A larger value than `num_hidden_layers` gives a model without attention, which mlx-lm cannot run.
    #[serde(default = "four")]
    pub full_attention_interval: usize,
    /// The type of each layer. `None` means that `full_attention_interval` decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_types: Option<Vec<LayerType>>,
    /// Whether the projections of attention have biases.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attention_bias: bool,
    /// Query heads of attention.
    pub num_attention_heads: usize,
    /// Key and value heads of attention.
    pub num_key_value_heads: usize,
    /// Width of an attention head. 0, the default, means `hidden_size / num_attention_heads`.
    #[serde(default)]
    pub head_dim: usize,
    /// Key heads of the delta rule.
    pub linear_num_key_heads: usize,
    /// Value heads of the delta rule.
    pub linear_num_value_heads: usize,
    /// Width of a key of the delta rule.
    pub linear_key_head_dim: usize,
    /// Width of a value of the delta rule.
    pub linear_value_head_dim: usize,
    /// Kernel size of the causal convolution.
    #[serde(default = "four")]
    pub linear_conv_kernel_dim: usize,
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Longest sequence of the training. Dynamic and YaRN scaling of rotary positions depend on it.
    #[serde(default = "longest")]
    pub max_position_embeddings: usize,
    /// Epsilon of the RMS norms.
    #[serde(default = "eps")]
    pub rms_norm_eps: f32,
    /// Whether the output projection is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Rotary embedding.
    #[serde(default)]
    pub rope_parameters: RopeParameters,
    /// Mixture of experts. It is deserialized separately, so that an error names its key.
    #[serde(flatten, skip_deserializing)]
    pub mixture: MixtureKeys,
}

/// How a layer mixes tokens, as `layer_types` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// Gated DeltaNet.
    LinearAttention,
    /// Softmax attention.
    FullAttention,
}

/// The hyperparameters of a mixture of experts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MixtureKeys {
    /// Experts of a layer. `None` or 0 means that every layer has a dense MLP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_experts: Option<usize>,
    /// Experts per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_experts_per_tok: Option<usize>,
    /// Hidden width of an expert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moe_intermediate_size: Option<usize>,
    /// Hidden width of the shared expert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_expert_intermediate_size: Option<usize>,
    /// Whether the weights of the selected experts are normalized to sum to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_topk_prob: Option<bool>,
    /// Every n-th layer is a mixture of experts. Qwen3.5 ignores it and `mlp_only_layers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_sparse_step: Option<usize>,
    /// Layers that have a dense MLP in any case, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp_only_layers: Option<Vec<usize>>,
}

impl MixtureKeys {
    /// Whether a layer is a mixture of experts.
    pub(super) fn has_experts(&self, layer: usize) -> bool {
        let MixtureKeys { num_experts, decoder_sparse_step, mlp_only_layers, .. } = self;
        num_experts.unwrap_or(0) > 0
            && !mlp_only_layers.iter().flatten().any(|&dense| dense == layer)
            && (layer + 1).is_multiple_of(decoder_sparse_step.unwrap_or(1).max(1))
    }

    /// Checks the ranges of the experts' hyperparameters.
    pub(super) fn check(&self, config: &Config) -> Result<()> {
        let within = |key, size, most| size_within(config, key, size, most);
        let given = |key, size: Option<usize>| size.ok_or_else(|| config.error(format!("missing field `{key}`")));
        let experts = given("num_experts", self.num_experts)?;
        within("num_experts", experts, 1 << 12)?;
        within("num_experts_per_tok", given("num_experts_per_tok", self.num_experts_per_tok)?, experts)?;
        within("moe_intermediate_size", given("moe_intermediate_size", self.moe_intermediate_size)?, 1 << 20)
    }
}

/// The differences between the hybrid families.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    /// The prefix of all parameter names.
    pub(super) prefix: &'static str,
    /// The layout of the input projections of a Gated DeltaNet layer.
    pub(super) layout: Layout,
    /// The default of `norm_topk_prob`.
    pub(super) norm_topk_prob: bool,
    /// The defaults of the rotary embedding.
    pub(super) rotary: Defaults,
}

/// The rotary embedding, named as in `rope_parameters`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeParameters {
    /// The scaling of frequencies. Models made here have `default`; a file may name any scaling that `docs/formats.md`
    /// lists.
    #[serde(default = "default_rope")]
    pub rope_type: String,
    /// The base of the frequencies.
    #[serde(default = "theta")]
    pub rope_theta: f32,
    /// The fraction of a head that is rotated.
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
    /// Reads a configuration. [`Sizes::check`] checks the ranges.
    pub(super) fn read(config: &Config) -> Result<Self> {
        Ok(Sizes { mixture: config.sizes()?, ..config.sizes()? })
    }

    /// The rotary embedding of the attention heads.
    pub(super) fn rotary(&self, config: &Config, family: &Family) -> Result<Rotary> {
        rotary::rotary(config, self.head(), family.rotary)
    }

    pub(super) fn check(&self, config: &Config) -> Result<()> {
        let within = |key, size, most| size_within(config, key, size, most);
        keys::refuse_unknown_arithmetic(config)?;
        keys::check_eps(config, self.rms_norm_eps)?;
        within("hidden_size", self.hidden_size, 1 << 17)?;
        within("num_hidden_layers", self.num_hidden_layers, 1 << 10)?;
        within("full_attention_interval", self.full_attention_interval, 1 << 10)?;
        if let Some(types) = self.layer_types.as_ref().filter(|types| types.len() != self.num_hidden_layers) {
            let layers = self.num_hidden_layers;
            let why = format!("`layer_types` has {} layers, `num_hidden_layers` is {layers}", types.len());
            return Err(config.error(why));
        }
        within("num_attention_heads", self.num_attention_heads, 1 << 10)?;
        within("num_key_value_heads", self.num_key_value_heads, self.num_attention_heads)?;
        within("head_dim", self.head(), 1 << 10)?;
        within("linear_num_key_heads", self.linear_num_key_heads, 1 << 10)?;
        within("linear_num_value_heads", self.linear_num_value_heads, 1 << 10)?;
        within("linear_key_head_dim", self.linear_key_head_dim, 256)?;
        within("linear_value_head_dim", self.linear_value_head_dim, 256)?;
        within("linear_conv_kernel_dim", self.linear_conv_kernel_dim, 64)?;
        within("vocab_size", self.vocab_size, 1 << 24)?;
        multiple_of(
            config,
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
        )?;
        multiple_of(
            config,
            ("linear_num_value_heads", self.linear_num_value_heads),
            ("linear_num_key_heads", self.linear_num_key_heads),
        )?;
        self.check_feed_forward(config)?;
        if self.elements() > (1u64 << 40) as f64 {
            return Err(config.error(format!("it describes {:.3e} parameters, more than 2^40", self.elements())));
        }
        Ok(())
    }

    /// Ignores `decoder_sparse_step` and `mlp_only_layers`: every layer has experts, or none has.
    pub(super) fn alike(mut self) -> Self {
        (self.mixture.decoder_sparse_step, self.mixture.mlp_only_layers) = (None, None);
        self
    }

    fn check_feed_forward(&self, config: &Config) -> Result<()> {
        let within = |key, size, most| size_within(config, key, size, most);
        let sparse = (0..self.num_hidden_layers).filter(|&layer| self.mixture.has_experts(layer)).count();
        if sparse < self.num_hidden_layers {
            within("intermediate_size", self.intermediate_size, 1 << 20)?;
        }
        if sparse == 0 {
            return Ok(());
        }
        self.mixture.check(config)?;
        let shared = self.mixture.shared_expert_intermediate_size;
        let shared = shared.ok_or_else(|| config.error("missing field `shared_expert_intermediate_size`"))?;
        within("shared_expert_intermediate_size", shared, 1 << 20)
    }

    /// The width of an attention head.
    pub(super) fn head(&self) -> usize {
        if self.head_dim == 0 { self.hidden_size / self.num_attention_heads } else { self.head_dim }
    }

    /// The approximate number of parameters.
    fn elements(&self) -> f64 {
        let wide = |n: usize| n as f64;
        let delta = self.delta(Layout::Separate);
        let mixer = wide(delta.channels() + 2 * delta.value_channels());
        let MixtureKeys { num_experts, moe_intermediate_size, .. } = self.mixture;
        let experts = wide(num_experts.unwrap_or(0)) * wide(moe_intermediate_size.unwrap_or(0));
        let layer = mixer + 3.0 * (wide(self.intermediate_size) + experts);
        wide(self.hidden_size) * (wide(self.vocab_size) + wide(self.num_hidden_layers) * layer)
    }

    fn delta(&self, layout: Layout) -> GatedDeltaNetConfig {
        GatedDeltaNetConfig {
            hidden_size: self.hidden_size,
            key_heads: self.linear_num_key_heads,
            value_heads: self.linear_num_value_heads,
            key_dim: self.linear_key_head_dim,
            value_dim: self.linear_value_head_dim,
            kernel_size: self.linear_conv_kernel_dim,
            eps: self.rms_norm_eps,
            init_std: INIT_STD,
            residual_init_std: residual_init_std(self.num_hidden_layers),
            layout,
            allow_neg_eigval: false,
        }
    }

    fn attention(&self, rotary: Rotary) -> AttentionConfig {
        let bias = if self.attention_bias { Bias::Added } else { Bias::None };
        AttentionConfig {
            hidden_size: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head(),
            norm: HeadNorm::Rms(self.rms_norm_eps),
            gate: Gate::Sigmoid,
            bias,
            output_bias: bias,
            rotary,
            init_std: INIT_STD,
            residual_init_std: residual_init_std(self.num_hidden_layers),
        }
    }

    fn mlp(&self, intermediate_size: usize) -> MlpConfig {
        MlpConfig {
            hidden_size: self.hidden_size,
            intermediate_size,
            bias: Bias::None,
            init_std: INIT_STD,
            residual_init_std: residual_init_std(self.num_hidden_layers),
        }
    }

    fn layer_type(&self, layer: usize) -> LayerType {
        match self.layer_types.as_ref().and_then(|types| types.get(layer)) {
            Some(kind) => *kind,
            None if (layer + 1).is_multiple_of(self.full_attention_interval) => LayerType::FullAttention,
            None => LayerType::LinearAttention,
        }
    }

    fn feed_forward(&self, layer: usize, family: &Family) -> FeedForwardConfig {
        if !self.mixture.has_experts(layer) {
            return FeedForwardConfig::Dense(self.mlp(self.intermediate_size));
        }
        let keys = &self.mixture;
        FeedForwardConfig::SparseMoe(SparseMoeConfig {
            num_experts: keys.num_experts.unwrap_or(0),
            top_k: keys.num_experts_per_tok.unwrap_or(0),
            norm_topk_prob: keys.norm_topk_prob.unwrap_or(family.norm_topk_prob),
            expert: self.mlp(keys.moe_intermediate_size.unwrap_or(0)),
            shared: Some(self.mlp(keys.shared_expert_intermediate_size.unwrap_or(0))),
        })
    }

    /// The decoder of these sizes. They must have passed [`Sizes::check`].
    pub(super) fn decoder(&self, family: &Family, rotary: Rotary) -> DecoderConfig {
        let layer = |index: usize| LayerConfig {
            mixer: match self.layer_type(index) {
                LayerType::FullAttention => MixerConfig::Attention(self.attention(rotary)),
                LayerType::LinearAttention => MixerConfig::Delta(self.delta(family.layout)),
            },
            feed_forward: self.feed_forward(index, family),
            norms: NormPlace::Inputs,
        };
        DecoderConfig {
            prefix: family.prefix,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            eps: self.rms_norm_eps,
            tie_word_embeddings: self.tie_word_embeddings,
            layers: (0..self.num_hidden_layers).map(layer).collect(),
        }
    }
}
