//! Reads the rotary embedding of a configuration.

use super::keys::{number, text_of};
use crate::formats::config::Config;
use crate::nn::Rotary;
use crate::nn::rotary::DynamicNtk;
use alluvium_core::Result;
use alluvium_ops::{Pairs, Rope, RopeScaling};
use serde_json::{Map, Value};

/// The defaults of a model type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    /// Default of `rope_theta`; `None` means that the key is required.
    pub(super) theta: Option<f64>,
    /// Default of `partial_rotary_factor`; `None` means that this type rotates whole heads and any other value is
    /// refused.
    pub(super) part: Option<f64>,
}

/// The rotary embedding of heads of width `head`. `rope_theta` and `partial_rotary_factor` are read from the top level
/// or from `rope_parameters`, the scaling from `rope_scaling` or `rope_parameters`.
///
/// # Errors
/// When a key has different values in the two places, is missing or out of range, or the scaling type is unknown.
pub(super) fn rotary(config: &Config, head: usize, defaults: Defaults) -> Result<Rotary> {
    let theta = either(config, "rope_theta")?.or(defaults.theta);
    let theta = theta.ok_or_else(|| config.error("`rope_theta` is missing or not a number"))?;
    if !(theta.is_finite() && theta > 0.0) {
        return Err(config.error(format!("`rope_theta` is {theta}, expected a number above 0")));
    }
    let part = either(config, "partial_rotary_factor")?;
    let part = match (part, defaults.part) {
        (Some(part), None) if part != 1.0 => {
            let why = format!("`partial_rotary_factor` is {part}; this type of model rotates whole heads, expected 1");
            return Err(config.error(why));
        }
        (part, default) => part.or(default).unwrap_or(1.0),
    };
    let dims = (head as f64 * part) as usize;
    if !(0.0..=1.0).contains(&part) || dims < 2 || !dims.is_multiple_of(2) {
        let why = format!("`partial_rotary_factor` {part} rotates {dims} of `head_dim` = {head}");
        return Err(config.error(format!("{why}, expected an even number of at least 2")));
    }
    let rope = Rope { theta: theta as f32, dims, scaling: RopeScaling::None, pairs: Pairs::Halves };
    scaled(config, rope)
}

/// A number of the top level or of `rope_parameters`.
fn either(config: &Config, key: &str) -> Result<Option<f64>> {
    let outer = number(config, config.text(), key)?;
    let inner = match block(config, "rope_parameters") {
        Some(block) => number(config, block, key)?,
        None => None,
    };
    match (outer, inner) {
        (Some(outer), Some(inner)) if outer != inner => {
            let why = format!("`{key}` is {outer}, but {inner} in `rope_parameters`; keep the one that the model was");
            Err(config.error(format!("{why} trained with")))
        }
        (outer, inner) => Ok(inner.or(outer)),
    }
}

fn block<'a>(config: &'a Config, key: &str) -> Option<&'a Map<String, Value>> {
    config.text().get(key).and_then(Value::as_object)
}

/// Adds the scaling of the configuration to a rotation.
fn scaled(config: &Config, rope: Rope) -> Result<Rotary> {
    let name = if block(config, "rope_scaling").is_some() { "rope_scaling" } else { "rope_parameters" };
    let Some(keys) = block(config, name) else { return Ok(rope.into()) };
    let wrong = |why: String| config.error(format!("{name}: {why}"));
    if let Some((key, _)) = keys.iter().find(|(_, value)| value.is_object()) {
        let why = format!("{name}: `{key}` is an object; a rotation for each type of layer is not supported");
        return Err(config.unsupported(why));
    }
    let get = |key: &str| number(config, keys, key);
    let or = |key: &str, default: f64| Ok::<_, alluvium_core::Error>(get(key)?.unwrap_or(default) as f32);
    let needed = |key: &str| get(key)?.ok_or_else(|| wrong(format!("`{key}` is missing")));
    // `type` is the older key, which mlx-lm writes and reads first
    let kind = match keys.get("type").filter(|kind| !kind.is_null()) {
        Some(_) => text_of(config, keys, "type")?,
        None => text_of(config, keys, "rope_type")?,
    };
    let longest = || number(config, config.text(), "max_position_embeddings");
    let scaling = match kind.unwrap_or("default") {
        // the three position axes of `mrope` are equal for text
        "default" | "mrope" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: needed("factor")? as f32 },
        "llama3" => RopeScaling::Llama3 {
            factor: needed("factor")? as f32,
            low: or("low_freq_factor", 1.0)?,
            high: or("high_freq_factor", 4.0)?,
            original: or("original_max_position_embeddings", 8192.0)?,
        },
        "yarn" => {
            let original = match get("original_max_position_embeddings")? {
                Some(original) => original,
                None => longest()?.ok_or_else(|| wrong("`original_max_position_embeddings` is missing".to_owned()))?,
            };
            yarn(config, keys, needed("factor")?, original)?
        }
        "dynamic" => {
            let original = match get("original_max_position_embeddings")? {
                Some(original) => Some(original),
                None => longest()?,
            };
            let original = original.filter(|&original| original >= 1.0 && original <= f64::from(1u32 << 30));
            let original =
                original.ok_or_else(|| wrong("dynamic scaling needs `max_position_embeddings`".to_owned()))?;
            let factor = needed("factor")?;
            if !(factor.is_finite() && factor >= 1.0) || rope.dims < 4 {
                return Err(wrong(format!("`factor` is {factor}, expected 1 or more, for 4 rotated elements or more")));
            }
            let dynamic = DynamicNtk { factor: factor as f32, original: original as usize };
            return Ok(Rotary { rope, dynamic: Some(dynamic) });
        }
        other => {
            let known = "default, linear, llama3, yarn and dynamic";
            return Err(config.unsupported(format!("{name}: type `{other}` is not known; known are {known}")));
        }
    };
    Ok(Rope { scaling, ..rope }.into())
}

/// The parameters of YaRN.
fn yarn(config: &Config, keys: &Map<String, Value>, factor: f64, original: f64) -> Result<RopeScaling> {
    let get = |key: &str| number(config, keys, key);
    let mscale = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let attention_factor = match (get("attention_factor")?, get("mscale")?, get("mscale_all_dim")?) {
        (Some(given), ..) => given,
        // transformers treats 0 as missing
        (None, Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => mscale(scale) / mscale(all),
        _ => mscale(1.0),
    };
    let truncate = match keys.get("truncate") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(truncate)) => *truncate,
        Some(other) => return Err(config.error(format!("`truncate` is {other}, expected true or false"))),
    };
    Ok(RopeScaling::Yarn {
        factor: factor as f32,
        original: original as f32,
        beta_fast: get("beta_fast")?.filter(|&beta| beta != 0.0).unwrap_or(32.0) as f32,
        beta_slow: get("beta_slow")?.filter(|&beta| beta != 0.0).unwrap_or(1.0) as f32,
        attention_factor: attention_factor as f32,
        truncate,
    })
}
