//! A response while it is generated: reasoning and answer are told apart.

use crate::output::{bar, dimmed, is_quiet, note};
use alluvium::lm::tokenizer::reasoning::{Part, ReasoningParser};
use alluvium::lm::{FinishReason, GenerateOptions, Generation, Session, Tokenizer};
use std::io::{self, Write};
use std::ops::ControlFlow;

/// Tokens of a prompt from which its reading has a progress bar.
const LONG_PROMPT: usize = 1024;

/// A prompt and what to generate after it.
pub(crate) struct Prompt<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) ids: &'a [u32],
    pub(crate) options: &'a GenerateOptions,
}

impl Prompt<'_> {
    /// Generates and writes a response; `check` ends it with a `Break`.
    pub(crate) fn respond(
        &self,
        session: &mut Session<'_>,
        response: &mut Response,
        check: &mut dyn FnMut() -> ControlFlow<()>,
        out: &mut impl Write,
    ) -> anyhow::Result<Generation> {
        let length = self.ids.len();
        let progress = (length >= LONG_PROMPT).then(|| bar(length as u64, 0).with_message("tokens of the prompt"));
        let mut observe = |done: usize| {
            if let Some(bar) = &progress {
                bar.set_position(done as u64);
            }
            check()
        };
        let mut stream = session.stream_observed(Some(self.tokenizer), self.ids, self.options, &mut observe)?;
        if let Some(bar) = &progress {
            bar.finish_and_clear();
        }
        for token in stream.by_ref() {
            response.write(&token?.text, out)?;
            if check().is_break() {
                break;
            }
        }
        let generation = stream.into_generation();
        response.finish(out)?;
        Ok(generation)
    }
}

/// The form of responses.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Form {
    /// The reasoning, dimmed on a terminal, a line of `---`, and the answer.
    Marked,
    /// The answer alone; the reasoning goes to standard error.
    Answer,
    /// Nothing is written while it is generated.
    Json,
}

/// A response so far.
pub(crate) struct Response {
    form: Form,
    parser: ReasoningParser,
    pub(crate) reasoning: String,
    pub(crate) answer: String,
}

impl Response {
    pub(crate) fn new(form: Form, parser: ReasoningParser) -> Self {
        Response { form, parser, reasoning: String::new(), answer: String::new() }
    }

    pub(crate) fn write(&mut self, text: &str, out: &mut impl Write) -> io::Result<()> {
        let parts = self.parser.push(text);
        self.write_parts(parts, out)
    }

    pub(crate) fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        let parts = self.parser.finish();
        self.write_parts(parts, out)?;
        if self.form == Form::Answer && !self.reasoning.is_empty() && self.parser.is_thinking() {
            note!("");
        }
        Ok(())
    }

    fn write_parts(&mut self, parts: Vec<(Part, String)>, out: &mut impl Write) -> io::Result<()> {
        for (part, mut text) in parts {
            match part {
                Part::Reasoning => self.reasoning += &text,
                Part::Answer => {
                    if self.answer.is_empty() && !self.reasoning.is_empty() {
                        // the line ends that separate the answer from the reasoning are part of neither
                        text = text.trim_start_matches('\n').to_owned();
                    }
                    self.answer += &text;
                }
                Part::ReasoningEnd => {}
            }
            match (part, self.form) {
                (_, Form::Json) => {}
                (Part::Reasoning, Form::Marked) => write!(out, "{}", dimmed(&text))?,
                (Part::ReasoningEnd, Form::Marked) => write!(out, "\n---\n")?,
                (Part::Reasoning, Form::Answer) => aside(&text),
                (Part::ReasoningEnd, Form::Answer) => aside("\n---\n"),
                (Part::Answer, _) => write!(out, "{text}")?,
            }
            out.flush()?;
        }
        Ok(())
    }

    /// Says that the completion has all the tokens it may have.
    pub(crate) fn note_cut(&self, generation: &Generation) {
        if generation.finish_reason == Some(FinishReason::Length) {
            let inside = if self.parser.is_thinking() { "inside the reasoning, " } else { "" };
            note!("cut off {inside}after {} tokens; -m N allows more", generation.tokens.len());
        }
    }
}

/// Writes reasoning beside the output.
fn aside(text: &str) {
    if !is_quiet() {
        let mut err = io::stderr();
        let _ = write!(err, "{text}").and_then(|()| err.flush());
    }
}
