//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's API.

mod stream;

use self::stream::MessageStream;
use crate::answer::Answer;
use crate::chat::Head;
use crate::error::{ApiError, MessagesError};
use crate::options::{RequestOptions, Stops};
use crate::running::{Running, Usage};
use crate::turn::{ToolChoice, Turn};
use crate::{ApiJson, Server, Shared};
use alluvium_lm::tokenizer::{Content, ToolCall};
use alluvium_lm::{Conversation, Generation, Message};
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
pub(crate) struct MessagesRequest {
    model: Option<String>,
    messages: Vec<Turned>,
    max_tokens: Option<usize>,
    system: Option<Blocks>,
    stop_sequences: Option<Vec<String>>,
    #[serde(default)]
    stream: bool,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    #[serde(default)]
    tools: Vec<Value>,
    tool_choice: Option<Value>,
    thinking: Option<Thinking>,
}

#[derive(Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Turned {
    role: String,
    content: Blocks,
}

/// A text or blocks.
#[derive(Deserialize)]
#[serde(untagged)]
enum Blocks {
    Text(String),
    Many(Vec<Block>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text { text: String },
    Thinking { thinking: String },
    ToolUse { id: String, name: String, input: Value },
    ToolResult { tool_use_id: String, content: Option<Blocks> },
}

impl Blocks {
    /// The texts, one after the other.
    fn text(self) -> Result<String, ApiError> {
        match self {
            Blocks::Text(text) => Ok(text),
            Blocks::Many(blocks) => {
                let text = |block| match block {
                    Block::Text { text } => Ok(text),
                    _ => Err(ApiError::bad("a block that is not text came where only text can stand")),
                };
                Ok(blocks.into_iter().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
            }
        }
    }
}

/// Adds a message, whose results of tools become messages of their own.
fn add(messages: &mut Vec<Message>, Turned { role, content }: Turned) -> Result<(), ApiError> {
    let blocks = match content {
        Blocks::Text(text) => vec![Block::Text { text }],
        Blocks::Many(blocks) => blocks,
    };
    let (mut texts, mut calls, mut extra) = (Vec::new(), Vec::new(), Map::new());
    for block in blocks {
        match block {
            Block::Text { text } => texts.push(text),
            Block::Thinking { thinking } => drop(extra.insert("reasoning_content".to_owned(), thinking.into())),
            Block::ToolUse { id, name, input } => calls.push(ToolCall { id: Some(id), ..ToolCall::new(name, input) }),
            Block::ToolResult { tool_use_id, content } => {
                let text = content.map_or_else(|| Ok(String::new()), Blocks::text)?;
                let mut message = Message::new("tool", text);
                message.extra.insert("tool_call_id".to_owned(), tool_use_id.into());
                messages.push(message);
            }
        }
    }
    if texts.is_empty() && calls.is_empty() {
        return Ok(());
    }
    let content = if texts.is_empty() { Content::None } else { Content::Text(texts.join("\n")) };
    messages.push(Message { tool_calls: calls, extra, ..Message::new(role, content) });
    Ok(())
}

/// `auto`, `any`, `none`, or a tool by its name.
fn tool_choice(choice: Option<&Value>) -> Result<ToolChoice, ApiError> {
    let Some(choice) = choice.filter(|choice| !choice.is_null()) else { return Ok(ToolChoice::Auto) };
    Ok(match (choice["type"].as_str(), choice["name"].as_str()) {
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("any"), _) => ToolChoice::Required,
        (Some("none"), _) => ToolChoice::None,
        (Some("tool"), Some(name)) => ToolChoice::Named(name.to_owned()),
        _ => return Err(ApiError::bad(format!("`tool_choice` is {choice}, expected type auto, any, none or tool"))),
    })
}

/// A tool in the form that templates know.
fn tool(tool: &Value) -> Value {
    let function = json!({
        "name": tool["name"], "description": tool["description"], "parameters": tool["input_schema"],
    });
    json!({"type": "function", "function": function})
}

impl MessagesRequest {
    /// Makes it ready to run.
    fn turn(self, server: &Server) -> Result<Turn, ApiError> {
        let mut messages = Vec::new();
        if let Some(system) = self.system {
            messages.push(Message::system(system.text()?));
        }
        if self.messages.is_empty() {
            return Err(ApiError::bad("`messages` is empty"));
        }
        for message in self.messages {
            add(&mut messages, message)?;
        }
        let mut conversation = Conversation::new(messages);
        conversation.tools = self.tools.iter().map(tool).collect();
        if let Some(thinking) = self.thinking {
            let is_enabled = thinking.kind != "disabled";
            conversation.variables.insert("enable_thinking".to_owned(), is_enabled.into());
        }
        let options = RequestOptions {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            stop: self.stop_sequences.map(Stops::Many),
            ..RequestOptions::default()
        };
        Turn::new(server, conversation, &tool_choice(self.tool_choice.as_ref())?, None, (&options, None))
    }
}

pub(crate) async fn complete(
    State(server): State<Shared>,
    body: Result<ApiJson<MessagesRequest>, ApiError>,
) -> Result<Response, MessagesError> {
    let request = body?.0;
    if request.max_tokens.is_none() {
        return Err(ApiError::bad("`max_tokens` is missing").into());
    }
    let model = server.model(request.model.as_deref())?;
    let head = Head::new(&server, "msg_", &model.name);
    let stream = request.stream;
    let turn = request.turn(&server)?;
    let parser = turn.parser(&server);
    let mut running = Running::submit(&model.engine, &[(turn.prompt, turn.options)], 1)?;
    if stream {
        return Ok(crate::sse::response(MessageStream::new(running, head, parser, server)));
    }
    let generations = running.all().await?;
    let generation = generations.first().ok_or_else(|| ApiError::bad("there is no completion"))?;
    let answer = Answer::read(parser, generation);
    let mut content = Vec::new();
    if !answer.reasoning.is_empty() {
        content.push(json!({"type": "thinking", "thinking": answer.reasoning, "signature": ""}));
    }
    if !answer.text.is_empty() {
        content.push(json!({"type": "text", "text": answer.text}));
    }
    for (index, (name, input)) in answer.calls.iter().enumerate() {
        content.push(json!({"type": "tool_use", "id": head.call_id("toolu", 0, index), "name": name, "input": input}));
    }
    let mut body = message(&head, content.into(), running.usage);
    let reason = stop_reason(generation, !answer.calls.is_empty());
    body["stop_reason"] = reason.into();
    body["stop_sequence"] = json!(generation.stop.as_ref().filter(|_| reason == "stop_sequence"));
    Ok(Json(body).into_response())
}

pub(crate) async fn count_tokens(
    State(server): State<Shared>,
    body: Result<ApiJson<MessagesRequest>, ApiError>,
) -> Result<Json<Value>, MessagesError> {
    Ok(Json(json!({"input_tokens": body?.0.turn(&server)?.prompt.len()})))
}

/// A message without the reason to stop.
fn message(head: &Head, content: Value, usage: Usage) -> Value {
    json!({
        "id": head.id, "type": "message", "role": "assistant", "model": head.model, "content": content,
        "stop_reason": null, "stop_sequence": null, "usage": usage_of(usage),
    })
}

/// Tokens as this API counts them: those of the prefix cache apart.
fn usage_of(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt.saturating_sub(usage.reused),
        "output_tokens": usage.completion,
        "cache_read_input_tokens": usage.reused,
        "cache_creation_input_tokens": 0,
    })
}

fn stop_reason(generation: &Generation, has_calls: bool) -> &'static str {
    match generation.finish_reason {
        Some(reason) if reason.as_str() == "length" => "max_tokens",
        _ if has_calls => "tool_use",
        _ if generation.stop.is_some() => "stop_sequence",
        _ => "end_turn",
    }
}
