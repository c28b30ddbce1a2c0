//! Text from a model, one token after the other.

use crate::formats::tokenizer::Tokenizer;
use crate::models::LanguageModel;
use alluvium_core::rng::Rng;
use alluvium_core::{Device, Error, Result, Tensor};
pub use alluvium_ops::Sampling;
use alluvium_ops::{linear, sample};
use std::ops::ControlFlow;
use std::time::Instant;

/// Tokens of a prompt that are read at once: enough for full speed, few enough for their memory.
const PREFILL: usize = 512;

/// What to generate and when to stop.
#[derive(Clone, Debug)]
pub struct Options {
    /// At most this many new tokens.
    pub max_tokens: usize,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// The same seed gives the same text.
    pub seed: u64,
    /// Texts that end the generation; they are not given out.
    pub stop: Vec<String>,
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
    /// The new tokens, with the one that ended the text.
    pub tokens: Vec<u32>,
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
    let start = Instant::now();
    let mut tokens = Tokens::new(model, prompt, options)?;
    let prefill_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let mut text = Text { stops: &options.stop, held: String::new(), on_text };
    let mut stream = tokenizer.stream();
    let mut made = Vec::new();
    let mut reason = Reason::Length;
    while made.len() < options.max_tokens {
        let token = tokens.next(made.last().copied())?;
        made.push(token);
        if tokenizer.eos_token_ids().contains(&token) {
            reason = Reason::EndOfText;
            break;
        }
        if let Some(why) = text.push(&stream.push(token)?)? {
            reason = why;
            break;
        }
    }
    if matches!(reason, Reason::EndOfText | Reason::Length) {
        reason = text.finish(&stream.finish()?)?.unwrap_or(reason);
    }
    let decode_seconds = start.elapsed().as_secs_f64();
    Ok(Summary { prompt_tokens: prompt.len(), tokens: made, prefill_seconds, decode_seconds, reason })
}

/// The tokens that a model makes, by its own taste.
struct Tokens<'a> {
    model: &'a dyn LanguageModel,
    cache: crate::Cache,
    /// After the last token, `[1, D]`.
    hidden: Tensor,
    sampling: Sampling,
    rng: Rng,
}

impl<'a> Tokens<'a> {
    fn new(model: &'a dyn LanguageModel, prompt: &[u32], options: &Options) -> Result<Self> {
        let mut cache = model.cache(1)?;
        let mut hidden = None;
        for part in prompt.chunks(PREFILL) {
            hidden = Some(step(model, part, &mut cache)?);
        }
        let hidden = hidden.ok_or_else(|| Error::value("generate", "the prompt is empty; give at least one token"))?;
        let rng = Rng::new(options.seed, "sample");
        Ok(Tokens { model, cache, hidden, sampling: options.sampling, rng })
    }

    fn next(&mut self, last: Option<u32>) -> Result<u32> {
        if let Some(last) = last {
            self.hidden = step(self.model, &[last], &mut self.cache)?;
        }
        let logits = linear(&self.hidden, self.model.head())?;
        let token = sample(&logits, &self.sampling, &[self.rng.uniform() as f32])?.to_vec::<u32>()?;
        token.first().copied().ok_or_else(|| Error::value("sample", "no token came"))
    }
}

/// What is known after the last of these tokens, `[1, D]`.
fn step(model: &dyn LanguageModel, ids: &[u32], cache: &mut crate::Cache) -> Result<Tensor> {
    let ids = Tensor::from_slice(ids, [1, ids.len()], device(model))?;
    let hidden = device(model).run(|| model.step(&ids, cache))?;
    let [tokens, width] = [hidden.shape()[1], hidden.shape()[2]];
    hidden.reshape([tokens, width])?.rows(tokens - 1, 1)
}

pub(crate) fn device(model: &dyn LanguageModel) -> &Device {
    model.head().device()
}

/// Gives text out, but for what may be the beginning of a stop text.
struct Text<'a> {
    stops: &'a [String],
    held: String,
    on_text: &'a mut dyn FnMut(&str) -> Result<ControlFlow<()>>,
}

impl Text<'_> {
    fn push(&mut self, piece: &str) -> Result<Option<Reason>> {
        self.held += piece;
        let stop = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s.as_str())).min();
        let end = stop.unwrap_or_else(|| self.held.len() - self.begun());
        let rest = self.held.split_off(end);
        let text = std::mem::replace(&mut self.held, rest);
        if !text.is_empty() && (self.on_text)(&text)?.is_break() {
            return Ok(Some(Reason::Caller));
        }
        Ok(stop.map(|_| Reason::Stop))
    }

    fn finish(&mut self, piece: &str) -> Result<Option<Reason>> {
        let reason = self.push(piece)?;
        if reason.is_none() && !self.held.is_empty() && (self.on_text)(&self.held)?.is_break() {
            return Ok(Some(Reason::Caller));
        }
        Ok(reason)
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

    fn said(stops: &[&str], pieces: &[&str]) -> (String, Option<Reason>) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut out = String::new();
        let mut on_text = |piece: &str| {
            out += piece;
            Ok(ControlFlow::Continue(()))
        };
        let mut text = Text { stops: &stops, held: String::new(), on_text: &mut on_text };
        let mut reason = None;
        for piece in pieces {
            reason = text.push(piece).unwrap();
            if reason.is_some() {
                break;
            }
        }
        if reason.is_none() {
            reason = text.finish("").unwrap();
        }
        (out, reason)
    }

    #[test]
    fn a_stop_text_across_pieces_is_not_given_out() {
        assert_eq!(said(&["END"], &["one E", "N", "D two"]), ("one ".to_owned(), Some(Reason::Stop)));
    }

    #[test]
    fn the_beginning_of_a_stop_text_that_does_not_follow_is_given_out() {
        assert_eq!(said(&["END", ""], &["one E", "N", "ough", " EN"]), ("one ENough EN".to_owned(), None));
        assert_eq!(said(&["🙂x"], &["🙂", "y"]), ("🙂y".to_owned(), None));
    }
}
