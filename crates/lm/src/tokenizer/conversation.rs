//! Conversations: messages, rendered by a chat template to the prompt of a model.
//!
//! Templates are Jinja as transformers runs it: see [`ChatTemplate`](super::chat_template::ChatTemplate).

use super::{Tokenizer, Tools};
use alluvium_core::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value as Json, json};

/// The marker that transformers appends to a message that is continued, to find its end in the rendered text.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
/// The marker that mlx-lm renders in place of a message to find its beginning in the rendered text.
const QUERY: &str = "<query>";

/// One message of a conversation, in the JSON of transformers and of OpenAI's API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`; a template may know others.
    pub role: String,
    /// The text.
    #[serde(default)]
    pub content: Content,
    /// The functions that an assistant calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Further keys that templates read: `name`, `tool_call_id`, `reasoning_content`.
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

/// The content of a message. Templates see a string, a list of parts or none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// None: an assistant that calls tools.
    #[default]
    None,
    /// One text.
    Text(String),
    /// Several parts.
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ContentPart {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Content::Text(text)
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Content::Text(text.to_owned())
    }
}

impl Content {
    /// The text to which a continuation is appended.
    fn last_text(&mut self) -> Option<&mut String> {
        match self {
            Content::None => None,
            Content::Text(text) => Some(text),
            Content::Parts(parts) => parts.last_mut().map(|ContentPart::Text { text }| text),
        }
    }
}

/// A call of a function by an assistant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The id that the result of the call refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// The function and its arguments.
    pub function: FunctionCall,
}

/// A function and its arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The name of the function.
    pub name: String,
    /// The arguments, which templates expect as an object. The text of an object, as OpenAI's API has it, is parsed.
    #[serde(default, deserialize_with = "arguments")]
    pub arguments: Json,
}

fn function() -> String {
    "function".to_owned()
}

fn arguments<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Json, D::Error> {
    Ok(match Json::deserialize(deserializer)? {
        Json::String(text) => match serde_json::from_str(&text) {
            Ok(Json::Object(arguments)) => arguments.into(),
            _ => text.into(),
        },
        arguments => arguments,
    })
}

impl ToolCall {
    /// A call of a function with these arguments, a JSON object.
    pub fn new(name: impl Into<String>, arguments: Json) -> Self {
        ToolCall { id: None, kind: function(), function: FunctionCall { name: name.into(), arguments } }
    }
}

impl Message {
    /// A message of a role.
    pub fn new(role: impl Into<String>, content: impl Into<Content>) -> Self {
        Message { role: role.into(), content: content.into(), tool_calls: Vec::new(), extra: Map::new() }
    }

    /// A system prompt.
    pub fn system(content: impl Into<Content>) -> Self {
        Self::new("system", content)
    }

    /// A message of the user.
    pub fn user(content: impl Into<Content>) -> Self {
        Self::new("user", content)
    }

    /// Its content where that is one text.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            Content::None | Content::Parts(_) => None,
        }
    }

    /// A response of the model.
    pub fn assistant(content: impl Into<Content>) -> Self {
        Self::new("assistant", content)
    }

    /// The result of a tool call.
    pub fn tool(content: impl Into<Content>) -> Self {
        Self::new("tool", content)
    }
}

/// How the prompt of a conversation ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptEnd {
    /// With the beginning of a response: `add_generation_prompt` of transformers.
    #[default]
    GenerationPrompt,
    /// With the end of the last message.
    FinalMessage,
    /// Inside the last message, which the model continues: `continue_final_message` of transformers.
    ContinueFinalMessage,
}

/// Messages and what else a chat template makes a prompt from.
///
/// ```no_run
/// # use alluvium_lm::{Conversation, Message, load};
/// # let loaded = load("model".as_ref(), &alluvium_core::Device::cpu())?;
/// # let tokenizer = loaded.tokenizer.unwrap();
/// let conversation = Conversation::new([Message::system("Be brief."), Message::user("What is a delta rule?")]);
/// let prompt: Vec<u32> = conversation.encode(&tokenizer)?;
/// # Ok::<(), alluvium_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// The functions that the model can call, as JSON schemas.
    pub tools: Vec<Json>,
    /// Further variables of the template, such as `enable_thinking`.
    pub variables: Map<String, Json>,
    /// How the prompt ends.
    pub end: PromptEnd,
}

impl Conversation {
    /// A conversation of messages, whose prompt ends with the beginning of a response.
    pub fn new(messages: impl Into<Vec<Message>>) -> Self {
        Conversation { messages: messages.into(), ..Conversation::default() }
    }

    /// The text of the prompt.
    ///
    /// # Errors
    /// When there is no template; when it cannot be parsed, fails, calls `raise_exception` or exceeds its limits of
    /// time and memory; when a message that is to be continued is left out.
    pub fn render(&self, tokenizer: &Tokenizer) -> Result<String> {
        if self.end != PromptEnd::ContinueFinalMessage {
            return self.render_messages(tokenizer, &self.messages);
        }
        let mut messages = self.messages.clone();
        let missing = || Error::value("chat template", "there is no last message to continue; add one with text");
        let content = messages.last_mut().and_then(|message| message.content.last_text()).ok_or_else(missing)?;
        let last = content.trim().to_owned();
        content.push_str(MARK);
        let mut text = self.render_messages(tokenizer, &messages)?;
        let mark = text.rfind(MARK.trim_end()).filter(|_| text.contains(&last));
        let end = mark.ok_or_else(|| Error::value("chat template", "it leaves out the last message"))?;
        // a template that trims messages removed the mark's space, and would have removed what is before the mark
        let trims = !text[end..].starts_with(MARK);
        text.truncate(end);
        if trims {
            text.truncate(text.trim_end().len());
        }
        Ok(text)
    }

