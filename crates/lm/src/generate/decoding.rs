//! One sequence while it is generated: from logits to tokens, text and the reason to stop.

use super::options::GenerateOptions;
use super::sampler::{Sampler, TokenLogprob};
use super::stop::StopBuffer;
use crate::tokenizer::reasoning::ReasoningParser;
use crate::tokenizer::{Detokenizer, Tokenizer};
use alluvium_core::{Error, Result, Tensor};
use std::collections::VecDeque;
use std::time::Instant;

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop text or a stop token appeared.
    Stop,
    /// It has `max_tokens` tokens.
    Length,
}

impl FinishReason {
    /// The name in the JSON of completions, as mlx-lm and OpenAI's API have it: `stop`, `length`.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedToken {
    /// The token's id.
    pub token: u32,
    /// The text that it completes. It is empty inside a character and where a stop text may begin.
    pub text: String,
    /// Its log-probability, where [`GenerateOptions::logprobs`] asks for it.
    pub logprob: Option<TokenLogprob>,
    /// Why the completion ended, with the last token.
    pub finish_reason: Option<FinishReason>,
}

/// A completion.
#[derive(Clone, Debug, Default)]
pub struct Generation {
    /// The text, without the stop text and special tokens. It is empty without a tokenizer.
    pub text: String,
    /// The generated tokens, including the one that ended the completion.
    pub tokens: Vec<u32>,
    /// For each generated token, where [`GenerateOptions::logprobs`] asks for it.
    pub logprobs: Vec<TokenLogprob>,
    /// Why it ended. `None` where the caller stopped it.
    pub finish_reason: Option<FinishReason>,
    /// The stop text that ended it.
    pub stop: Option<String>,
    /// For each token of the prompt after the first, where [`GenerateOptions::prompt_logprobs`] asks for it.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// The number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// The number of tokens of the prompt that were in the cache already.
    pub reused_tokens: usize,
    /// The time to the first generated token, in seconds.
    pub prefill_seconds: f64,
    /// The time from the first generated token to the last, in seconds.
    pub decode_seconds: f64,
}

/// The state of one sequence: it takes logits and returns tokens, their text and the reason to stop. A single sequence
/// and a batch use the same one.
pub struct Decoding<'t> {
    sampler: Sampler,
    detokenizer: Option<Detokenizer<'t>>,
    stop: StopBuffer,
    budget: Option<Budget>,
    /// Tokens that end the completion.
    stop_token_ids: Vec<u32>,
    max_tokens: usize,
    /// The prompt, then the generated tokens.
    tokens: Vec<u32>,
    generation: Generation,
    start: Instant,
    first: Option<Instant>,
}

/// What is left of a [`ReasoningBudget`](super::ReasoningBudget).
struct Budget {
    thinking: ReasoningParser,
    tokens: usize,
    /// The tokens that end the reasoning, of which those that are left follow.
    closing: Vec<u32>,
    forced: VecDeque<u32>,
}

impl Budget {
    fn new(tokenizer: Option<&Tokenizer>, options: &GenerateOptions) -> Result<Option<Self>> {
        let (Some(tokenizer), Some(budget)) = (tokenizer, &options.reasoning_budget) else { return Ok(None) };
        let Some(tag) = budget.thinking.closing_tag() else { return Ok(None) };
        // as the templates of reasoning models write it
        let closing = tokenizer.encode_without_special_tokens(&format!("\n{tag}\n\n"))?;
        let (thinking, tokens) = (budget.thinking.clone(), budget.tokens);
        Ok(Some(Budget { thinking, tokens, closing, forced: VecDeque::new() }))
    }

    /// The token that must come next, where the reasoning has had all its tokens.
    fn forced(&mut self) -> Option<u32> {
        if self.forced.is_empty() && self.tokens == 0 && self.thinking.is_thinking() {
            self.forced = std::mem::take(&mut self.closing).into();
        }
        self.forced.pop_front()
    }

    fn record(&mut self, text: &str) {
        self.thinking.push(text);
        if self.thinking.is_thinking() {
            self.tokens = self.tokens.saturating_sub(1);
        }
    }
}

impl std::fmt::Debug for Decoding<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Decoding after {} tokens", self.tokens.len())
    }
}

