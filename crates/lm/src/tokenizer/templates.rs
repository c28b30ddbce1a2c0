//! The chat templates of a tokenizer: a default one and an optional one for chats with tools.

use super::chat_template::ChatTemplate;
use crate::formats::{SMALL, read_text};
use alluvium_core::{Error, Result};
use serde_json::Value;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// The file of the template.
const FILE: &str = "chat_template.jinja";
/// The file of the template for chats with tools, where transformers keeps it.
const TOOL_USE_FILE: &str = "additional_chat_templates/tool_use.jinja";

/// Whether a chat has tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tools {
    /// It has none.
    None,
    /// It has some.
    Given,
}

/// The chat templates of a folder.
#[derive(Clone, Debug, Default)]
pub(super) struct Templates {
    default: Option<Template>,
    tool_use: Option<Template>,
}

/// A template and its origin.
#[derive(Clone)]
pub(super) struct Template {
    origin: &'static str,
    source: String,
    compiled: OnceLock<Arc<ChatTemplate>>,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.origin)
    }
}

impl Templates {
    /// The templates of a folder: its files, which go before those of `tokenizer_config.json`.
    ///
    /// # Errors
    /// When a file is there but cannot be read.
    pub(super) fn read(folder: &Path, config: &Value) -> Result<Self> {
        let file = |origin: &'static str| {
            let path = folder.join(origin);
            match path.symlink_metadata() {
                Ok(_) => {
                    let source = read_text(&path, SMALL).map_err(Error::io(&path, "read"))?;
                    Ok::<_, Error>(Some(Template::new(origin, &source)))
                }
                Err(_) => Ok(None),
            }
        };
        let Templates { default, tool_use } = Self::of_config(config);
        Ok(match file(FILE)? {
            Some(default) => Templates { default: Some(default), tool_use: file(TOOL_USE_FILE)? },
            None => Templates { default, tool_use: file(TOOL_USE_FILE)?.or(tool_use) },
        })
    }

    /// The templates of a `tokenizer_config.json`.
    pub(super) fn of_config(config: &Value) -> Self {
        let own = |source: &Value| {
            source.as_str().map(|source| Template::new("chat_template of tokenizer_config.json", source))
        };
        let (default, tool_use) = match config.get("chat_template") {
            Some(Value::Array(named)) => {
                let find = |name: &str| named.iter().find(|entry| entry["name"] == name);
                let default = find("default").or(named.first());
                (
                    default.and_then(|entry| own(&entry["template"])),
                    find("tool_use").and_then(|entry| own(&entry["template"])),
                )
            }
            Some(one) => (own(one), None),
            None => (None, None),
        };
        Templates { default, tool_use }
    }

    /// One template for all chats.
    pub(super) fn of(origin: &'static str, source: &str) -> Self {
        Templates { default: Some(Template::new(origin, source)), tool_use: None }
    }

    /// The template for a chat.
    pub(super) fn get(&self, tools: Tools) -> Option<&Template> {
        self.tool_use.as_ref().filter(|_| tools == Tools::Given).or(self.default.as_ref())
    }

    /// The templates that are files of their own, by name.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, String)> {
        let files = [&self.default, &self.tool_use].into_iter().flatten().filter(|t| t.origin.ends_with(".jinja"));
        files.map(|template| (template.origin, template.source.clone()))
    }
}

impl Template {
    fn new(origin: &'static str, source: &str) -> Self {
        Template { origin, source: source.to_owned(), compiled: OnceLock::new() }
    }

    /// Its text.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// The template, compiled at the first call.
    ///
    /// # Errors
    /// When it is not valid.
    pub(super) fn compiled(&self) -> Result<Arc<ChatTemplate>> {
        if let Some(compiled) = self.compiled.get() {
            return Ok(compiled.clone());
        }
        let compiled = Arc::new(ChatTemplate::named(self.origin, &self.source)?);
        Ok(self.compiled.get_or_init(|| compiled).clone())
    }
}