    /// The token ids of the prompt.
    ///
    /// # Errors
    /// As [`Conversation::render`], and when the tokenizer fails.
    pub fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        tokenizer.encode_without_special_tokens(&self.render(tokenizer)?)
    }

    /// The part of the prompt that follows a prompt cache: it begins with the first user message, which continues the
    /// one that the cache ends in.
    ///
    /// # Errors
    /// As [`Conversation::render`]; when there is a system prompt, which belongs into the cache, or no user message, or
    /// the template leaves it out.
    pub fn render_after_cache(&self, tokenizer: &Tokenizer) -> Result<String> {
        if self.messages.iter().any(|message| message.role == "system") {
            let why = "the prompt cache holds the beginning of the conversation; put the system prompt into the cache";
            return Err(Error::value("chat template", why));
        }
        let text = self.render(tokenizer)?;
        let mut marked = self.clone();
        let user = marked.messages.iter_mut().find(|message| message.role == "user");
        let user = user.ok_or_else(|| Error::value("chat template", "there is no user message"))?;
        user.content = QUERY.into();
        let start = marked.render(tokenizer)?.find(QUERY);
        let start = start.ok_or_else(|| Error::value("chat template", "it leaves out the user message"))?;
        Ok(text.get(start..).unwrap_or_default().to_owned())
    }

    fn render_messages(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<String> {
        // transformers defines tools and documents always
        let mut context = Map::from_iter([
            ("add_generation_prompt".to_owned(), (self.end == PromptEnd::GenerationPrompt).into()),
            ("enable_thinking".to_owned(), tokenizer.thinking().is_some().into()),
            ("tools".to_owned(), if self.tools.is_empty() { Json::Null } else { self.tools.clone().into() }),
            ("documents".to_owned(), Json::Null),
        ]);
        for key in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            if let Some(token) = tokenizer.special(key) {
                context.insert(key.to_owned(), token.into());
            }
        }
        context.extend(self.variables.clone());
        context.insert("messages".to_owned(), json!(messages));
        let tools = if context["tools"].is_null() { Tools::None } else { Tools::Given };
        let template = tokenizer
            .templates
            .get(tools)
            .ok_or_else(|| Error::value("chat template", "this model has none; give it the plain prompt"))?;
        if template.source().trim().is_empty() {
            let why = format!("{template:?} is empty; fetch it again, or give the model the plain prompt");
            return Err(Error::value("chat template", why));
        }
        template.compiled()?.render(&context.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, conversation: &Conversation) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        Tokenizer::train(["a text"].into_iter(), 300, &|_| ()).unwrap().save(folder.path()).unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        conversation.render(&Tokenizer::load(folder.path()).unwrap())
    }

    #[test]
    fn tools_and_documents_are_none_where_there_are_none() {
        let template = "{{ tools is none }} {{ documents is none }} {{ tools is defined }}";
        assert_eq!(render(template, &Conversation::default()).unwrap(), "True True True");
        let conversation = Conversation { tools: vec![json!({"name": "f"})], ..Conversation::default() };
        assert_eq!(render("{{ tools[0].name }}", &conversation).unwrap(), "f");
    }

    #[test]
    fn messages_of_the_api_reach_the_template_with_their_tool_calls_and_parts() {
        let messages: Vec<Message> = serde_json::from_value(json!([
            {"role": "user", "content": [{"type": "text", "text": "how"}, {"type": "text", "text": " warm?"}]},
            {"role": "assistant", "content": null, "reasoning_content": "ask", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "warm", "arguments": "{\"in\": \"Ulm\"}"}},
            ]},
            {"role": "tool", "content": "12", "tool_call_id": "1"},
        ]))
        .unwrap();
        let template = "{% for m in messages %}{{ m.role }}:\
            {% if m.content is string %}{{ m.content }}\
            {% elif m.content %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}\
            {% for c in m.tool_calls %}{{ m.reasoning_content }} {{ c.function.name }} \
            {{ c.function.arguments | tojson }}{% endfor %}\
            {{ m.tool_call_id }};{% endfor %}";
        let text = render(template, &Conversation::new(messages)).unwrap();
        assert_eq!(text, "user:how warm?;assistant:ask warm {\"in\": \"Ulm\"};tool:121;");
    }

    #[test]
    fn a_part_that_is_not_text_is_refused() {
        let image = json!({"role": "user", "content": [{"type": "image", "image": "x"}]});
        assert!(serde_json::from_value::<Message>(image).is_err());
    }

    #[test]
    fn the_part_after_a_cache_begins_with_the_first_user_message() {
        let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>";
        let folder = tempfile::tempdir().unwrap();
        Tokenizer::train(["a text"].into_iter(), 300, &|_| ()).unwrap().save(folder.path()).unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let conversation = Conversation::new([Message::user("hi")]);
        assert_eq!(conversation.render_after_cache(&tokenizer).unwrap(), "hi</><assistant>");
        let turns = Conversation::new([Message::user("hi"), Message::assistant("ho"), Message::user("so")]);
        let rest = "hi</><assistant>ho</><user>so</><assistant>";
        assert_eq!(turns.render_after_cache(&tokenizer).unwrap(), rest);
        let conversation = Conversation::new([Message::system("s"), Message::user("hi")]);
        let error = conversation.render_after_cache(&tokenizer).unwrap_err().to_string();
        assert!(error.contains("put the system prompt into the cache"), "{error}");
    }

    #[test]
    fn a_message_without_text_cannot_be_continued() {
        let end = PromptEnd::ContinueFinalMessage;
        let conversation = Conversation { end, ..Conversation::default() };
        let error = render("x", &conversation).unwrap_err().to_string();
        assert!(error.contains("there is no last message to continue"), "{error}");
    }
}
