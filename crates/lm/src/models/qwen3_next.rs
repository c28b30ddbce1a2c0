//! Qwen3-Next: three Gated DeltaNet layers, then a gated attention layer, each with a mixture of experts.
//!
//! Source: `qwen3_next.py` of mlx-lm; `crates/lm/tests/families.rs` compares with its results.

use super::ModelType;
use super::hybrid::{Family, Sizes};
use super::rotary::Defaults;
use super::sanitize::{self, Stored, WeightMap};
use crate::formats::config::Config;
use crate::init::VarBuilder;
use crate::nn::Decoder;
use crate::nn::gated_delta_net::Layout;
use alluvium_core::Result;

/// Differences from Qwen3.5.
const FAMILY: Family = Family {
    prefix: "",
    layout: Layout::Merged,
    norm_topk_prob: false,
    rotary: Defaults { theta: Some(10_000.0), part: Some(0.25) },
};

/// Builds the model; see [`super::build`].
pub(super) fn build(config: &Config, b: VarBuilder, _: &ModelType) -> Result<Decoder> {
    let sizes = Sizes::read(config)?;
    sizes.check(config)?;
    Decoder::build(b, &sizes.decoder(&FAMILY, sizes.rotary(config, &FAMILY)?))
}

/// Keeps every tensor under its own name, except the layers for multi-token prediction.
pub(super) fn sanitize(stored: &Stored<'_>, config: &Config, model_type: &ModelType) -> Result<WeightMap> {
    let is_tied = model_type.is_tied(config)?;
    sanitize::hybrid(stored, config, |name| {
        let is_left_out = name.contains("mtp.") || (is_tied && name.starts_with("lm_head."));
        (!is_left_out).then(|| name.to_owned())
    })
}
