//! `POST /v1/responses`.

mod stream;

use self::stream::ResponseStream;
use crate::answer::Answer;
use crate::chat::Head;
use crate::error::ApiError;
use crate::options::{RequestOptions, ResponseFormat};
use crate::running::{Running, Usage};
use crate::turn::{ToolChoice, Turn};
use crate::{ApiJson, Server, Shared};
use alluvium_lm::tokenizer::{Content, FunctionCall, ToolCall};
use alluvium_lm::{Conversation, FinishReason, Message};
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
pub(crate) struct ResponsesRequest {
    model: Option<String>,
    input: Input,
    instructions: Option<String>,
    max_output_tokens: Option<usize>,
    #[serde(default)]
    stream: bool,
    temperature: Option<f32>,
    top_p: Option<f32>,
    #[serde(default)]
    tools: Vec<Value>,
    tool_choice: Option<Value>,
    text: Option<TextOptions>,
    previous_response_id: Option<String>,
    conversation: Option<Value>,
    metadata: Option<Value>,
}

#[derive(Deserialize)]
struct TextOptions {
    format: Option<ResponseFormat>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

/// An item of the input. Its type may be left out of a message.
#[derive(Deserialize)]
struct Item {
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<String>,
    content: Option<Value>,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    output: Option<Value>,
}

/// A text, or the texts of parts.
fn text_of(content: &Value) -> Result<String, ApiError> {
    if let Some(text) = content.as_str() {
        return Ok(text.to_owned());
    }
    let parts =
        content.as_array().ok_or_else(|| ApiError::bad(format!("content is {content}, expected text or parts")))?;
    let text = |part: &Value| match (part["type"].as_str(), part["text"].as_str()) {
        (Some("input_text" | "output_text" | "text" | "reasoning_text"), Some(text)) => Ok(text.to_owned()),
        (kind, _) => Err(ApiError::bad(format!("a part of type {} came, expected text", kind.unwrap_or("none")))),
    };
    Ok(parts.iter().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

impl Item {
    /// Adds it to the messages; calls belong to the message of the assistant before them.
    fn add(self, messages: &mut Vec<Message>) -> Result<(), ApiError> {
        let missing = |key: &str| ApiError::bad(format!("an item of `input` has no `{key}`"));
        match self.kind.as_deref().unwrap_or("message") {
            "message" => {
                let role = self.role.ok_or_else(|| missing("role"))?;
                let role = if role == "developer" { "system".to_owned() } else { role };
                let text = text_of(&self.content.ok_or_else(|| missing("content"))?)?;
                messages.push(Message::new(role, text));
            }
            "function_call" => {
                let (name, arguments) = (self.name.ok_or_else(|| missing("name"))?, self.arguments.unwrap_or_default());
                let arguments = serde_json::from_str(&arguments).unwrap_or_else(|_| arguments.into());
                let call = ToolCall {
                    id: self.call_id,
                    kind: "function".to_owned(),
                    function: FunctionCall { name, arguments },
                };
                match messages.last_mut().filter(|last| last.role == "assistant") {
                    Some(last) => last.tool_calls.push(call),
                    None => {
                        messages.push(Message { tool_calls: vec![call], ..Message::new("assistant", Content::None) });
                    }
                }
            }
            "function_call_output" => {
                let mut message = Message::new("tool", text_of(&self.output.ok_or_else(|| missing("output"))?)?);
                message.extra.insert("tool_call_id".to_owned(), json!(self.call_id));
                messages.push(message);
            }
            "reasoning" => {
                let mut message = Message::new("assistant", Content::None);
                if let Some(content) = self.content.filter(|content| !content.is_null()) {
                    message.extra.insert("reasoning_content".to_owned(), text_of(&content)?.into());
                    messages.push(message);
                }
            }
            other => return Err(ApiError::bad(format!("an item of type {other} is not supported"))),
        }
        Ok(())
    }
}

/// `auto`, `none`, `required`, or a function by its name.
fn tool_choice(choice: Option<&Value>) -> Result<ToolChoice, ApiError> {
    let Some(choice) = choice.filter(|choice| !choice.is_null()) else { return Ok(ToolChoice::Auto) };
    Ok(match (choice.as_str(), choice["name"].as_str()) {
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("none"), _) => ToolChoice::None,
        (Some("required"), _) => ToolChoice::Required,
        (None, Some(name)) => ToolChoice::Named(name.to_owned()),
        _ => {
            let why = format!("`tool_choice` is {choice}, expected auto, none, required or a function's name");
            return Err(ApiError::bad(why));
        }
    })
}

/// A tool in the form that templates know.
fn tool(tool: &Value) -> Result<Value, ApiError> {
    match tool["type"].as_str() {
        Some("function") => Ok(json!({"type": "function", "function": {
            "name": tool["name"], "description": tool["description"], "parameters": tool["parameters"],
        }})),
        _ => Err(ApiError::bad(format!("the tool {tool} is not a function"))),
    }
}

impl ResponsesRequest {
    /// Makes it ready to run, with what every object of the response has.
    fn turn(self, server: &Server, head: &Head) -> Result<(Turn, Value), ApiError> {
        if self.previous_response_id.is_some() || self.conversation.is_some_and(|id| !id.is_null()) {
            let why = "responses are not kept; send the whole conversation in `input`";
            return Err(ApiError::bad(why));
        }
        let mut messages: Vec<Message> = self.instructions.iter().map(|text| Message::system(text.as_str())).collect();
        match self.input {
            Input::Text(text) => messages.push(Message::user(text)),
            Input::Items(items) => items.into_iter().try_for_each(|item| item.add(&mut messages))?,
        }
        let mut conversation = Conversation::new(messages);
        conversation.tools = self.tools.iter().map(tool).collect::<Result<_, _>>()?;
        let options = RequestOptions {
            max_tokens: self.max_output_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            ..RequestOptions::default()
        };
        let format = self.text.and_then(|text| text.format).map_or(Ok(None), ResponseFormat::grammar)?;
        let choice = tool_choice(self.tool_choice.as_ref())?;
        let turn = Turn::new(server, conversation, &choice, format, (&options, None))?;
        let object = json!({
            "id": head.id, "object": "response", "created_at": head.created, "model": head.model,
            "status": "in_progress", "error": null, "incomplete_details": null, "output": [],
            "instructions": self.instructions, "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata.unwrap_or_else(|| json!({})), "parallel_tool_calls": true,
            "previous_response_id": null, "store": false, "tools": self.tools,
            "tool_choice": self.tool_choice.unwrap_or_else(|| "auto".into()),
            "temperature": turn.options.sampling.temperature, "top_p": turn.options.sampling.top_p, "usage": null,
        });
        Ok((turn, object))
    }
}

pub(crate) async fn complete(
    State(server): State<Shared>,
    body: ApiJson<ResponsesRequest>,
) -> Result<Response, ApiError> {
    let request = body.0;
    let model = server.model(request.model.as_deref())?;
    let head = Head::new(&server, "resp_", &model.name);
    let stream = request.stream;
    let (turn, mut object) = request.turn(&server, &head)?;
    let parser = turn.parser(&server);
    let mut running = Running::submit(&model.engine, &[(turn.prompt, turn.options)], 1)?;
    if stream {
        return Ok(crate::sse::response(ResponseStream::new(running, head, parser, object, server)));
    }
    let generations = running.all().await?;
    let generation = generations.first().ok_or_else(|| ApiError::bad("there is no completion"))?;
    let answer = Answer::read(parser, generation);
    let mut output = Vec::new();
    if !answer.reasoning.is_empty() {
        output.push(reasoning_item(&head, output.len(), &answer.reasoning));
    }
    if !answer.text.is_empty() || answer.calls.is_empty() {
        output.push(message_item(&head, output.len(), &answer.text, "completed"));
    }
    for (index, (name, arguments)) in answer.calls.iter().enumerate() {
        output.push(call_item(&head, index, name, &arguments.to_string()));
    }
    let reasoning = reasoning_tokens(&server, &answer.reasoning);
    end(&mut object, output, generation.finish_reason, usage_of(running.usage, reasoning));
    Ok(Json(object).into_response())
}

/// Completes the object of a response.
fn end(object: &mut Value, output: Vec<Value>, reason: Option<FinishReason>, usage: Value) {
    let is_cut = reason == Some(FinishReason::Length);
    object["status"] = if is_cut { "incomplete" } else { "completed" }.into();
    if is_cut {
        object["incomplete_details"] = json!({"reason": "max_output_tokens"});
    }
    object["output"] = output.into();
    object["usage"] = usage;
}

fn reasoning_tokens(server: &Server, text: &str) -> usize {
    server.tokenizer.encode_without_special_tokens(text).map_or(0, |tokens| tokens.len())
}

fn usage_of(usage: Usage, reasoning: usize) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.reused},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": reasoning.min(usage.completion)},
        "total_tokens": usage.prompt + usage.completion,
    })
}

fn reasoning_item(head: &Head, at: usize, text: &str) -> Value {
    json!({
        "id": head.call_id("rs", 0, at), "type": "reasoning", "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
    })
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn message_item(head: &Head, at: usize, text: &str, status: &str) -> Value {
    json!({
        "id": head.call_id("msg", 0, at), "type": "message", "role": "assistant", "status": status,
        "content": [text_part(text)],
    })
}

fn call_item(head: &Head, index: usize, name: &str, arguments: &str) -> Value {
    json!({
        "id": head.call_id("fc", 0, index), "type": "function_call", "status": "completed",
        "call_id": head.call_id("call", 0, index), "name": name, "arguments": arguments,
    })
}
