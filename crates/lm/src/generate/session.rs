//! A model and the tokens it has read: a prompt that begins like the one before is not read again.

use super::sampler::{TokenLogprob, token_logprob};
use crate::cache::{Cache, Snapshot};
use crate::model::ModelRef;
use alluvium_core::{Device, Error, Result, Tensor};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;

/// Prompt tokens between two snapshots, and per forward pass on a GPU.
const SNAPSHOT_INTERVAL: usize = 512;
/// Prompt tokens per forward pass on a CPU with few threads: nearly full speed, and little memory.
const MIN_PREFILL_STEP: usize = 128;
/// Prompt tokens that are not read in a forward pass of their own: up to this many are multiplied as generated tokens
/// are, more as prompts are, and the order of sums differs. So the bits do not depend on where a prompt is cut.
pub(crate) const MIN_PREFILL_TAIL: usize = 32;
/// The maximum number of snapshots of a session. Each holds the states of all linear layers.
const MAX_SNAPSHOTS: usize = 8;

/// Receives the number of tokens of a prompt that were read; `Break` ends the reading.
pub type PrefillObserver<'a> = dyn FnMut(usize) -> ControlFlow<()> + 'a;

/// The result of reading a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefilled {
    /// The number of first tokens of the prompt that were in the cache already.
    pub reused: usize,
    /// Whether all of the prompt was read.
    pub is_complete: bool,
}

/// A model with the cache of the tokens it has read.
///
/// A recurrent state cannot be trimmed, so the session keeps a [`Snapshot`] of it at regular intervals and at the end
/// of each prompt. A new prompt continues from the longest snapshot that is a prefix of it.
///
/// A session of an `Arc<dyn LanguageModel>` borrows nothing and can move to another thread.
pub struct Session<'m> {
    model: ModelRef<'m>,
    cache: Cache,
    /// The tokens in the cache after the first `prefix_len`.
    tokens: Vec<u32>,
    /// The number of tokens at the beginning of the cache that came with it.
    prefix_len: usize,
    snapshots: Vec<Snapshot>,
    max_snapshots: usize,
    /// Prompt tokens per forward pass.
    prefill_step_size: usize,
    /// The hidden state of the last token, `[1, D]`.
    hidden: Option<Tensor>,
    /// A forward pass failed, and what the cache holds is not known.
    is_broken: bool,
    /// The alternatives of each token of a prompt whose log-probabilities are kept, and those of the last prompt.
    prompt_logprobs: (Option<usize>, Vec<TokenLogprob>),
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session of {} tokens", self.cache.offset())
    }
}

impl<'m> Session<'m> {
    /// A session of a model that has read nothing.
    ///
    /// # Errors
    /// When the model has no layers to cache for.
    pub fn new(model: impl Into<ModelRef<'m>>) -> Result<Self> {
        let model = model.into();
        let cache = model.cache(1)?;
        Ok(Self::with_cache(model, cache))
    }

    /// A session that continues after a cache of one sequence: from
    /// [`load_prompt_cache`](crate::cache::load_prompt_cache).
    pub fn with_cache(model: impl Into<ModelRef<'m>>, cache: Cache) -> Self {
        let model = model.into();
        Session {
            prefix_len: cache.offset(),
            snapshots: vec![cache.snapshot()],
            max_snapshots: MAX_SNAPSHOTS,
            prefill_step_size: prefill_step_size(model.device()),
            model,
            cache,
            tokens: Vec::new(),
            hidden: None,
            is_broken: false,
            prompt_logprobs: (None, Vec::new()),
        }
    }

    /// Sets the number of prompt tokens per forward pass: fewer take less memory, more may be faster. By default a GPU
    /// reads 512, a CPU 128, or 32 per thread with more than four threads, up to 512. Up to 32 tokens that are left over
    /// are read with those before them. On a CPU the bits of a model without experts do not depend on a size that is
    /// a multiple of 64.
    pub fn with_prefill_step_size(self, tokens: Option<NonZeroUsize>) -> Self {
        Session { prefill_step_size: tokens.map_or(self.prefill_step_size, NonZeroUsize::get), ..self }
    }

