//! Chat templates: messages to the text of a prompt.
//!
//! Templates are Jinja as transformers runs it: blocks are trimmed, strings have Python's methods, loops can be left;
//! `raise_exception`, `strftime_now` and a `tojson` that writes as Python does are there.

use super::Tokenizer;
use alluvium_core::{Error, Result};
use serde_json::{Map, Value as Json, json};

/// What transformers puts behind a message that is gone on with, to find its end in what the template writes.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Message { role: role.to_owned(), content: content.into() }
    }
}

/// How the text of a prompt ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// With what makes the model answer.
    #[default]
    Answer,
    /// With the last message, ended.
    Message,
    /// Within the last message, which the model goes on with.
    Continue,
}

impl Tokenizer {
    /// The text of a prompt for messages; `variables` are given to the template, such as `enable_thinking`.
    ///
    /// # Errors
    /// When there is no template, it cannot be read, fails, calls `raise_exception` or does not come to an end.
    pub fn chat(&self, messages: &[Message], ending: Ending, variables: &Map<String, Json>) -> Result<String> {
        let template = self
            .compiled_template()?
            .ok_or_else(|| Error::value("chat template", "this model has none; give it the plain prompt"))?;
        let mut messages = messages.to_vec();
        let mut last = String::new();
        if let Some(message) = messages.last_mut().filter(|_| ending == Ending::Continue) {
            last = message.content.trim().to_owned();
            message.content += MARK;
        }
        let messages: Vec<Json> = messages.iter().map(|m| json!({"role": m.role, "content": m.content})).collect();
        let mut context = Map::new();
        context.insert("add_generation_prompt".to_owned(), (ending == Ending::Answer).into());
        context.insert("enable_thinking".to_owned(), self.thinking().is_some().into());
        for key in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            if let Some(token) = self.special(key) {
                context.insert(key.to_owned(), token.into());
            }
        }
        context.extend(variables.clone());
        context.insert("messages".to_owned(), messages.into());
        let mut text = template.render(&context.into())?;
        if ending == Ending::Continue {
            let mark = text.rfind(MARK.trim_end()).filter(|_| text.contains(&last));
            let end = mark.ok_or_else(|| Error::value("chat template", "it leaves out the last message"))?;
            // a template that trims messages took the mark's space, and would have taken what is before the mark
            let trims = !text[end..].starts_with(MARK);
            text.truncate(end);
            if trims {
                text.truncate(text.trim_end().len());
            }
        }
        Ok(text)
    }
}
