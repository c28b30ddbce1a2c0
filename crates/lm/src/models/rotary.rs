//! Rotary positions, as the configurations of several models name them.

use crate::formats::config::Config;
use alluvium_core::Result;
use alluvium_ops::{Pairs, Rope, RopeScaling};
use serde::Deserialize;
use serde_json::Value;

/// The keys that say how frequencies are scaled: `rope_scaling`, or `rope_parameters` in newer files.
#[derive(Clone, Debug, Default, Deserialize)]
struct Scaling {
    /// The older key, and the one that mlx-lm writes: it goes before the newer one.
    #[serde(rename = "type")]
    older_type: Option<String>,
    rope_type: Option<String>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
}

/// Numbers of a head that turn with the position.
pub(super) fn turning(part: f32, head: usize) -> usize {
    (head as f32 * part) as usize
}

/// How far `dims` numbers of a head turn: `rope_theta` at the top or in `rope_parameters`, scaled as the file says.
pub(super) fn rope(config: &Config, dims: usize, default_theta: Option<f32>) -> Result<Rope> {
    let text = config.text();
    let block = |key: &str| text.get(key).and_then(Value::as_object);
    let parameters = block("rope_parameters");
    let theta = text.get("rope_theta").or_else(|| parameters.and_then(|p| p.get("rope_theta")));
    let theta = match theta.filter(|theta| !theta.is_null()) {
        Some(theta) => theta.as_f64().map(|theta| theta as f32),
        None => default_theta,
    };
    let theta = theta.ok_or_else(|| config.wrong("`rope_theta` is missing or not a number"))?;
    let scaling = scaling(config, if block("rope_scaling").is_some() { "rope_scaling" } else { "rope_parameters" })?;
    Ok(Rope { theta, dims, scaling, pairs: Pairs::Halves })
}

/// How frequencies are scaled, by the block of this name.
pub(super) fn scaling(config: &Config, key: &str) -> Result<RopeScaling> {
    let Some(block) = config.text().get(key).and_then(Value::as_object) else { return Ok(RopeScaling::None) };
    let wrong = |why: String| config.wrong(format!("{key}: {why}"));
    let scaling = Scaling::deserialize(Value::Object(block.clone())).map_err(|e| wrong(e.to_string()))?;
    let factor = || scaling.factor.ok_or_else(|| wrong("`factor` is missing".to_owned()));
    match scaling.older_type.as_deref().or(scaling.rope_type.as_deref()) {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: factor()?,
            low: scaling.low_freq_factor.unwrap_or(1.0),
            high: scaling.high_freq_factor.unwrap_or(4.0),
            original: scaling.original_max_position_embeddings.unwrap_or(8192.0),
        }),
        Some(other) => Err(wrong(format!("type `{other}` is not known; known are default, linear and llama3"))),
    }
}

/// Holds numbers that every model has against what can be meant.
pub(super) fn check(config: &Config, eps: f32, theta: f32) -> Result<()> {
    if !(eps.is_finite() && eps >= 0.0) {
        return Err(config.wrong(format!("`rms_norm_eps` is {eps}, expected 0 or more")));
    }
    if !(theta.is_finite() && theta > 0.0) {
        return Err(config.wrong(format!("`rope_theta` is {theta}, expected a number above 0")));
    }
    Ok(())
}

/// Holds the part of a head that turns against what can turn.
pub(super) fn check_part(config: &Config, part: f32, head: usize) -> Result<()> {
    let turning = turning(part, head);
    if !(0.0..=1.0).contains(&part) || turning < 2 || !turning.is_multiple_of(2) {
        let why = format!("`partial_rotary_factor` {part} turns {turning} of `head_dim` = {head}");
        return Err(config.wrong(format!("{why}, expected an even number of at least 2")));
    }
    Ok(())
}