    /// Disables snapshots. Use it when the session will see one prompt only: it saves a copy of all recurrent states
    /// for each snapshot.
    pub fn without_snapshots(self) -> Self {
        Session { snapshots: Vec::new(), max_snapshots: 0, ..self }
    }

    /// Sets whether the log-probabilities of a prompt's tokens are kept, and of how many alternatives.
    pub(crate) fn set_prompt_logprobs(&mut self, top: Option<usize>) {
        self.prompt_logprobs = (top, Vec::new());
    }

    /// Takes the log-probabilities of the prompt that was read.
    pub(crate) fn take_prompt_logprobs(&mut self) -> Vec<TokenLogprob> {
        std::mem::take(&mut self.prompt_logprobs.1)
    }

    /// The model.
    pub fn model(&self) -> &ModelRef<'m> {
        &self.model
    }

    /// The tokens that were read since the session began.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The cache of the tokens that were read.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Reads a prompt. Returns the number of its first tokens that were in the cache already.
    ///
    /// # Errors
    /// When the prompt is empty or has an id outside the vocabulary; when a session
    /// [without snapshots](Session::without_snapshots) of a model with recurrent states gets a prompt that does not
    /// continue the tokens it has read; when an earlier forward pass failed and the session began with a cache. After
    /// another failure the session has read nothing.
    pub fn prefill(&mut self, prompt: &[u32]) -> Result<usize> {
        Ok(self.prefill_observed(prompt, &mut |_| ControlFlow::Continue(()))?.reused)
    }

    /// As [`Session::prefill`]; `observe` gets the number of tokens read after each forward pass, and its `Break` ends
    /// the reading. What was read stays in the session, for the next prompt.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn prefill_observed(&mut self, prompt: &[u32], observe: &mut PrefillObserver<'_>) -> Result<Prefilled> {
        self.check(prompt)?;
        let same = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // the last token is read again where all are cached: only the hidden state of the last one is kept
        let reused = self.rewind(same.min(prompt.len() - 1))?;
        let mut at = reused;
        let interval = SNAPSHOT_INTERVAL.max(self.prefill_step_size);
        while at < prompt.len() {
            let boundary = (at - at % interval).saturating_add(interval);
            let end = at.saturating_add(self.prefill_step_size).min(boundary);
            let end = if prompt.len().saturating_sub(end) <= MIN_PREFILL_TAIL { prompt.len() } else { end };
            let hidden = self.forward(&prompt[at..end])?;
            self.score(&hidden, &prompt[at + 1..prompt.len().min(end + 1)])?;
            at = end;
            let is_stopped = observe(at).is_break() && at < prompt.len();
            if is_stopped || at == boundary || at == prompt.len() {
                self.keep_snapshot();
            }
            if is_stopped {
                return Ok(Prefilled { reused, is_complete: false });
            }
        }
        Ok(Prefilled { reused, is_complete: true })
    }

    fn check(&self, prompt: &[u32]) -> Result<()> {
        if self.is_broken {
            return Err(Error::value("generate", "an earlier prompt of this session failed; make a new session"));
        }
        if prompt.is_empty() {
            return Err(Error::value("generate", "the prompt is empty; give at least one token"));
        }
        let vocab_size = self.model.lm_head().shape()[0];
        if let Some(token) = prompt.iter().find(|&&token| token as usize >= vocab_size) {
            let why = format!("token {token} is outside the vocabulary of {vocab_size} tokens");
            return Err(Error::value("generate", format!("{why}; use the tokenizer that belongs to the model")));
        }
        Ok(())
    }

    /// Reads one more token.
    ///
    /// # Errors
    /// When it is not in the vocabulary.
    pub fn step(&mut self, token: u32) -> Result<()> {
        self.forward(&[token]).map(drop)
    }

    /// The logits of the next token, `[1, V]`.
    ///
    /// # Errors
    /// When nothing was read.
    pub fn logits(&self) -> Result<Tensor> {
        let hidden = self.hidden.as_ref().ok_or_else(|| Error::value("generate", "no token was read"))?;
        self.model.logits(hidden)
    }

    /// The cache and the hidden state of the last token, `[1, D]`.
    pub(crate) fn into_cache(self) -> Result<(Cache, Tensor)> {
        let hidden = self.hidden.ok_or_else(|| Error::value("generate", "no token was read"))?;
        Ok((self.cache, hidden))
    }

    /// Reads tokens; returns their hidden states, `[T, D]`.
    fn forward(&mut self, tokens: &[u32]) -> Result<Tensor> {
        let hidden = hidden_states(&self.model, tokens, &mut self.cache)
            .and_then(|hidden| Ok((hidden.rows(tokens.len() - 1, 1)?, hidden)));
        match hidden {
            Ok((last, hidden)) => {
                self.hidden = Some(last);
                self.tokens.extend(tokens);
                Ok(hidden)
            }
            Err(error) => {
                self.reset();
                Err(error)
            }
        }
    }

    /// Keeps the log-probabilities of the tokens that follow the first of these hidden states, if they are asked for.
    fn score(&mut self, hidden: &Tensor, next: &[u32]) -> Result<()> {
        let (Some(top), scores) = &mut self.prompt_logprobs else { return Ok(()) };
        let logits = self.model.device().run(|| self.model.logits(hidden)?.to_floats())?;
        for (row, token) in logits.chunks_exact(logits.len() / hidden.shape()[0]).zip(next) {
            scores.push(token_logprob(row, *token, *top)?);
        }
        Ok(())
    }

    /// Forgets everything after a failed forward pass. A cache that came from elsewhere cannot be restored.
    fn reset(&mut self) {
        (self.tokens, self.hidden) = (Vec::new(), None);
        match self.model.cache(1) {
            Ok(cache) if self.prefix_len == 0 => {
                self.snapshots = if self.max_snapshots == 0 { Vec::new() } else { vec![cache.snapshot()] };
                self.cache = cache;
            }
            _ => self.is_broken = true,
        }
    }

    /// Trims the cache to the first `tokens` tokens, or to fewer where no snapshot is there. Returns how many are left.
    fn rewind(&mut self, tokens: usize) -> Result<usize> {
        if tokens == self.tokens.len() {
            return Ok(tokens);
        }
        self.snapshots.retain(|snapshot| snapshot.offset() <= self.prefix_len + tokens);
        if self.cache.is_trimmable() {
            self.cache.trim_to(self.prefix_len + tokens);
        } else {
            let none =
                || Error::value("generate", "the session keeps no snapshots; make a new session for this prompt");
            self.cache.restore(self.snapshots.last().ok_or_else(none)?)?;
        }
        let left = self.cache.offset() - self.prefix_len;
        self.tokens.truncate(left);
        self.hidden = None;
        Ok(left)
    }

    fn keep_snapshot(&mut self) {
        if self.max_snapshots == 0 || self.cache.is_trimmable() {
            return;
        }
        self.snapshots.push(self.cache.snapshot());
        if self.snapshots.len() > self.max_snapshots {
            // the first stays; of the others the one that leaves the smallest gap is dropped
            let gap = |i: &usize| self.snapshots[i + 1].offset() - self.snapshots[i - 1].offset();
            if let Some(least) = (1..self.snapshots.len() - 1).min_by_key(gap) {
                self.snapshots.remove(least);
            }
        }
    }
}

/// Prompt tokens per forward pass on a device: more where more threads share them.
fn prefill_step_size(device: &Device) -> usize {
    match device {
        // whole chunks of the delta rule
        Device::Cpu(cpu) => (32 * cpu.threads()).clamp(MIN_PREFILL_STEP, SNAPSHOT_INTERVAL).next_multiple_of(64),
        Device::Gpu(_) => SNAPSHOT_INTERVAL,
    }
}

/// The hidden states of these tokens, `[T, D]`.
fn hidden_states(model: &ModelRef<'_>, ids: &[u32], cache: &mut Cache) -> Result<Tensor> {
    let ids = Tensor::from_slice(ids, [1, ids.len()], model.device())?;
    let hidden = model.device().run(|| model.forward_cached(&ids, cache))?;
    hidden.reshape([hidden.shape()[1], hidden.shape()[2]])
}
