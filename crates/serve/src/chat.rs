//! `POST /v1/chat/completions`.

use crate::answer::{Answer, AnswerParser, Delta};
use crate::error::ApiError;
use crate::options::RequestOptions;
use crate::running::Running;
use crate::turn::{ToolChoice, Turn};
use crate::{ApiJson, Server, Shared, now};
use alluvium_lm::engine::Event;
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
    let model = server.model(request.options.model.as_deref())?;
    let choice = tool_choice(request.tool_choice.as_ref())?;
    let mut conversation = Conversation::new(request.messages);
    conversation.tools = request.tools.unwrap_or_default();
    conversation.variables = request.chat_template_kwargs;
    let logprobs = request.logprobs.then(|| request.top_logprobs.unwrap_or(0));
    let format = request.options.grammar()?;
    let turn = Turn::new(&server, conversation, &choice, format, (&request.options, logprobs))?;
    let choices = request.options.choices()?;
    let running = Running::submit(&model.engine, &[(turn.prompt.clone(), turn.options.clone())], choices)?;
    let head = Head::new(&server, "chatcmpl-", &model.name);
    if !request.options.stream {
        return whole(&server, running, &head, || turn.parser(&server)).await;
    }
    let parsers = (0..choices).map(|_| turn.parser(&server)).collect();
    let usage = request.options.streams_usage();
    let stream = ChatStream { running, head, parsers, pending: Vec::new(), usage, server };
    Ok(crate::sse::response(stream))
}

/// `auto`, `none`, `required`, or a function by its name.
fn tool_choice(choice: Option<&Value>) -> Result<ToolChoice, ApiError> {
    Ok(match choice {
        None | Some(Value::Null) => ToolChoice::Auto,
        Some(Value::String(choice)) if choice == "auto" => ToolChoice::Auto,
        Some(Value::String(choice)) if choice == "none" => ToolChoice::None,
        Some(Value::String(choice)) if choice == "required" => ToolChoice::Required,
        Some(other) => match other["function"]["name"].as_str() {
            Some(name) => ToolChoice::Named(name.to_owned()),
            None => {
                let why = format!("`tool_choice` is {other}, expected auto, none, required or a function's name");
                return Err(ApiError::bad(why));
            }
        },
    })
}

/// What every object of a response has.
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
}

impl Head {
    /// An id of this kind that is never given again, for a model.
    pub(crate) fn new(server: &Server, kind: &str, model: &str) -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = format!("{kind}{:x}{:08x}", server.started, NEXT.fetch_add(1, Ordering::Relaxed));
        Head { id, created: now(), model: model.to_owned() }
    }

    /// The id of a call of this answer.
    pub(crate) fn call_id(&self, kind: &str, choice: usize, index: usize) -> String {
        let unique = self.id.trim_start_matches(|c: char| !c.is_ascii_digit());
        format!("{kind}_{unique}_{choice}_{index}")
    }

    pub(crate) fn object(&self, kind: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices})
    }
}

/// A call in the form of this API, whose arguments are text.
fn call(head: &Head, choice: usize, index: usize, (name, arguments): (&str, &Value)) -> Value {
    let function = json!({"name": name, "arguments": arguments.to_string()});
    json!({"id": head.call_id("call", choice, index), "type": "function", "function": function})
}

fn finish_reason(generation: &Generation, has_calls: bool) -> Value {
    match generation.finish_reason {
        Some(reason) if has_calls && reason.as_str() == "stop" => "tool_calls".into(),
        reason => reason.map_or(Value::Null, |reason| reason.as_str().into()),
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
        let answer = Answer::read(parser(), generation);
        let mut message = json!({"role": "assistant", "content": answer.text, "refusal": null});
        if !answer.reasoning.is_empty() {
            message["reasoning_content"] = answer.reasoning.into();
        }
        if !answer.calls.is_empty() {
            let calls = answer.calls.iter().enumerate();
            message["tool_calls"] =
                calls.map(|(n, (name, arguments))| call(head, index, n, (name, arguments))).collect();
            if message["content"] == "" {
                message["content"] = Value::Null;
            }
        }
        json!({
            "index": index,
            "message": message,
            "finish_reason": finish_reason(generation, !answer.calls.is_empty()),
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

    /// A change in the form of this API.
    fn delta(&self, choice: usize, delta: Delta) -> Value {
        match delta {
            Delta::Reasoning(text) => json!({"reasoning_content": text}),
            Delta::Text(text) => json!({"content": text}),
            Delta::Call { index, name, arguments } => {
                let mut call = call(&self.head, choice, index, (&name, &arguments));
                call["index"] = index.into();
                json!({"tool_calls": [call]})
            }
        }
    }

    fn token(&mut self, choice: usize, token: &GeneratedToken) {
        let deltas = self.parsers[choice].push(&token.text);
        let mut logprobs = logprobs(&self.server.tokenizer, token.logprob.as_slice());
        if deltas.is_empty() && !logprobs.is_null() {
            return self.push(choice, json!({}), Value::Null, logprobs);
        }
        for delta in deltas {
            let delta = self.delta(choice, delta);
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
                for delta in self.parsers[choice].finish() {
                    let delta = self.delta(choice, delta);
                    self.push(choice, delta, Value::Null, Value::Null);
                }
                let reason = finish_reason(&generation, self.parsers[choice].has_calls());
                self.push(choice, json!({}), reason, Value::Null);
            }
            Event::Embedded(_) => {}
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