impl<'t> Decoding<'t> {
    /// A sequence that begins with `prompt`. Without a tokenizer there is no text, and the completion ends with a token
    /// of [`GenerateOptions::stop_token_ids`] or by its length. The time to the first token counts from here.
    ///
    /// # Errors
    /// When there are stop texts but no tokenizer.
    pub fn new(tokenizer: Option<&'t Tokenizer>, prompt: &[u32], options: &GenerateOptions) -> Result<Self> {
        if tokenizer.is_none() && !options.stop.is_empty() {
            return Err(Error::value("generate", "stop texts need a tokenizer; use `stop_token_ids`"));
        }
        let eos = tokenizer.map_or(&[][..], Tokenizer::eos_token_ids);
        Ok(Decoding {
            sampler: Sampler::new(options),
            detokenizer: tokenizer.map(Tokenizer::detokenizer),
            stop: StopBuffer::new(&options.stop),
            budget: Budget::new(tokenizer, options)?,
            stop_token_ids: [eos, &options.stop_token_ids].concat(),
            max_tokens: options.max_tokens,
            tokens: prompt.to_vec(),
            generation: Generation {
                prompt_tokens: prompt.len(),
                finish_reason: (options.max_tokens == 0).then_some(FinishReason::Length),
                ..Generation::default()
            },
            start: Instant::now(),
            first: None,
        })
    }

    /// Records how many tokens of the prompt were in the cache already.
    pub fn set_reused_tokens(&mut self, tokens: usize) {
        self.generation.reused_tokens = tokens;
    }

    /// Records the log-probabilities of the prompt's tokens.
    pub(crate) fn set_prompt_logprobs(&mut self, logprobs: Vec<TokenLogprob>) {
        self.generation.prompt_logprobs = logprobs;
    }

    /// Chooses the next token by row `row` of logits `[B, V]`.
    ///
    /// # Errors
    /// When the logits are not finite, an option of the sampling is out of range or the tokenizer fails.
    pub fn next(&mut self, logits: &Tensor, row: usize) -> Result<GeneratedToken> {
        let (token, logprob) = match self.budget.as_mut().and_then(Budget::forced) {
            Some(token) => (token, self.sampler.forced(logits, &self.tokens, row, token)?),
            None => self.sampler.next(logits, &self.tokens, row)?,
        };
        let (text, finish_reason) = self.push(token)?;
        if let Some(budget) = &mut self.budget {
            budget.record(&text);
        }
        self.sampler.record(&text);
        self.tokens.push(token);
        let generation = &mut self.generation;
        generation.tokens.push(token);
        generation.text += &text;
        generation.logprobs.extend(logprob.clone());
        generation.finish_reason = finish_reason;
        let first = *self.first.get_or_insert_with(Instant::now);
        generation.prefill_seconds = (first - self.start).as_secs_f64();
        generation.decode_seconds = first.elapsed().as_secs_f64();
        Ok(GeneratedToken { token, text, logprob, finish_reason })
    }

    /// The text that a token completes, and whether the completion ends with it.
    fn push(&mut self, token: u32) -> Result<(String, Option<FinishReason>)> {
        let is_end = self.stop_token_ids.contains(&token);
        let (mut text, mut is_stop) = (String::new(), false);
        if let Some(detokenizer) = self.detokenizer.as_mut().filter(|_| !is_end) {
            (text, is_stop) = self.stop.push(&detokenizer.push(token)?);
        }
        let is_last = self.generation.tokens.len() + 1 >= self.max_tokens;
        let is_complete = self.sampler.is_complete();
        if let Some(detokenizer) = self.detokenizer.as_mut().filter(|_| (is_end || is_last || is_complete) && !is_stop)
        {
            let (rest, stops) = self.stop.finish(&detokenizer.finish()?);
            text += &rest;
            is_stop = stops;
        }
        self.generation.stop = is_stop.then(|| self.stop.found()).flatten();
        let finish_reason = match is_stop || is_end || is_complete {
            true => Some(FinishReason::Stop),
            false => is_last.then_some(FinishReason::Length),
        };
        Ok((text, finish_reason))
    }

    /// The last generated token, which the model has to read before the next one can be chosen.
    pub fn last_token(&self) -> Option<u32> {
        self.generation.tokens.last().copied()
    }

    /// Whether the completion has ended.
    pub fn is_finished(&self) -> bool {
        self.generation.finish_reason.is_some()
    }

    /// The completion so far.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// The completion.
    pub fn into_generation(self) -> Generation {
        self.generation
    }
}
