//! Text from a model, one token after the other.

pub mod sampler;
pub mod session;

use crate::model::LanguageModel;
use crate::tokenizer::{Detokenizer, Tokenizer};
use alluvium_core::Result;
pub use alluvium_ops::Sampling;
pub use sampler::{Likely, Repetition, Sampler};
use session::Session;
use std::ops::ControlFlow;
use std::time::Instant;

/// What to generate and when to stop.
#[derive(Clone, Debug)]
pub struct Options {
    /// At most this many new tokens.
    pub max_tokens: usize,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// The repetition penalty.
    pub repetition: Repetition,
    /// The same seed gives the same text.
    pub seed: u64,
    /// Texts that end the generation; they are not given out.
    pub stop: Vec<String>,
    /// Tokens that end the generation, as those of the tokenizer do.
    pub stop_tokens: Vec<u32>,
    /// Return the log-probability of each generated token and of the `n` most likely alternatives. `None` disables this.
    pub logprobs: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_tokens: 256,
            sampling: Sampling::default(),
            repetition: Repetition::default(),
            seed: 0,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            logprobs: None,
        }
    }
}

/// Why the generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The model ended the text.
    EndOfText,
    /// `max_tokens` were made.
    Length,
    /// A stop text appeared.
    Stop,
    /// The caller had enough.
    Caller,
}

/// What was generated, and how quickly.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were known from before.
    pub reused_tokens: usize,
    /// The new tokens, with the one that ended the text.
    pub tokens: Vec<u32>,
    /// For each new token, where [`Options::logprobs`] asks for it.
    pub logprobs: Vec<Likely>,
    /// Time to the first new token.
    pub prefill_seconds: f64,
    /// Time from the first new token to the last.
    pub decode_seconds: f64,
    /// Why it ended.
    pub reason: Reason,
}

/// Continues `prompt` and hands each piece of text to `on_text`, which may break off.
///
/// # Errors
/// When the prompt is empty or has an id outside the vocabulary, or the tokenizer or `on_text` fails.
pub fn generate(
    model: &dyn LanguageModel,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &Options,
    on_text: &mut dyn FnMut(&str) -> Result<ControlFlow<()>>,
) -> Result<Summary> {
    Session::new(model)?.for_one_prompt().generate(tokenizer, prompt, options, on_text)
}

impl Session<'_> {
    /// As [`generate`]; what the session has read of the prompt before is not read again.
    ///
    /// # Errors
    /// As [`generate`].
    pub fn generate(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        options: &Options,
        on_text: &mut dyn FnMut(&str) -> Result<ControlFlow<()>>,
    ) -> Result<Summary> {
        let start = Instant::now();
        let tokens = self.tokens_after(tokenizer, prompt, options)?;
        let mut summary = Summary {
            prompt_tokens: prompt.len(),
            reused_tokens: tokens.reused_tokens,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            prefill_seconds: 0.0,
            decode_seconds: 0.0,
            reason: Reason::Length,
        };
        let mut first = None;
        for piece in tokens {
            let piece = piece?;
            first.get_or_insert_with(Instant::now);
            summary.tokens.push(piece.token);
            summary.logprobs.extend(piece.logprob);
            if !piece.text.is_empty() && on_text(&piece.text)?.is_break() {
                summary.reason = Reason::Caller;
                break;
            }
            summary.reason = piece.finish.unwrap_or(summary.reason);
        }
        let first = first.unwrap_or_else(Instant::now);
        summary.prefill_seconds = (first - start).as_secs_f64();
        summary.decode_seconds = first.elapsed().as_secs_f64();
        Ok(summary)
    }
}

impl<'m> Session<'m> {
    /// Reads a prompt and returns an iterator over the tokens that continue it. What the session has read of the prompt
    /// before is not read again.
    ///
    /// # Errors
    /// When the prompt is empty or has an id outside the vocabulary.
    pub fn tokens_after<'s>(
        &'s mut self,
        tokenizer: &'s Tokenizer,
        prompt: &[u32],
        options: &'s Options,
    ) -> Result<Generation<'s, 'm>> {
        let reused_tokens = self.read(prompt)?;
        Ok(Generation {
            session: self,
            tokenizer,
            options,
            sampler: Sampler::new(options, options.seed),
            detokenizer: tokenizer.detokenizer(),
            stop: StopBuffer { stops: &options.stop, held: String::new() },
            last: None,
            made: 0,
            is_done: options.max_tokens == 0,
            reused_tokens,
        })
    }
}

/// One generated token.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The token's id.
    pub token: u32,
    /// The text that it completes. It is empty inside a character and where a stop text may begin.
    pub text: String,
    /// Its log-probability, where [`Options::logprobs`] asks for it.
    pub logprob: Option<Likely>,
    /// Why the generation ended, with the last token.
    pub finish: Option<Reason>,
}

/// An iterator over the tokens that continue a prompt; see [`Session::tokens_after`]. After an error it ends.
pub struct Generation<'s, 'm> {
    session: &'s mut Session<'m>,
    tokenizer: &'s Tokenizer,
    options: &'s Options,
    sampler: Sampler,
    detokenizer: Detokenizer<'s>,
    stop: StopBuffer<'s>,
    last: Option<u32>,
    made: usize,
    is_done: bool,
    /// Tokens of the prompt that had been read before.
    reused_tokens: usize,
}

