//! Text from a model, one token after the other.

use crate::formats::tokenizer::Tokenizer;
use crate::model::LanguageModel;
pub use crate::sampler::{Likely, Repetition, Sampler};
use crate::session::Session;
use alluvium_core::Result;
pub use alluvium_ops::Sampling;
use std::ops::ControlFlow;
use std::time::Instant;

/// What to generate and when to stop.
#[derive(Clone, Debug)]
pub struct Options {
    /// At most this many new tokens.
    pub max_tokens: usize,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// What tokens cost that were there before.
    pub repetition: Repetition,
    /// The same seed gives the same text.
    pub seed: u64,
    /// Texts that end the generation; they are not given out.
    pub stop: Vec<String>,
    /// Tokens that end the generation, as those of the tokenizer do.
    pub stop_tokens: Vec<u32>,
    /// Of each token its probability and that of so many likeliest ones are told; none where there is no number.
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
        let mut sampler = Sampler::new(options, options.seed);
        let reused_tokens = self.read(prompt)?;
        let mut next = if options.max_tokens > 0 { Some(self.choose(&mut sampler, None)?) } else { None };
        let prefill_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let mut text = Text { stops: &options.stop, held: String::new(), on_text };
        let mut stream = tokenizer.detokenizer();
        let (mut made, mut logprobs): (Vec<u32>, Vec<Likely>) = (Vec::new(), Vec::new());
        let mut reason = Reason::Length;
        while let Some((token, likely)) = next.take() {
            made.push(token);
            logprobs.extend(likely);
            if tokenizer.eos_token_ids().contains(&token) || options.stop_tokens.contains(&token) {
                reason = Reason::EndOfText;
                break;
            }
            if let Some(why) = text.push(&stream.push(token)?)? {
                reason = why;
                break;
            }
            if made.len() < options.max_tokens {
                next = Some(self.choose(&mut sampler, Some(token))?);
            }
        }
        if matches!(reason, Reason::EndOfText | Reason::Length) {
            reason = text.finish(&stream.finish()?)?.unwrap_or(reason);
        }
        let decode_seconds = start.elapsed().as_secs_f64();
        let prompt_tokens = prompt.len();
        Ok(Summary { prompt_tokens, reused_tokens, tokens: made, logprobs, prefill_seconds, decode_seconds, reason })
    }
}

/// Continues several prompts at once, of whatever lengths; what comes of each is what [`generate`] gives for it alone
/// with a seed that is larger by its place. A text ends with one of `ends`, which is its last token, or at the limit.
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
    let mut batch = crate::session::Batched::read(model, prompts)?;
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
