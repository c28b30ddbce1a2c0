//! `config.json`: the model type and its hyperparameters.

use super::{SMALL, read_whole};
use alluvium_core::{DType, Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A model's `config.json`. Keys that are not read here survive a load and a save.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    path: PathBuf,
    root: Map<String, Value>,
}

impl Config {
    /// Makes a configuration from JSON.
    ///
    /// # Errors
    /// When it is not an object.
    pub fn new(json: Value) -> Result<Self> {
        Self::of(PathBuf::from("config.json"), json)
    }

    /// A configuration that holds only `model_type`; [`Config::with`] adds keys.
    pub fn of_type(model_type: &str) -> Self {
        let config = Config { path: PathBuf::from("config.json"), root: Map::new() };
        config.with("model_type", model_type)
    }

    /// Adds a key to the top level.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.set(key, value);
        self
    }

    /// The integer under a key of [`Config::text`].
    ///
    /// # Errors
    /// When the key is missing or not a non-negative integer.
    pub fn integer(&self, key: &str) -> Result<usize> {
        let value = self.text().get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        value.ok_or_else(|| self.error(format!("`{key}` is missing or no integer")))
    }

    /// Reads `config.json` of a checkpoint's folder.
    ///
    /// # Errors
    /// When the file is missing, cannot be read or is not a JSON object. `NaN`, which Python may write, is not JSON.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("config.json");
        let text = read_whole(&path, SMALL).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::file(folder.as_ref(), "there is no model here: config.json is missing"),
            _ => Error::io(&path, "read")(error),
        })?;
        let json = super::json::parse(&text).map_err(|why| Error::file(&path, why))?;
        Self::of(path, json)
    }

    fn of(path: PathBuf, json: Value) -> Result<Self> {
        match json {
            Value::Object(root) => Ok(Config { path, root }),
            other => Err(Error::file(path, format!("expected a JSON object, found {}", brief(&other)))),
        }
    }

    /// The file that it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys.
    pub fn json(&self) -> &Map<String, Value> {
        &self.root
    }

    /// Sets a key of the top level.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.root.insert(key.to_owned(), value.into());
    }

    /// `tie_word_embeddings` at the top and in [`Config::text`].
    ///
    /// # Errors
    /// When one is neither true nor false.
    pub(crate) fn ties(&self) -> Result<[Option<bool>; 2]> {
        let tied = |part: &Map<String, Value>| match part.get("tie_word_embeddings") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(tied)) => Ok(Some(*tied)),
            Some(other) => {
                Err(self.error(format!("`tie_word_embeddings` is {}, expected true or false", brief(other))))
            }
        };
        Ok([tied(&self.root)?, tied(self.text())?])
    }

    /// Sets `tie_word_embeddings` at the top level and, if there is one, in `text_config`.
    pub(crate) fn set_tied(&mut self, is_tied: bool) {
        self.set("tie_word_embeddings", is_tied);
        if let Some(text) = self.root.get_mut("text_config").and_then(Value::as_object_mut) {
            text.insert("tie_word_embeddings".to_owned(), is_tied.into());
        }
    }

    /// Removes keys of the top level.
    pub(crate) fn forget(&mut self, keys: &[&str]) {
        self.root.retain(|key, _| !keys.contains(&key.as_str()));
    }

    /// Removes the keys that describe quantized weights.
    pub(crate) fn forget_quantization(&mut self) {
        let keys = ["quantization", "quantization_config"];
        self.forget(&keys);
        if let Some(text) = self.root.get_mut("text_config").and_then(Value::as_object_mut) {
            text.retain(|key, _| !keys.contains(&key.as_str()));
        }
    }

    /// The dtype of the weights: `torch_dtype` or `dtype`.
    pub fn dtype(&self) -> Option<DType> {
        let said = |part: &Map<String, Value>| {
            let name = part.get("torch_dtype").or_else(|| part.get("dtype"))?.as_str()?;
            Some(match name.strip_prefix("torch.").unwrap_or(name) {
                "float32" => DType::F32,
                "bfloat16" => DType::BF16,
                "float16" => DType::F16,
                _ => return None,
            })
        };
        said(&self.root).or_else(|| said(self.text()))
    }

    /// Updates `torch_dtype` and `dtype` where they are present.
    pub(crate) fn set_dtype(&mut self, dtype: DType) {
        let name = match dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        };
        let say = |part: &mut Map<String, Value>| {
            for key in ["torch_dtype", "dtype"] {
                if let Some(value) = part.get_mut(key) {
                    *value = name.into();
                }
            }
        };
        if let Some(text) = self.root.get_mut("text_config").and_then(Value::as_object_mut) {
            say(text);
        }
        say(&mut self.root);
    }

    /// The value of `model_type`.
    ///
    /// # Errors
    /// When the key is missing.
    pub fn model_type(&self) -> Result<&str> {
        self.root
            .get("model_type")
            .and_then(Value::as_str)
            .ok_or_else(|| self.error("`model_type` is missing; it says what kind of model this is"))
    }

    /// The keys of the language model: `text_config` if there is one, else the top level.
    pub fn text(&self) -> &Map<String, Value> {
        self.root.get("text_config").and_then(Value::as_object).unwrap_or(&self.root)
    }

    /// Deserializes the hyperparameters of a model from [`Config::text`]. A key that is null counts as missing.
    ///
    /// # Errors
    /// Names the key that is missing or of the wrong type.
    pub fn sizes<T: DeserializeOwned>(&self) -> Result<T> {
        let part = if self.root.contains_key("text_config") { "text_config: " } else { "" };
        let mut keys = self.text().clone();
        keys.retain(|_, value| !value.is_null());
        serde_path_to_error::deserialize(Value::Object(keys)).map_err(|error| {
            let key = match error.path().to_string() {
                key if key == "." => String::new(),
                key => format!("`{key}`: "),
            };
            self.error(format!("{part}{key}{}", error.inner()))
        })
    }

    /// The number of tokens of the vocabulary, `vocab_size`.
    ///
    /// # Errors
    /// When the key is missing or not an integer.
    pub fn vocab_size(&self) -> Result<usize> {
        self.integer("vocab_size")
    }

    /// The tokens that end a text: `eos_token_id`, one or a list.
    ///
    /// # Errors
    /// When it is neither an id, a list of ids nor null.
    pub fn eos_token_ids(&self) -> Result<Vec<u32>> {
        let value = self.root.get("eos_token_id").or_else(|| self.text().get("eos_token_id"));
        token_ids(value).map_err(|why| self.error(why))
    }

    /// An error that names this file.
    pub fn error(&self, why: impl Into<String>) -> Error {
        Error::file(&self.path, why)
    }

    /// An error that names this file, for a model that the library does not have.
    pub fn unsupported(&self, why: impl Into<String>) -> Error {
        Error::unsupported(&self.path, why)
    }
}

/// The ids of `eos_token_id`: one, a list, or none where it is null or missing.
///
/// # Errors
/// A message, when one is not a token id.
pub(crate) fn token_ids(value: Option<&Value>) -> std::result::Result<Vec<u32>, String> {
    let id = |v: &Value| {
        let id = v.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| format!("`eos_token_id` is {}, expected a token id or a list of them", brief(v)))
    };
    match value {
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(one) => Ok(vec![id(one)?]),
    }
}

fn brief(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}
