//! The events of a streamed response.

use super::{call_item, end, message_item, reasoning_item, reasoning_tokens, text_part, usage_of};
use crate::Shared;
use crate::answer::{AnswerParser, Delta};
use crate::chat::Head;
use crate::error::ApiError;
use crate::running::Running;
use crate::sse::{Chunks, EventForm};
use alluvium_lm::Generation;
use alluvium_lm::engine::Event;
use serde_json::{Value, json};

/// The item that is open, and its text.
enum Open {
    None,
    Reasoning(String),
    Message(String),
}

pub(super) struct ResponseStream {
    running: Running,
    head: Head,
    parser: AnswerParser,
    object: Value,
    open: Open,
    /// Items that are complete.
    output: Vec<Value>,
    calls: usize,
    reasoning: String,
    sequence: usize,
    pending: Vec<Value>,
    server: Shared,
}

impl ResponseStream {
    pub(super) fn new(running: Running, head: Head, parser: AnswerParser, object: Value, server: Shared) -> Self {
        let (output, pending, reasoning) = (Vec::new(), Vec::new(), String::new());
        ResponseStream {
            running,
            head,
            parser,
            object,
            open: Open::None,
            output,
            calls: 0,
            reasoning,
            sequence: 0,
            pending,
            server,
        }
    }

    /// Adds an event of this type.
    fn push(&mut self, kind: &str, mut event: Value) {
        event["type"] = format!("response.{kind}").into();
        event["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        self.pending.push(event);
    }

    fn item_id(&self, kind: &str) -> String {
        self.head.call_id(kind, 0, self.output.len())
    }

    fn close(&mut self) {
        let at = self.output.len();
        let item = match std::mem::replace(&mut self.open, Open::None) {
            Open::None => return,
            Open::Reasoning(text) => {
                let id = self.item_id("rs");
                let done = json!({"item_id": id, "output_index": at, "content_index": 0, "text": text});
                self.push("reasoning_text.done", done);
                self.reasoning += &text;
                reasoning_item(&self.head, at, &text)
            }
            Open::Message(text) => {
                let place = json!({"item_id": self.item_id("msg"), "output_index": at, "content_index": 0});
                let with = |key: &str, value: Value| {
                    let mut event = place.clone();
                    event[key] = value;
                    event
                };
                let mut done = with("text", text.as_str().into());
                done["logprobs"] = json!([]);
                self.push("output_text.done", done);
                self.push("content_part.done", with("part", text_part(&text)));
                message_item(&self.head, at, &text, "completed")
            }
        };
        self.push("output_item.done", json!({"output_index": at, "item": item}));
        self.output.push(item);
    }

    fn begin(&mut self, open: Open) {
        self.close();
        let at = self.output.len();
        match &open {
            Open::None => {}
            Open::Reasoning(_) => {
                let mut item = reasoning_item(&self.head, at, "");
                item["content"] = json!([]);
                self.push("output_item.added", json!({"output_index": at, "item": item}));
            }
            Open::Message(_) => {
                let mut item = message_item(&self.head, at, "", "in_progress");
                item["content"] = json!([]);
                self.push("output_item.added", json!({"output_index": at, "item": item}));
                let part = text_part("");
                let id = self.item_id("msg");
                let event = json!({"item_id": id, "output_index": at, "content_index": 0, "part": part});
                self.push("content_part.added", event);
            }
        }
        self.open = open;
    }

    fn add(&mut self, delta: Delta) {
        match delta {
            Delta::Reasoning(text) => {
                if !matches!(self.open, Open::Reasoning(_)) {
                    self.begin(Open::Reasoning(String::new()));
                }
                let (id, at) = (self.item_id("rs"), self.output.len());
                let event = json!({"item_id": id, "output_index": at, "content_index": 0, "delta": text});
                self.push("reasoning_text.delta", event);
                if let Open::Reasoning(all) = &mut self.open {
                    *all += &text;
                }
            }
            Delta::Text(text) => {
                if !matches!(self.open, Open::Message(_)) {
                    self.begin(Open::Message(String::new()));
                }
                let (id, at) = (self.item_id("msg"), self.output.len());
                let event = json!({
                    "item_id": id, "output_index": at, "content_index": 0, "delta": text, "logprobs": [],
                });
                self.push("output_text.delta", event);
                if let Open::Message(all) = &mut self.open {
                    *all += &text;
                }
            }
            Delta::Call { name, arguments, .. } => self.call(&name, &arguments.to_string()),
        }
    }

    fn call(&mut self, name: &str, arguments: &str) {
        self.close();
        let (index, at) = (self.calls, self.output.len());
        self.calls += 1;
        let item = call_item(&self.head, index, name, arguments);
        let mut begun = call_item(&self.head, index, name, "");
        begun["status"] = "in_progress".into();
        self.push("output_item.added", json!({"output_index": at, "item": begun}));
        let place = json!({"item_id": item["id"], "output_index": at});
        let mut delta = place.clone();
        delta["delta"] = arguments.into();
        self.push("function_call_arguments.delta", delta);
        let mut done = place;
        done["name"] = name.into();
        done["arguments"] = arguments.into();
        self.push("function_call_arguments.done", done);
        self.push("output_item.done", json!({"output_index": at, "item": item}));
        self.output.push(item);
    }

    fn finish(&mut self, generation: &Generation) {
        self.parser.finish().into_iter().for_each(|delta| self.add(delta));
        if self.output.is_empty() && matches!(self.open, Open::None) {
            self.begin(Open::Message(String::new()));
        }
        self.close();
        let usage = usage_of(self.running.usage, reasoning_tokens(&self.server, &self.reasoning));
        let output = std::mem::take(&mut self.output);
        end(&mut self.object, output, generation.finish_reason, usage);
        let kind = if self.object["status"] == "incomplete" { "incomplete" } else { "completed" };
        let object = self.object.clone();
        self.push(kind, json!({"response": object}));
    }

    fn fail(&mut self, error: ApiError) {
        self.object["status"] = "failed".into();
        self.object["error"] = json!({"code": "server_error", "message": error.parts().1["error"]["message"]});
        let object = self.object.clone();
        self.push("failed", json!({"response": object}));
    }
}

impl Chunks for ResponseStream {
    async fn next(&mut self) -> Option<Vec<Value>> {
        let (_, event) = self.running.next().await?;
        match event {
            Event::Started { .. } => {
                for kind in ["created", "in_progress"] {
                    let object = self.object.clone();
                    self.push(kind, json!({"response": object}));
                }
            }
            Event::Token(token) => self.parser.push(&token.text).into_iter().for_each(|delta| self.add(delta)),
            Event::Finished(generation) => self.finish(&generation),
            Event::Embedded(_) => {}
            Event::Failed(error) => self.fail(error.into()),
        }
        Some(std::mem::take(&mut self.pending))
    }

    fn form(&self) -> EventForm {
        EventForm::Named
    }
}
