//! The `quantization` block of a configuration: which modules are packed, and how.

use crate::formats::config::Config;
use alluvium_core::{Error, Result};
use alluvium_ops::Packing;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The formats of a model's quantized modules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantization {
    /// The default of the block. The shapes of a module's tensors determine its format, too.
    pub default: Option<Packing>,
    /// Formats of single modules; `None` for modules that are not quantized.
    pub modules: BTreeMap<String, Option<Packing>>,
}

impl Quantization {
    /// Reads a configuration; empty without a `quantization` block.
    ///
    /// # Errors
    /// When the block has something that is not known.
    pub fn read(config: &Config) -> Result<Self> {
        let json = config.json();
        let block = |key: &str| json.get(key).and_then(Value::as_object);
        let foreign = block("quantization_config").or_else(|| config.text().get("quantization_config")?.as_object());
        let Some(block) = block("quantization").or(foreign) else { return Ok(Self::default()) };
        match block.get("quant_method").and_then(Value::as_str) {
            // 8-bit floats with a scale for each block: widened as they are read
            Some("fp8") => return Ok(Self::default()),
            Some(method) if !method.starts_with("mxfp") => {
                let known = "fp8 with block scales, mxfp4, mxfp8 and the formats of MLX";
                let why = format!("quant_method `{method}` is not read; known are {known}");
                return Err(config.unsupported(format!("{why}. Fetch the model in bf16, or in one of those")));
            }
            _ => {}
        }
        let wrong = |name: &str, why: String| config.error(format!("quantization: {name}{why}"));
        let mut quantization = Quantization::default();
        if let Some(method) = block.get("quant_method").and_then(Value::as_str) {
            quantization.default = Some(packing(&json!({"mode": method})).map_err(|why| wrong("", why))?);
            return Ok(quantization);
        }
        quantization.default = Some(packing(&Value::Object(block.clone())).map_err(|why| wrong("", why))?);
        for (module, entry) in block.iter().filter(|(key, _)| !matches!(key.as_str(), "group_size" | "bits" | "mode")) {
            let entry = match entry {
                Value::Bool(false) => None,
                Value::Bool(true) => quantization.default,
                entry => Some(packing(entry).map_err(|why| wrong(module, format!(": {why}")))?),
            };
            quantization.modules.insert(module.clone(), entry);
        }
        Ok(quantization)
    }

    /// The block, as MLX writes it.
    pub fn json(&self) -> Value {
        let mut block = Map::new();
        if let Some(default) = self.default {
            block.extend(entry(default));
            // the block alone says the mode where it is the one that is meant anyway
            block.entry("mode").or_insert_with(|| "affine".into());
        }
        for (module, packing) in &self.modules {
            block.insert(module.clone(), packing.map_or(Value::Bool(false), |p| entry(p).into()));
        }
        block.into()
    }
}

fn entry(packing: Packing) -> Map<String, Value> {
    let mut entry = Map::new();
    entry.insert("group_size".to_owned(), packing.group().into());
    entry.insert("bits".to_owned(), packing.bits().into());
    let mode = mode(packing);
    if mode != "affine" {
        entry.insert("mode".to_owned(), mode.into());
    }
    entry
}

/// As a configuration names it.
pub fn mode(packing: Packing) -> &'static str {
    match packing {
        Packing::Affine { .. } => "affine",
        Packing::Mxfp4 => "mxfp4",
        Packing::Mxfp8 => "mxfp8",
        Packing::Nvfp4 => "nvfp4",
    }
}

/// For a person: `4 bits in groups of 64`, with the mode where it is not affine.
pub(crate) fn in_words(packing: Packing) -> String {
    let mode = match mode(packing) {
        "affine" => String::new(),
        mode => format!("{mode}, "),
    };
    format!("{mode}{} bits in groups of {}", packing.bits(), packing.group())
}

/// A packing by its mode, and for the affine one its bits and its group; what is not given is as in MLX.
///
/// # Errors
/// In words, when there is no such packing.
pub fn parse_packing(mode: &str, bits: Option<usize>, group: Option<usize>) -> std::result::Result<Packing, String> {
    let packing = match mode {
        "affine" => Packing::Affine { bits: bits.unwrap_or(4) as u32, group: group.unwrap_or(64) },
        "mxfp4" => Packing::Mxfp4,
        "mxfp8" => Packing::Mxfp8,
        "nvfp4" => Packing::Nvfp4,
        other => return Err(format!("mode `{other}` is not known; known are affine, mxfp4, mxfp8 and nvfp4")),
    };
    let (b, g) = (packing.bits(), packing.group());
    if bits.is_some_and(|bits| bits != b) || group.is_some_and(|group| group != g) {
        return Err(format!("{mode} has {b} bits in groups of {g}"));
    }
    match packing {
        Packing::Affine { .. } if !matches!(b, 1..=6 | 8) => Err(format!("{b} bits, expected 1, 2, 3, 4, 5, 6 or 8")),
        Packing::Affine { .. } if !matches!(g, 32 | 64 | 128) => Err(format!("groups of {g}, expected 32, 64 or 128")),
        _ => Ok(packing),
    }
}

