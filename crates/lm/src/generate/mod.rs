//! Generation: completions of one prompt or of several, whole or token by token.

mod batch;
pub(crate) mod decoding;
mod options;
mod sampler;
pub(crate) mod session;
mod stop;

pub use batch::{GenerationBatch, Request, generate_batch};
pub use decoding::{Decoding, FinishReason, GeneratedToken, Generation};
pub use options::{GenerateOptions, ReasoningBudget, RepetitionPenalty};
pub use sampler::{Sampler, TokenLogprob};
pub use session::{PrefillObserver, Prefilled, Session};

use crate::model::ModelRef;
use crate::tokenizer::Tokenizer;
use alluvium_core::Result;
use std::ops::ControlFlow;

/// Completes a prompt. Without a tokenizer the completion has tokens but no text.
///
/// # Errors
/// When the prompt is empty or has an id outside the vocabulary, the logits are not finite, an option is out of range,
/// there are stop texts but no tokenizer, or the tokenizer fails.
pub fn generate<'m>(
    model: impl Into<ModelRef<'m>>,
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<Generation> {
    Session::new(model)?.without_snapshots().generate(tokenizer, prompt, options)
}

impl<'m> Session<'m> {
    /// Completes a prompt, as [`generate`]. Tokens of the prompt that are in the cache already are not read again.
    ///
    /// # Errors
    /// As [`generate`] and [`Session::prefill`].
    pub fn generate(
        &mut self,
        tokenizer: Option<&Tokenizer>,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Generation> {
        let mut stream = self.stream(tokenizer, prompt, options)?;
        stream.by_ref().try_for_each(|token| token.map(drop))?;
        Ok(stream.into_generation())
    }

    /// Reads a prompt and returns an iterator over the tokens that follow it, each generated when it is asked for.
    ///
    /// # Errors
    /// As [`Session::prefill`], and when there are stop texts but no tokenizer.
    pub fn stream<'s>(
        &'s mut self,
        tokenizer: Option<&'s Tokenizer>,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<TokenStream<'s, 'm>> {
        self.stream_observed(tokenizer, prompt, options, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Session::stream`], with an observer of the reading of the prompt; see [`Session::prefill_observed`]. After
    /// its `Break` the iterator is empty.
    ///
    /// # Errors
    /// As [`Session::stream`].
    pub fn stream_observed<'s>(
        &'s mut self,
        tokenizer: Option<&'s Tokenizer>,
        prompt: &[u32],
        options: &GenerateOptions,
        observe: &mut PrefillObserver<'_>,
    ) -> Result<TokenStream<'s, 'm>> {
        let mut decoding = Decoding::new(tokenizer, prompt, options)?;
        self.set_prompt_logprobs(options.prompt_logprobs);
        let prefilled = self.prefill_observed(prompt, observe)?;
        decoding.set_reused_tokens(prefilled.reused);
        decoding.set_prompt_logprobs(self.take_prompt_logprobs());
        Ok(TokenStream { session: self, decoding, is_ended: !prefilled.is_complete })
    }
}

/// An iterator over the tokens that follow a prompt; see [`Session::stream`]. It ends after an error.
#[derive(Debug)]
pub struct TokenStream<'s, 'm> {
    session: &'s mut Session<'m>,
    decoding: Decoding<'s>,
    /// After an error, and where the prompt was not read to its end.
    is_ended: bool,
}

impl TokenStream<'_, '_> {
    /// The completion so far.
    pub fn generation(&self) -> &Generation {
        self.decoding.generation()
    }

    /// The completion.
    pub fn into_generation(self) -> Generation {
        self.decoding.into_generation()
    }
}

impl Iterator for TokenStream<'_, '_> {
    type Item = Result<GeneratedToken>;

    fn next(&mut self) -> Option<Result<GeneratedToken>> {
        if self.is_ended || self.decoding.is_finished() {
            return None;
        }
        let device = self.session.model().device().clone();
        // one task for the forward pass and the sampling, so that the threads of a CPU do not sleep in between
        let token = device.run(|| {
            if let Some(last) = self.decoding.last_token() {
                self.session.step(last)?;
            }
            self.decoding.next(&self.session.logits()?, 0)
        });
        self.is_ended = token.is_err();
        Some(token)
    }
}
