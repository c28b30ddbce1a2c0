//! The events of a streamed message.

use super::{message, stop_reason, usage_of};
use crate::Shared;
use crate::answer::{AnswerParser, Delta};
use crate::chat::Head;
use crate::error::ApiError;
use crate::running::Running;
use crate::sse::{Chunks, EventForm};
use alluvium_lm::Generation;
use alluvium_lm::engine::Event;
use serde_json::{Value, json};

/// The block that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    None,
    Thinking,
    Text,
}

pub(super) struct MessageStream {
    running: Running,
    head: Head,
    parser: AnswerParser,
    open: Open,
    /// Blocks that were begun.
    blocks: usize,
    pending: Vec<Value>,
    /// Cancels the request only after the stream.
    _server: Shared,
}

impl MessageStream {
    pub(super) fn new(running: Running, head: Head, parser: AnswerParser, server: Shared) -> Self {
        MessageStream { running, head, parser, open: Open::None, blocks: 0, pending: Vec::new(), _server: server }
    }

    fn close(&mut self) {
        if self.open != Open::None {
            self.pending.push(json!({"type": "content_block_stop", "index": self.blocks - 1}));
            self.open = Open::None;
        }
    }

    fn begin(&mut self, block: Value) {
        self.close();
        self.pending.push(json!({"type": "content_block_start", "index": self.blocks, "content_block": block}));
        self.blocks += 1;
    }

    fn change(&mut self, delta: Value) {
        self.pending.push(json!({"type": "content_block_delta", "index": self.blocks - 1, "delta": delta}));
    }

    fn add(&mut self, delta: Delta) {
        match delta {
            Delta::Reasoning(text) => {
                if self.open != Open::Thinking {
                    self.begin(json!({"type": "thinking", "thinking": "", "signature": ""}));
                    self.open = Open::Thinking;
                }
                self.change(json!({"type": "thinking_delta", "thinking": text}));
            }
            Delta::Text(text) => {
                if self.open != Open::Text {
                    self.begin(json!({"type": "text", "text": ""}));
                    self.open = Open::Text;
                }
                self.change(json!({"type": "text_delta", "text": text}));
            }
            Delta::Call { index, name, arguments } => {
                let id = self.head.call_id("toolu", 0, index);
                self.begin(json!({"type": "tool_use", "id": id, "name": name, "input": {}}));
                self.change(json!({"type": "input_json_delta", "partial_json": arguments.to_string()}));
                self.pending.push(json!({"type": "content_block_stop", "index": self.blocks - 1}));
            }
        }
    }

    fn finish(&mut self, generation: &Generation) {
        self.parser.finish().into_iter().for_each(|delta| self.add(delta));
        self.close();
        let reason = stop_reason(generation, self.parser.has_calls());
        let stop = generation.stop.as_ref().filter(|_| reason == "stop_sequence");
        let delta = json!({"stop_reason": reason, "stop_sequence": stop});
        let usage = usage_of(self.running.usage);
        self.pending.push(json!({"type": "message_delta", "delta": delta, "usage": usage}));
        self.pending.push(json!({"type": "message_stop"}));
    }
}

impl Chunks for MessageStream {
    async fn next(&mut self) -> Option<Vec<Value>> {
        let (_, event) = self.running.next().await?;
        match event {
            Event::Started { .. } => {
                let message = message(&self.head, json!([]), self.running.usage);
                self.pending.push(json!({"type": "message_start", "message": message}));
            }
            Event::Token(token) => self.parser.push(&token.text).into_iter().for_each(|delta| self.add(delta)),
            Event::Finished(generation) => self.finish(&generation),
            Event::Embedded(_) => {}
            Event::Failed(error) => self.pending.push(ApiError::from(error).anthropic().1),
        }
        Some(std::mem::take(&mut self.pending))
    }

    fn form(&self) -> EventForm {
        EventForm::Named
    }
}
