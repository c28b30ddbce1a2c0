//! Requests that run: their events, as a stream.

use crate::error::{ApiError, STOPPED};
use alluvium_core::Error;
use alluvium_lm::engine::{Engine, Event, EventSink, Refusal};
use alluvium_lm::{GenerateOptions, Generation, Request};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Sends the events of one choice of a request.
struct ChoiceSink {
    choice: usize,
    sender: UnboundedSender<(usize, Event)>,
}

impl EventSink for ChoiceSink {
    fn send(&mut self, event: Event) -> ControlFlow<()> {
        match self.sender.send((self.choice, event)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// The choices of a request. Dropping it cancels those that run.
pub(crate) struct Running {
    events: UnboundedReceiver<(usize, Event)>,
    left: usize,
    /// The engine's thread ended before the choices did.
    has_stopped: bool,
    pub(crate) usage: Usage,
}

/// Tokens of a request.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
    pub(crate) reused: usize,
}

impl Usage {
    pub(crate) fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.reused},
        })
    }
}

impl Running {
    /// Submits every prompt `choices` times; choice `i` samples with the seed of the options plus `i`.
    pub(crate) fn submit(
        engine: &Engine,
        prompts: &[(Vec<u32>, GenerateOptions)],
        choices: usize,
    ) -> Result<Self, ApiError> {
        let (sender, events) = unbounded_channel();
        for (number, (prompt, options)) in prompts.iter().enumerate() {
            for choice in 0..choices {
                let seed = options.seed.wrapping_add(choice as u64);
                let request = Request::new(prompt.clone(), GenerateOptions { seed, ..options.clone() });
                let sink = ChoiceSink { choice: number * choices + choice, sender: sender.clone() };
                engine.submit(request, Box::new(sink))?;
            }
        }
        let prompt = prompts.iter().map(|(prompt, _)| prompt.len()).sum();
        let usage = Usage { prompt, ..Usage::default() };
        Ok(Running { events, left: prompts.len() * choices, has_stopped: false, usage })
    }

    /// Submits texts whose embeddings are wanted.
    pub(crate) fn submit_embeddings(engine: &Engine, texts: Vec<Vec<u32>>) -> Result<Self, ApiError> {
        let (sender, events) = unbounded_channel();
        let usage = Usage { prompt: texts.iter().map(Vec::len).sum(), ..Usage::default() };
        let left = texts.len();
        for (choice, tokens) in texts.into_iter().enumerate() {
            engine.submit_embedding(tokens, Box::new(ChoiceSink { choice, sender: sender.clone() }))?;
        }
        Ok(Running { events, left, has_stopped: false, usage })
    }

    /// Waits for all embeddings.
    pub(crate) async fn all_embeddings(&mut self) -> Result<Vec<Vec<f32>>, ApiError> {
        let mut done = vec![None; self.left];
        while let Some((choice, event)) = self.next().await {
            match event {
                Event::Embedded(embedding) => done[choice] = Some(embedding),
                Event::Failed(error) => return Err(self.error(error)),
                Event::Started { .. } | Event::Token(_) | Event::Finished(_) => {}
            }
        }
        done.into_iter().collect::<Option<Vec<_>>>().ok_or_else(stopped)
    }

    /// The next event and its choice; `None` once all choices have ended. Where the engine ends before them, an error.
    pub(crate) async fn next(&mut self) -> Option<(usize, Event)> {
        if self.left == 0 {
            return None;
        }
        let Some((choice, event)) = self.events.recv().await else {
            (self.left, self.has_stopped) = (0, true);
            return Some((0, Event::Failed(Error::value("generate", STOPPED))));
        };
        match &event {
            Event::Started { reused_tokens } => self.usage.reused += reused_tokens,
            Event::Token(_) => self.usage.completion += 1,
            Event::Finished(_) | Event::Embedded(_) | Event::Failed(_) => self.left -= 1,
        }
        Some((choice, event))
    }

    /// The error of a choice that failed.
    fn error(&self, error: Error) -> ApiError {
        if self.has_stopped { stopped() } else { error.into() }
    }

    /// Waits for all completions.
    pub(crate) async fn all(&mut self) -> Result<Vec<Generation>, ApiError> {
        let mut done: Vec<Option<Generation>> = (0..self.left).map(|_| None).collect();
        while let Some((choice, event)) = self.next().await {
            match event {
                Event::Finished(generation) => done[choice] = Some(generation),
                Event::Failed(error) => return Err(self.error(error)),
                Event::Started { .. } | Event::Token(_) | Event::Embedded(_) => {}
            }
        }
        let all: Option<Vec<Generation>> = done.into_iter().collect();
        all.ok_or_else(stopped)
    }
}

fn stopped() -> ApiError {
    Refusal::Stopped.into()
}
