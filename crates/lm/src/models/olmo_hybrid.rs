//! OLMo-Hybrid: three Gated DeltaNet layers, whose states may have negative eigenvalues, then an attention layer, each
//! with an MLP. Attention layers normalize results instead of inputs, and all queries and keys together.
//!
//! Source: `olmo_hybrid.py` of mlx-lm; `crates/lm/tests/random_models.rs` compares with its results.

use super::ModelType;
use super::hybrid::{Family, Sizes};
use super::keys::number;
use super::rotary::Defaults;
use super::sanitize::{self, Stored, Transform, WeightMap};
use crate::formats::config::Config;
use crate::init::VarBuilder;
use crate::nn::attention::{Gate, HeadNorm};
use crate::nn::decoder::{LayerConfig, MixerConfig, NormPlace};
use crate::nn::gated_delta_net::Layout;
use crate::nn::{Decoder, Rotary};
use alluvium_core::Result;
use alluvium_ops::{Pairs, Rope, RopeScaling};
use serde_json::Value;

/// Differences from Qwen3-Next that hybrid models share.
const FAMILY: Family = Family {
    prefix: "",
    layout: Layout::Split,
    norm_topk_prob: false,
    rotary: Defaults { theta: Some(10_000.0), part: None },
};

/// Builds the model; see [`super::build`].
pub(super) fn build(config: &Config, b: VarBuilder, _: &ModelType) -> Result<Decoder> {
    let sizes = Sizes::read(config)?;
    sizes.check(config)?;
    let mut decoder = sizes.decoder(&FAMILY, rotary(config, &sizes)?);
    let eps = number(config, config.text(), "layer_norm_epsilon")?.unwrap_or(1e-5) as f32;
    let allow_neg_eigval = match config.text().get("linear_allow_neg_eigval") {
        Some(Value::Bool(allowed)) => *allowed,
        _ => return Err(config.error("`linear_allow_neg_eigval` is missing or neither true nor false")),
    };
    for LayerConfig { mixer, norms, .. } in &mut decoder.layers {
        match mixer {
            MixerConfig::Delta(delta) => (delta.eps, delta.allow_neg_eigval) = (eps, allow_neg_eigval),
            MixerConfig::Attention(attention) => {
                (attention.gate, attention.norm) = (Gate::None, HeadNorm::RmsOfAll(sizes.rms_norm_eps));
                *norms = NormPlace::Results;
            }
        }
    }
    Decoder::build(b, &decoder)
}

/// The rotation of attention; `rope_theta: null` without `rope_parameters` means that there is none.
fn rotary(config: &Config, sizes: &Sizes) -> Result<Rotary> {
    let text = config.text();
    let is_null = |key| text.get(key).is_none_or(Value::is_null);
    if text.contains_key("rope_theta") && is_null("rope_theta") && is_null("rope_parameters") {
        let nothing = Rope { theta: 1.0, dims: 0, scaling: RopeScaling::None, pairs: Pairs::Halves };
        return Ok(nothing.into());
    }
    sizes.rotary(config, &FAMILY)
}

/// Keeps every tensor under its own name; the filters of transformers `[C, 1, K]` become `[C, K, 1]`.
pub(super) fn sanitize(stored: &Stored<'_>, config: &Config, model_type: &ModelType) -> Result<WeightMap> {
    let mut weight_map = super::plain(stored, config, model_type)?;
    for (name, transform) in &mut weight_map {
        if stored.get(name.as_str()).is_some_and(|shape| sanitize::is_foreign_filter(name, *shape)) {
            *transform = Transform::Filter(name.clone());
        }
    }
    Ok(weight_map)
}
