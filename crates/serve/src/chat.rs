//! `POST /v1/chat/completions`.

use crate::error::ApiError;
use crate::options::RequestOptions;
use crate::running::Running;
use crate::tools::{Piece, ToolParser};
use crate::{ApiJson, Server, Shared, now};
use alluvium_lm::engine::Event;
use alluvium_lm::tokenizer::reasoning::{Part, ReasoningParser};
use alluvium_lm::{Conversation, GeneratedToken, Generation, Message, TokenLogprob, Tokenizer};
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
pub(crate) struct ChatRequest {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    #[serde(default)]
    logprobs: bool,
    top_logprobs: Option<usize>,
    /// Further variables of the template: `enable_thinking`.
    #[serde(default)]
    chat_template_kwargs: Map<String, Value>,
    #[serde(flatten)]
    options: RequestOptions,
}

pub(crate) async fn complete(State(server): State<Shared>, body: ApiJson<ChatRequest>) -> Result<Response, ApiError> {
    let request = body.0;
    if request.messages.is_empty() {
        return Err(ApiError::bad("`messages` is empty"));
    }
    let tools = request.tools()?;
    let has_tools = !tools.is_empty();
    let mut conversation = Conversation::new(request.messages);
    conversation.tools = tools;
    conversation.variables = request.chat_template_kwargs;
    let text = conversation.render(&server.tokenizer)?;
    let prompt = server.tokenizer.encode_without_special_tokens(&text)?;
    let logprobs = request.logprobs.then(|| request.top_logprobs.unwrap_or(0));
    let options = request.options.generate(&server, prompt.len(), logprobs)?;
    let choices = request.options.choices()?;
    let running = Running::submit(&server, &[(prompt, options)], choices)?;
    let parser = || AnswerParser::new(&text, &server.tokenizer, has_tools);
    let head = Head::new(&server, "chatcmpl");
    if !request.options.stream {
        return whole(&server, running, &head, parser).await;
    }
    let parsers = (0..choices).map(|_| parser()).collect();
    let usage = request.options.stream_options.include_usage;
    let stream = ChatStream { running, head, parsers, pending: Vec::new(), usage, server };
    Ok(crate::sse::response(stream))
}

impl ChatRequest {
    /// The tools that the model may call.
    fn tools(&self) -> Result<Vec<Value>, ApiError> {
        let tools = self.tools.clone().unwrap_or_default();
        match &self.tool_choice {
            None | Some(Value::Null) => Ok(tools),
            Some(Value::String(choice)) if choice == "auto" => Ok(tools),
            Some(Value::String(choice)) if choice == "none" => Ok(Vec::new()),
            Some(other) => Err(ApiError::bad(format!("`tool_choice` is {other}; auto and none are supported"))),
        }
    }
}

/// What every object of a response has.
pub(crate) struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    pub(crate) fn new(server: &Server, kind: &str) -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = format!("{kind}-{:x}{:08x}", server.started, NEXT.fetch_add(1, Ordering::Relaxed));
        Head { id, created: now(), model: server.options.model_name.clone() }
    }

    pub(crate) fn object(&self, kind: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices})
    }
}

/// Separates the reasoning, the answer and tool calls of a completion.
pub(crate) struct AnswerParser {
    reasoning: ReasoningParser,
    tools: Option<ToolParser>,
    calls: usize,
}

impl AnswerParser {
    fn new(prompt: &str, tokenizer: &Tokenizer, has_tools: bool) -> Self {
        let reasoning = ReasoningParser::after(prompt, tokenizer.thinking());
        AnswerParser { reasoning, tools: has_tools.then(ToolParser::default), calls: 0 }
    }

    /// The changes of the message that a text makes, in the form of a stream.
    fn deltas(&mut self, text: &str, is_last: bool) -> Vec<Value> {
        let mut parts = self.reasoning.push(text);
        if is_last {
            parts.extend(self.reasoning.finish());
        }
        let mut deltas = Vec::new();
        for (part, text) in parts {
            match part {
                Part::ReasoningEnd => {}
                Part::Reasoning => deltas.push(json!({"reasoning_content": text})),
                Part::Answer => match &mut self.tools {
                    None => deltas.push(json!({"content": text})),
                    Some(tools) => {
                        let pieces = tools.push(&text);
                        self.add(pieces, &mut deltas);
                    }
                },
            }
        }
        if let Some(tools) = self.tools.as_mut().filter(|_| is_last) {
            let pieces = tools.finish();
            self.add(pieces, &mut deltas);
        }
        deltas
    }

