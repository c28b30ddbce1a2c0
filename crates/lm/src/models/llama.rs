//! Llama and Qwen2: attention in every layer, followed by a SwiGLU MLP.
//!
//! Source: `llama.py` and `qwen2.py` of mlx-lm; `crates/lm/tests/families.rs` compares with its results.

use super::rotary::{self, Defaults};
use super::{ModelType, keys, multiple_of, size_within};
use crate::formats::config::Config;
use crate::init::VarBuilder;
use crate::nn::attention::{AttentionConfig, Gate, HeadNorm};
use crate::nn::decoder::{
    DecoderConfig, FeedForwardConfig, INIT_STD, LayerConfig, MixerConfig, NormPlace, residual_init_std,
};
use crate::nn::linear::Bias;
use crate::nn::mlp::MlpConfig;
use crate::nn::{Decoder, Rotary};
use alluvium_core::Result;
use alluvium_ops::{Pairs, Rope};
use serde::Deserialize;

/// The hyperparameters of a model, named as in `config.json`. Defaults are those of mlx-lm.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Sizes {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: f32,
    /// Set by [`ModelType::is_tied`].
    #[serde(skip)]
    tied: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    rope_traditional: bool,
    #[serde(default)]
    layer_types: Option<Vec<String>>,
}

/// Which projections of attention have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Biases {
    /// All four where `attention_bias` is true, else none.
    AsSaid,
    /// Those of the input, whatever `attention_bias` says.
    Input,
}

impl Sizes {
    /// Reads a configuration and checks the ranges of its sizes.
    pub(super) fn read(config: &Config, model_type: &ModelType) -> Result<Self> {
        let sizes = Sizes { tied: model_type.is_tied(config)?, ..config.sizes()? };
        let within = |key, size, most| size_within(config, key, size, most);
        keys::refuse_unknown_arithmetic(config)?;
        keys::check_eps(config, sizes.rms_norm_eps)?;
        within("hidden_size", sizes.hidden_size, 1 << 17)?;
        within("intermediate_size", sizes.intermediate_size, 1 << 20)?;
        within("num_hidden_layers", sizes.num_hidden_layers, 1 << 10)?;
        within("num_attention_heads", sizes.num_attention_heads, 1 << 10)?;
        within("num_key_value_heads", sizes.kv_heads(), sizes.num_attention_heads)?;
        within("head_dim", sizes.head(), 1 << 10)?;
        within("vocab_size", sizes.vocab_size, 1 << 24)?;
        let heads = ("num_attention_heads", sizes.num_attention_heads);
        multiple_of(config, heads, ("num_key_value_heads", sizes.kv_heads()))?;
        // `refuse_unknown_arithmetic` accepted the window, so it covers the longest sequence
        let is_full = |kind: &String| matches!(kind.as_str(), "full_attention" | "sliding_attention");
        if let Some(other) = sizes.layer_types.iter().flatten().find(|kind| !is_full(kind)) {
            return Err(
                config.unsupported(format!("a layer of `layer_types` is {other}; full_attention alone is known"))
            );
        }
        Ok(sizes)
    }

    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// The width of an attention head.
    pub(super) fn head(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// A norm of queries and keys with the configuration's eps.
    pub(super) fn head_norm(&self) -> HeadNorm {
        HeadNorm::Rms(self.rms_norm_eps)
    }

    /// The rotary embedding of the heads. Defaults are those of transformers.
    pub(super) fn rotary(&self, config: &Config) -> Result<Rotary> {
        let rotary = rotary::rotary(config, self.head(), Defaults { theta: Some(10_000.0), part: None })?;
        // a key of mlx-lm; checkpoints of transformers are laid out for halves
        let pairs = if self.rope_traditional { Pairs::Neighbours } else { Pairs::Halves };
        Ok(Rotary { rope: Rope { pairs, ..rotary.rope }, ..rotary })
    }

    /// A decoder whose layers are all alike.
    pub(super) fn decoder(&self, rotary: Rotary, norm: HeadNorm, biases: Biases) -> DecoderConfig {
        let bias = |added: bool| if added { Bias::Added } else { Bias::None };
        let residual_init_std = residual_init_std(self.num_hidden_layers);
        let attention = AttentionConfig {
            hidden_size: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.kv_heads(),
            head_dim: self.head(),
            norm,
            gate: Gate::None,
            bias: bias(self.attention_bias || biases == Biases::Input),
            output_bias: bias(self.attention_bias && biases == Biases::AsSaid),
            rotary,
            init_std: INIT_STD,
            residual_init_std,
        };
        let mlp = MlpConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            bias: bias(self.mlp_bias),
            init_std: INIT_STD,
            residual_init_std,
        };
        let layer = LayerConfig {
            mixer: MixerConfig::Attention(attention),
            feed_forward: FeedForwardConfig::Dense(mlp),
            norms: NormPlace::Inputs,
        };
        DecoderConfig {
            prefix: "",
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            eps: self.rms_norm_eps,
            tie_word_embeddings: self.tied,
            layers: vec![layer; self.num_hidden_layers],
        }
    }
}

/// Builds the model; see [`super::build`].
pub(super) fn build(config: &Config, b: VarBuilder, model_type: &ModelType) -> Result<Decoder> {
    let sizes = Sizes::read(config, model_type)?;
    Decoder::build(b, &sizes.decoder(sizes.rotary(config)?, HeadNorm::None, Biases::AsSaid))
}

/// Builds a Qwen2 model: as Llama, with biases of the projections of queries, keys and values.
pub(super) fn build_qwen2(config: &Config, b: VarBuilder, model_type: &ModelType) -> Result<Decoder> {
    let sizes = Sizes::read(config, model_type)?;
    Decoder::build(b, &sizes.decoder(sizes.rotary(config)?, HeadNorm::None, Biases::Input))
}
