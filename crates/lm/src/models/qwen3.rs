//! Qwen3: Llama with RMS norms of queries and keys. The feed-forward part is dense or a mixture of experts.
//!
//! Source: `qwen3.py` and `qwen3_moe.py` of mlx-lm, `modeling_qwen3_moe.py` of transformers.

use super::ModelType;
use super::hybrid::MixtureKeys;
use super::llama::{Biases, Sizes};
use super::sanitize::{self, Stored, WeightMap};
use crate::formats::config::Config;
use crate::init::VarBuilder;
use crate::nn::Decoder;
use crate::nn::decoder::{DecoderConfig, FeedForwardConfig};
use crate::nn::mlp::MlpConfig;
use crate::nn::moe::SparseMoeConfig;
use alluvium_core::Result;

fn sizes(config: &Config, model_type: &ModelType) -> Result<DecoderConfig> {
    let sizes = Sizes::read(config, model_type)?;
    Ok(sizes.decoder(sizes.rotary(config)?, sizes.head_norm(), Biases::AsSaid))
}

/// Builds the dense model; see [`super::build`].
pub(super) fn build(config: &Config, b: VarBuilder, model_type: &ModelType) -> Result<Decoder> {
    Decoder::build(b, &sizes(config, model_type)?)
}

/// Builds the model with experts; see [`super::build`].
pub(super) fn build_moe(config: &Config, b: VarBuilder, model_type: &ModelType) -> Result<Decoder> {
    let mut sizes = sizes(config, model_type)?;
    let keys: MixtureKeys = config.sizes()?;
    for (index, layer) in sizes.layers.iter_mut().enumerate().filter(|(index, _)| keys.has_experts(*index)) {
        if index == 0 || !keys.has_experts(index - 1) {
            keys.check(config)?;
        }
        let FeedForwardConfig::Dense(mlp) = layer.feed_forward else { continue };
        layer.feed_forward = FeedForwardConfig::SparseMoe(SparseMoeConfig {
            num_experts: keys.num_experts.unwrap_or(0),
            top_k: keys.num_experts_per_tok.unwrap_or(0),
            norm_topk_prob: keys.norm_topk_prob == Some(true),
            expert: MlpConfig { intermediate_size: keys.moe_intermediate_size.unwrap_or(0), ..mlp },
            shared: None,
        });
    }
    Decoder::build(b, &sizes)
}

/// Keeps every tensor under its own name and stacks experts.
pub(super) fn sanitize_moe(stored: &Stored<'_>, config: &Config, model_type: &ModelType) -> Result<WeightMap> {
    sanitize::stack_experts(super::plain(stored, config, model_type)?, config)
}
