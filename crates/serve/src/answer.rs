//! Separates the reasoning, the answer and the tool calls of a completion.

use crate::tools::{Piece, ToolParser};
use alluvium_lm::tokenizer::reasoning::{Part, ReasoningParser};
use alluvium_lm::{Generation, Tokenizer};
use serde_json::Value;

/// A change of an answer.
#[derive(Debug, PartialEq)]
pub(crate) enum Delta {
    Reasoning(String),
    Text(String),
    /// A whole call, of this place among the calls of the answer.
    Call {
        index: usize,
        name: String,
        arguments: Value,
    },
}

/// Reads the text of a completion as it comes.
pub(crate) struct AnswerParser {
    reasoning: ReasoningParser,
    tools: Option<ToolParser>,
    calls: usize,
}

impl AnswerParser {
    /// A parser of the text that follows a prompt.
    pub(crate) fn new(prompt: &str, tokenizer: &Tokenizer, has_tools: bool) -> Self {
        let reasoning = ReasoningParser::after(prompt, tokenizer.thinking());
        AnswerParser { reasoning, tools: has_tools.then(ToolParser::default), calls: 0 }
    }

    /// The changes that a text makes.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Delta> {
        let parts = self.reasoning.push(text);
        self.deltas(parts)
    }

    /// The changes of what was held back.
    pub(crate) fn finish(&mut self) -> Vec<Delta> {
        let parts = self.reasoning.finish();
        let mut deltas = self.deltas(parts);
        if let Some(pieces) = self.tools.as_mut().map(ToolParser::finish) {
            self.add(pieces, &mut deltas);
        }
        deltas
    }

    fn deltas(&mut self, parts: Vec<(Part, String)>) -> Vec<Delta> {
        let mut deltas = Vec::new();
        for (part, text) in parts {
            match (part, &mut self.tools) {
                (Part::ReasoningEnd, _) => {}
                (Part::Reasoning, _) => deltas.push(Delta::Reasoning(text)),
                (Part::Answer, None) => deltas.push(Delta::Text(text)),
                (Part::Answer, Some(tools)) => {
                    let pieces = tools.push(&text);
                    self.add(pieces, &mut deltas);
                }
            }
        }
        deltas
    }

    fn add(&mut self, pieces: Vec<Piece>, deltas: &mut Vec<Delta>) {
        for piece in pieces {
            deltas.push(match piece {
                Piece::Text(text) => Delta::Text(text),
                Piece::Call(name, arguments) => {
                    self.calls += 1;
                    Delta::Call { index: self.calls - 1, name, arguments }
                }
            });
        }
    }

    /// Whether the answer called a tool.
    pub(crate) fn has_calls(&self) -> bool {
        self.calls > 0
    }
}

/// A whole answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) reasoning: String,
    pub(crate) text: String,
    /// Names and arguments.
    pub(crate) calls: Vec<(String, Value)>,
}

impl Answer {
    /// Reads a completion.
    pub(crate) fn read(mut parser: AnswerParser, generation: &Generation) -> Self {
        let mut answer = Answer::default();
        let deltas = parser.push(&generation.text);
        deltas.into_iter().chain(parser.finish()).for_each(|delta| answer.add(&delta));
        answer
    }

    /// Adds a change.
    pub(crate) fn add(&mut self, delta: &Delta) {
        match delta {
            Delta::Reasoning(text) => self.reasoning += text,
            Delta::Text(text) => self.text += text,
            Delta::Call { name, arguments, .. } => self.calls.push((name.clone(), arguments.clone())),
        }
    }
}