impl std::fmt::Debug for Generation<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Generation after {} tokens", self.made)
    }
}

impl Generation<'_, '_> {
    fn step(&mut self) -> Result<Piece> {
        let (token, logprob) = self.session.choose(&mut self.sampler, self.last)?;
        (self.last, self.made) = (Some(token), self.made + 1);
        let is_end = self.tokenizer.eos_token_ids().contains(&token) || self.options.stop_tokens.contains(&token);
        let (mut text, mut is_stop) = (String::new(), false);
        if !is_end {
            (text, is_stop) = self.stop.push(&self.detokenizer.push(token)?);
        }
        let mut finish = match (is_stop, is_end) {
            (true, _) => Some(Reason::Stop),
            (_, true) => Some(Reason::EndOfText),
            _ => (self.made >= self.options.max_tokens).then_some(Reason::Length),
        };
        if finish.is_some() && !is_stop {
            let (rest, is_stop) = self.stop.finish(&self.detokenizer.finish()?);
            text += &rest;
            if is_stop {
                finish = Some(Reason::Stop);
            }
        }
        Ok(Piece { token, text, logprob, finish })
    }
}

impl Iterator for Generation<'_, '_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        if self.is_done {
            return None;
        }
        let piece = self.step();
        self.is_done = piece.as_ref().map_or(true, |piece| piece.finish.is_some());
        Some(piece)
    }
}

/// Continues several prompts of any lengths at once. Each completion is that of [`generate`] for the prompt alone, with
/// the seed plus the prompt's index. A text ends with one of `ends`, which is its last token, or at the limit.
///
/// Each prompt is read by itself, so nothing is ever padded; from then on all take a step together, those that ended
/// leaving the batch.
///
/// # Errors
/// As [`generate`].
pub fn generate_batch(
    model: &dyn LanguageModel,
    prompts: &[Vec<u32>],
    ends: &[u32],
    options: &Options,
) -> Result<Vec<Vec<u32>>> {
    let mut texts: Vec<Vec<u32>> = prompts.to_vec();
    let mut samplers: Vec<Sampler> =
        (0..prompts.len()).map(|i| Sampler::new(options, options.seed.wrapping_add(i as u64))).collect();
    let mut batch = crate::generate::session::Batched::read(model, prompts)?;
    for made in 0..options.max_tokens {
        let logits = batch.logits()?;
        let mut kept = Vec::new();
        for (row, &place) in batch.places().iter().enumerate() {
            let (token, _) = samplers[place].next(&logits, &texts[place], row)?;
            texts[place].push(token);
            if !ends.contains(&token) && !options.stop_tokens.contains(&token) {
                kept.push(row);
            }
        }
        if kept.is_empty() || made + 1 == options.max_tokens {
            break;
        }
        let next: Vec<u32> = kept.iter().filter_map(|&row| texts[batch.places()[row]].last().copied()).collect();
        batch.step(&kept, &next)?;
    }
    Ok(texts.into_iter().zip(prompts).map(|(text, prompt)| text[prompt.len()..].to_vec()).collect())
}

/// Holds back text that may be the beginning of a stop text.
struct StopBuffer<'a> {
    stops: &'a [String],
    held: String,
}

impl StopBuffer<'_> {
    /// The text that can be given out after the next piece, and whether a stop text follows it.
    fn push(&mut self, piece: &str) -> (String, bool) {
        self.held += piece;
        let stop = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s.as_str())).min();
        let end = stop.unwrap_or_else(|| self.held.len() - self.begun());
        let rest = self.held.split_off(end);
        (std::mem::replace(&mut self.held, rest), stop.is_some())
    }

    /// As [`StopBuffer::push`] for the last piece: nothing is held back any more.
    fn finish(&mut self, piece: &str) -> (String, bool) {
        let (mut text, is_stop) = self.push(piece);
        if !is_stop {
            text += &std::mem::take(&mut self.held);
        }
        (text, is_stop)
    }

    /// The most bytes at the end that are the beginning of a stop text.
    fn begun(&self) -> usize {
        let of = |stop: &String| {
            let lengths = stop.char_indices().map(|(at, _)| at).rev();
            lengths.into_iter().find(|&n| self.held.ends_with(&stop[..n])).unwrap_or(0)
        };
        self.stops.iter().map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut buffer = StopBuffer { stops: &stops, held: String::new() };
        let mut out = String::new();
        for piece in pieces {
            let (text, is_stop) = buffer.push(piece);
            out += &text;
            if is_stop {
                return (out, true);
            }
        }
        let (text, is_stop) = buffer.finish("");
        (out + &text, is_stop)
    }

    #[test]
    fn a_stop_text_across_pieces_is_not_given_out() {
        assert_eq!(said(&["END"], &["one E", "N", "D two"]), ("one ".to_owned(), true));
    }

    #[test]
    fn the_beginning_of_a_stop_text_that_does_not_follow_is_given_out() {
        assert_eq!(said(&["END", ""], &["one E", "N", "ough", " EN"]), ("one ENough EN".to_owned(), false));
        assert_eq!(said(&["🙂x"], &["🙂", "y"]), ("🙂y".to_owned(), false));
    }
}
