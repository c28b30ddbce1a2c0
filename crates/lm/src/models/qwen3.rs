//! Qwen3, dense: as Llama, with a norm of each query and key.
//!
//! Source: `qwen3.py` of mlx-lm; its numbers are this module's test.

use super::llama::Sizes;
use super::{ModelType, rotary};
use crate::formats::config::Config;
use crate::init::VarBuilder;
use crate::nn::Decoder;
use crate::nn::attention::HeadNorm;
use alluvium_core::Result;

/// Builds the model; see [`super::build`].
pub(super) fn build(config: &Config, b: VarBuilder, model_type: &ModelType) -> Result<Decoder> {
    let sizes = Sizes::read(config, model_type)?.without_biases();
    let rope = rotary::rope(config, sizes.head(), None)?;
    rotary::check(config, sizes.eps(), rope.theta)?;
    Decoder::build(b, &sizes.decoder(rope, HeadNorm::Rms(sizes.eps())), config)
}
