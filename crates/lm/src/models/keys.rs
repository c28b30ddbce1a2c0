//! Keys of a configuration that every type of model shares.

use crate::formats::config::Config;
use alluvium_core::Result;
use serde_json::{Map, Value};

/// The number under a key of a part of the configuration; `None` where it is missing or null.
///
/// # Errors
/// When it is not a number.
pub(super) fn number(config: &Config, part: &Map<String, Value>, key: &str) -> Result<Option<f64>> {
    match part.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(config.error(format!("`{key}` is {}, expected a number", brief(value)))),
        },
    }
}

/// The string under a key of a part of the configuration; `None` where it is missing or null.
///
/// # Errors
/// When it is not a string.
pub(super) fn text_of<'a>(config: &Config, part: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>> {
    match part.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(config.error(format!("`{key}` is {}, expected a string", brief(other)))),
    }
}

/// Checks that the epsilon of the norms is finite and not negative.
pub(super) fn check_eps(config: &Config, eps: f32) -> Result<()> {
    match eps.is_finite() && eps >= 0.0 {
        true => Ok(()),
        false => Err(config.error(format!("`rms_norm_eps` is {eps}, expected 0 or more"))),
    }
}

/// Keys that change the arithmetic, each with the values that do not.
const NEUTRAL: &[(&str, &[f64])] = &[
    ("attention_multiplier", &[]),
    ("attn_logit_softcapping", &[0.0]),
    ("embedding_multiplier", &[1.0]),
    ("final_logit_softcapping", &[0.0]),
    ("logit_scale", &[1.0]),
    ("logits_scaling", &[1.0]),
    ("query_pre_attn_scalar", &[]),
    ("residual_multiplier", &[1.0]),
];

/// Refuses keys that would change the arithmetic in a way that no built-in model implements.
///
/// # Errors
/// Names the key, its value and what is expected.
pub(super) fn refuse_unknown_arithmetic(config: &Config) -> Result<()> {
    let text = config.text();
    for key in ["hidden_act", "hidden_activation"] {
        if let Some(act) = text_of(config, text, key)?.filter(|act| !matches!(*act, "silu" | "swish")) {
            return Err(config.unsupported(format!("`{key}` is `{act}`; silu alone is known")));
        }
    }
    for (key, neutral) in NEUTRAL {
        if let Some(value) = number(config, text, key)?.filter(|value| !neutral.contains(value)) {
            return Err(config.unsupported(format!("`{key}` is {value}; no built-in model implements it")));
        }
    }
    if text.get("attn_output_gate") == Some(&Value::Bool(false)) {
        return Err(config.unsupported("`attn_output_gate` is false; gated attention alone is known"));
    }
    sliding_window(config)
}

/// Refuses sliding-window attention, unless the window covers the longest sequence or no layer uses it.
fn sliding_window(config: &Config) -> Result<()> {
    let text = config.text();
    let layer_types = text.get("layer_types").and_then(Value::as_array);
    let is_used = match layer_types {
        Some(kinds) => kinds.iter().any(|kind| kind == "sliding_attention"),
        None => text.get("use_sliding_window") == Some(&Value::Bool(true)),
    };
    let Some(window) = number(config, text, "sliding_window")?.filter(|_| is_used) else { return Ok(()) };
    let layers = number(config, text, "num_hidden_layers")?.unwrap_or(f64::INFINITY);
    let full = number(config, text, "max_window_layers")?.unwrap_or(0.0);
    let longest = number(config, text, "max_position_embeddings")?.unwrap_or(f64::INFINITY);
    if window >= longest || (layer_types.is_none() && full >= layers) {
        return Ok(());
    }
    Err(config.unsupported(format!("`sliding_window` is {window} and used; attention over all tokens alone is known")))
}

fn brief(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}