    fn add(&mut self, pieces: Vec<Piece>, deltas: &mut Vec<Value>) {
        for piece in pieces {
            deltas.push(match piece {
                Piece::Text(text) => json!({"content": text}),
                Piece::Call(name, arguments) => {
                    let index = self.calls;
                    self.calls += 1;
                    // arguments are text in this API
                    let function = json!({"name": name, "arguments": arguments.to_string()});
                    let id = format!("call_{index}_{name}");
                    json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
                }
            });
        }
    }

    fn finish_reason(&self, generation: &Generation) -> Value {
        match generation.finish_reason {
            Some(reason) if self.calls > 0 && reason.as_str() == "stop" => "tool_calls".into(),
            reason => reason.map_or(Value::Null, |reason| reason.as_str().into()),
        }
    }
}

/// Waits for all choices.
async fn whole(
    server: &Server,
    mut running: Running,
    head: &Head,
    parser: impl Fn() -> AnswerParser,
) -> Result<Response, ApiError> {
    let generations = running.all().await?;
    let choice = |(index, generation): (usize, &Generation)| {
        let mut parser = parser();
        let mut message = json!({"role": "assistant", "content": ""});
        let mut calls = Vec::new();
        for delta in parser.deltas(&generation.text, true) {
            for key in ["content", "reasoning_content"] {
                if let Some(text) = delta[key].as_str() {
                    let before = message[key].as_str().unwrap_or_default().to_owned();
                    message[key] = (before + text).into();
                }
            }
            calls.extend(delta["tool_calls"].as_array().cloned().unwrap_or_default());
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
            if message["content"] == "" {
                message["content"] = Value::Null;
            }
        }
        json!({
            "index": index,
            "message": message,
            "finish_reason": parser.finish_reason(generation),
            "logprobs": logprobs(&server.tokenizer, &generation.logprobs),
        })
    };
    let choices: Vec<Value> = generations.iter().enumerate().map(choice).collect();
    let mut body = head.object("chat.completion", choices.into());
    body["usage"] = running.usage.json();
    Ok(Json(body).into_response())
}

/// Log-probabilities as the chat endpoint has them; null where there are none.
fn logprobs(tokenizer: &Tokenizer, all: &[TokenLogprob]) -> Value {
    if all.is_empty() {
        return Value::Null;
    }
    let one = |token: u32, logprob: f32| {
        let text = tokenizer.decode(&[token]).unwrap_or_default();
        json!({"token": text, "bytes": text.as_bytes(), "logprob": logprob})
    };
    let entry = |token: &TokenLogprob| {
        let mut entry = one(token.token, token.logprob);
        entry["top_logprobs"] = token.top_logprobs.iter().map(|&(token, logprob)| one(token, logprob)).collect();
        entry
    };
    json!({"content": all.iter().map(entry).collect::<Vec<_>>()})
}

/// The chunks of a streamed response.
struct ChatStream {
    running: Running,
    head: Head,
    parsers: Vec<AnswerParser>,
    pending: Vec<Value>,
    usage: bool,
    server: Shared,
}

impl ChatStream {
    fn push(&mut self, choice: usize, delta: Value, finish_reason: Value, logprobs: Value) {
        let choice = json!({"index": choice, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs});
        self.pending.push(self.head.object("chat.completion.chunk", json!([choice])));
    }

    fn token(&mut self, choice: usize, token: &GeneratedToken) {
        let deltas = self.parsers[choice].deltas(&token.text, false);
        let mut logprobs = logprobs(&self.server.tokenizer, token.logprob.as_slice());
        if deltas.is_empty() && !logprobs.is_null() {
            return self.push(choice, json!({}), Value::Null, logprobs);
        }
        for delta in deltas {
            self.push(choice, delta, Value::Null, logprobs.take());
        }
    }
}

impl crate::sse::Chunks for ChatStream {
    async fn next(&mut self) -> Option<Vec<Value>> {
        let (choice, event) = self.running.next().await?;
        match event {
            Event::Started { .. } => {
                self.push(choice, json!({"role": "assistant", "content": ""}), Value::Null, Value::Null);
            }
            Event::Token(token) => self.token(choice, &token),
            Event::Finished(generation) => {
                for delta in self.parsers[choice].deltas("", true) {
                    self.push(choice, delta, Value::Null, Value::Null);
                }
                let reason = self.parsers[choice].finish_reason(&generation);
                self.push(choice, json!({}), reason, Value::Null);
            }
            Event::Failed(error) => self.pending.push(ApiError::from(error).parts().1),
        }
        Some(std::mem::take(&mut self.pending))
    }

    fn last(&mut self) -> Option<Value> {
        let mut object = self.head.object("chat.completion.chunk", json!([]));
        object["usage"] = self.running.usage.json();
        self.usage.then_some(object)
    }
}
