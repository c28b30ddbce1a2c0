//! `adapter_config.json` of mlx-lm.

use crate::formats::{SMALL, foreign, read_text};
use alluvium_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// What fine-tuning trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FineTuneType {
    /// A low-rank update of each matrix.
    #[default]
    Lora,
    /// A low-rank update of each matrix's direction, and the length of each row.
    Dora,
    /// The parameters themselves.
    Full,
}

impl std::fmt::Display for FineTuneType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FineTuneType::Lora => "lora",
            FineTuneType::Dora => "dora",
            FineTuneType::Full => "full",
        })
    }
}

impl std::str::FromStr for FineTuneType {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "lora" => Ok(FineTuneType::Lora),
            "dora" => Ok(FineTuneType::Dora),
            "full" => Ok(FineTuneType::Full),
            _ => Err(format!("`{name}` is not a type of fine-tuning; expected lora, dora or full")),
        }
    }
}

/// The settings of low-rank updates: `lora_parameters`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraParameters {
    /// The rank of the updates.
    pub rank: usize,
    /// The factor of the updates. It is the factor itself: PEFT's is `lora_alpha / r`.
    pub scale: f32,
    /// The share of the inputs that training sets to 0 at random.
    pub dropout: f32,
    /// The modules: names within a layer, or in the model. `None` means all matrices of the layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<String>>,
}

/// Those of mlx-lm.
impl Default for LoraParameters {
    fn default() -> Self {
        LoraParameters { rank: 8, scale: 20.0, dropout: 0.0, keys: None }
    }
}

pub(super) fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let text = read_text(path, SMALL).map_err(Error::io(path, "read"))?;
    serde_json::from_str(&text).map_err(|error| {
        let why = foreign::describe(text.as_bytes()).unwrap_or_else(|| error.to_string());
        Error::file(path, format!("it is not a JSON object: {why}"))
    })
}

/// The type of fine-tuning and the settings of the updates; `None` for full fine-tuning.
pub(super) fn read(path: &Path) -> Result<(FineTuneType, Option<LoraParameters>)> {
    let json = read_json(path)?;
    let field = |key: &str| json.get(key).filter(|value| !value.is_null()).cloned();
    let wrong = |key: &str, error: serde_json::Error| Error::file(path, format!("`{key}`: {error}"));
    let kind = match field("fine_tune_type") {
        Some(kind) => serde_json::from_value(kind).map_err(|error| wrong("fine_tune_type", error))?,
        None => FineTuneType::Lora,
    };
    let parameters = match field("lora_parameters") {
        Some(parameters) => {
            if parameters.get("scale").is_none() {
                let hint = if parameters.get("alpha").is_some() { "; it has `alpha`, which is PEFT's" } else { "" };
                return Err(Error::file(path, format!("`lora_parameters` has no `scale`{hint}")));
            }
            Some(serde_json::from_value(parameters).map_err(|error| wrong("lora_parameters", error))?)
        }
        None if kind != FineTuneType::Full => return Err(Error::file(path, "it has no `lora_parameters`")),
        None => None,
    };
    Ok((kind, parameters))
}
