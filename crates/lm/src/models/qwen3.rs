//! Qwen3, dense: as Llama, with a norm of each query and key.
//!
//! Source: `qwen3.py` of mlx-lm; its numbers are this module's test.

use super::llama::Sizes;
use super::{LanguageModel, rotary};
use crate::formats::config::Config;
use crate::nn::attention::HeadNorm;
use crate::nn::{Builder, Decoder};
use alluvium_core::Result;

/// Builds the model; see [`super::build`].
pub(super) fn build(config: &Config, b: Builder) -> Result<Box<dyn LanguageModel>> {
    let sizes = Sizes::read(config)?.without_biases();
    let rope = rotary::rope(config, sizes.head(), None)?;
    rotary::check(config, sizes.eps(), rope.theta)?;
    Ok(Box::new(Decoder::build(b, &sizes.decoder(rope, HeadNorm::Rms(sizes.eps())), config)?))
}