/// An entry that says no mode is affine, whatever the block says for all.
fn packing(entry: &Value) -> std::result::Result<Packing, String> {
    let number = |key: &str| match &entry[key] {
        Value::Null => Ok(None),
        n => {
            n.as_u64().and_then(|n| usize::try_from(n).ok()).map(Some).ok_or(format!("`{key}` is {n}, not an integer"))
        }
    };
    if !entry.is_object() {
        return Err(format!("it is {entry}, expected an object or false"));
    }
    let mode = match &entry["mode"] {
        Value::Null => "affine",
        mode => mode.as_str().ok_or(format!("`mode` is {mode}, no text"))?,
    };
    parse_packing(mode, number("bits")?, number("group_size")?)
}

/// The format that the shapes of a module's tensors imply, as in mlx-lm: rows of `inner` elements, `words` 32-bit words
/// and `groups` scales of the stored dtype `scales`.
///
/// # Errors
/// In words, when they are those of no packing.
pub fn infer(inner: usize, words: usize, groups: usize, scales: &str) -> std::result::Result<Packing, String> {
    let wrong = || format!("{words} words and {groups} scales for {inner} elements a row are those of no packing");
    if groups == 0
        || inner == 0
        || !inner.is_multiple_of(groups)
        || words > usize::MAX / 32
        || !(words * 32).is_multiple_of(inner)
    {
        return Err(wrong());
    }
    let (group, bits) = (inner / groups, words * 32 / inner);
    match (scales, bits, group) {
        ("U8", 4, 16) => Ok(Packing::Nvfp4),
        ("U8", 4, 32) => Ok(Packing::Mxfp4),
        ("U8", 8, 32) => Ok(Packing::Mxfp8),
        ("U8", ..) => Err(wrong()),
        _ => parse_packing("affine", Some(bits), Some(group)).map_err(|_| wrong()),
    }
}

/// The names of a module's tensors.
pub(crate) fn parts(module: &str) -> [String; 3] {
    ["weight", "scales", "biases"].map(|part| format!("{module}.{part}"))
}

/// The error of a module whose tensors do not fit.
pub(crate) fn misfit(path: &std::path::Path, module: &str, why: String) -> Error {
    Error::file(path, format!("module `{module}`: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(block: Value) -> Result<Quantization> {
        Quantization::read(&Config::new(json!({"model_type": "llama", "quantization": block})).unwrap())
    }

    #[test]
    fn an_entry_without_a_mode_is_affine_and_false_is_plain() {
        let block =
            json!({"group_size": 32, "bits": 4, "mode": "mxfp4", "a": {"group_size": 64, "bits": 8}, "b": false});
        let quantization = read(block).unwrap();
        assert_eq!(quantization.default, Some(Packing::Mxfp4));
        assert_eq!(quantization.modules["a"], Some(Packing::Affine { bits: 8, group: 64 }));
        assert_eq!(quantization.modules["b"], None);
        assert_eq!(read(quantization.json()).unwrap(), quantization);
    }

    #[test]
    fn what_is_not_known_is_refused_in_words() {
        for (block, want) in [
            (json!({"bits": 7, "group_size": 64}), "quantization: 7 bits, expected 1, 2, 3, 4, 5, 6 or 8"),
            (json!({"bits": 4, "group_size": 48}), "groups of 48, expected 32, 64 or 128"),
            (json!({"mode": "q4_k"}), "mode `q4_k` is not known"),
            (json!({"mode": "nvfp4", "group_size": 32}), "nvfp4 has 4 bits in groups of 16"),
            (json!({"bits": 4, "a.b": 3}), "quantization: a.b: it is 3, expected an object or false"),
            (json!({"quant_method": "awq"}), "quant_method `awq` is not read"),
        ] {
            let error = read(block).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn shapes_say_the_packing() {
        assert_eq!(infer(128, 16, 2, "BF16"), Ok(Packing::Affine { bits: 4, group: 64 }));
        assert_eq!(infer(128, 12, 4, "F32"), Ok(Packing::Affine { bits: 3, group: 32 }));
        assert_eq!(infer(64, 8, 4, "U8"), Ok(Packing::Nvfp4));
        assert_eq!(infer(64, 16, 2, "U8"), Ok(Packing::Mxfp8));
        assert!(infer(64, 8, 1, "U8").is_err() && infer(64, 9, 1, "F32").is_err() && infer(0, 1, 1, "F32").is_err());
    }
}
