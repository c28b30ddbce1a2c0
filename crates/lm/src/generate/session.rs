//! A model and what it has read: a prompt that begins like the one before is not read again.

use super::sampler::{Likely, Sampler};
use crate::cache::{Cache, Snapshot};
use crate::model::LanguageModel;
use alluvium_core::{Device, Error, Result, Tensor};
use alluvium_ops::concat;
use std::num::NonZeroUsize;

/// Tokens of a prompt between two snapshots, unless more are read at once.
const PREFILL: usize = 512;
/// Tokens of a prompt that a few threads read at once: enough for nearly full speed, few enough for their memory.
const AT_ONCE: usize = 128;
/// Snapshots that a session keeps: each holds the states of all linear layers.
const SNAPSHOTS: usize = 8;

/// A model with the cache of the tokens it has read.
///
/// A recurrent state cannot be trimmed, so the session keeps a [`Snapshot`] of it at regular intervals and at the end of
/// each prompt. A new prompt continues from the longest snapshot that is a prefix of it.
pub struct Session<'a> {
    model: &'a dyn LanguageModel,
    cache: Cache,
    /// The tokens in the cache, as far as they are known.
    tokens: Vec<u32>,
    /// Tokens at the beginning of the cache that are not in `tokens`: from a file.
    before: usize,
    snapshots: Vec<Snapshot>,
    /// Tokens of a prompt that are read at once.
    at_once: usize,
    /// How many of those are kept, at most.
    most: usize,
    /// After the last token, `[1, D]`.
    hidden: Option<Tensor>,
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session of {} tokens", self.cache.offset())
    }
}

impl<'a> Session<'a> {
    /// Of a model that has read nothing.
    ///
    /// # Errors
    /// When the model refuses a cache.
    pub fn new(model: &'a dyn LanguageModel) -> Result<Self> {
        Ok(Self::resume(model, model.cache(1)?))
    }

    /// Of a model whose cache comes from elsewhere: prompts follow what it has read.
    pub fn resume(model: &'a dyn LanguageModel, cache: Cache) -> Self {
        let (before, snapshots) = (cache.offset(), vec![cache.snapshot()]);
        let at_once = at_once(model.device());
        Session { model, cache, tokens: Vec::new(), before, snapshots, at_once, most: SNAPSHOTS, hidden: None }
    }

    /// Sets the number of prompt tokens per forward pass: fewer take less memory, more may be faster. By default a GPU reads
    /// 512, a CPU 128, or 32 per thread with more than four threads, up to 512.
    pub fn reading(self, at_once: Option<NonZeroUsize>) -> Self {
        Session { at_once: at_once.map_or(self.at_once, NonZeroUsize::get), ..self }
    }

    /// The same for a single prompt: without the snapshots, each as large as the states of all linear layers, that only
    /// another prompt would go on from.
    pub fn for_one_prompt(self) -> Self {
        Session { snapshots: Vec::new(), most: 0, ..self }
    }

    /// What has been read since the session began.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What the model remembers.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Reads a prompt from the session's beginning, but for what it begins with and was read before: the number of those
    /// tokens.
    ///
    /// # Errors
    /// When the prompt is empty or has an id outside the vocabulary. When a session
    /// [for one prompt](Session::for_one_prompt) of a model with a recurrent state gets another.
    pub fn read(&mut self, prompt: &[u32]) -> Result<usize> {
        if prompt.is_empty() {
            return Err(Error::value("generate", "the prompt is empty; give at least one token"));
        }
        let vocab_size = self.model.lm_head().shape()[0];
        if let Some(token) = prompt.iter().find(|&&token| token as usize >= vocab_size) {
            let why = format!("token {token} is outside the vocabulary of {vocab_size} tokens");
            return Err(Error::value("generate", format!("{why}; use the tokenizer that belongs to the model")));
        }
        let same = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // the last token is read again where all are known: what follows it is not kept
        let known = self.rewind(same.min(prompt.len() - 1))?;
        let mut at = known;
        let stretch = PREFILL.max(self.at_once);
        while at < prompt.len() {
            let end = (at - at % stretch).saturating_add(stretch).min(prompt.len());
            for tokens in prompt[at..end].chunks(self.at_once) {
                self.take(tokens)?;
            }
            at = end;
            self.keep_snapshot();
        }
        Ok(known)
    }

    /// Reads one more token.
    ///
    /// # Errors
    /// When it is not in the vocabulary.
    pub fn step(&mut self, token: u32) -> Result<()> {
        self.take(&[token])
    }

    /// The logits of the next token, `[1, V]`.
    ///
    /// # Errors
    /// When nothing was read.
    pub fn logits(&self) -> Result<Tensor> {
        let hidden = self.hidden.as_ref().ok_or_else(|| Error::value("generate", "no token was read"))?;
        self.model.logits(hidden)
    }

    /// Reads the last token where there is one and chooses the next: all of it where the device's threads are.
    pub(crate) fn choose(&mut self, sampler: &mut Sampler, last: Option<u32>) -> Result<(u32, Option<Likely>)> {
        self.model.device().run(|| {
            last.map_or(Ok(()), |token| self.step(token))?;
            sampler.next(&self.logits()?, self.tokens(), 0)
        })
    }

    fn take(&mut self, tokens: &[u32]) -> Result<()> {
        self.hidden = Some(last(self.model, tokens, &mut self.cache)?);
        self.tokens.extend(tokens);
        Ok(())
    }

    /// Forgets all but the first `most` tokens, or as few more as the snapshots allow; how many are left.
    fn rewind(&mut self, most: usize) -> Result<usize> {
        if most == self.tokens.len() {
            return Ok(most);
        }
        self.snapshots.retain(|snapshot| snapshot.offset() <= self.before + most);
        if self.cache.forgets() {
            self.cache.truncate(self.before + most);
        } else {
            let none = || Error::value("generate", "the session was made for one prompt; start another for this one");
            self.cache.restore(self.snapshots.last().ok_or_else(none)?)?;
        }
        let left = self.cache.offset() - self.before;
        self.tokens.truncate(left);
        self.hidden = None;
        Ok(left)
    }

    fn keep_snapshot(&mut self) {
        if self.most == 0 || self.cache.forgets() {
            return;
        }
        self.snapshots.push(self.cache.snapshot());
        if self.snapshots.len() > self.most {
            // the first stays; of the others the one that leaves the smallest gap goes
            let gap = |i: &usize| self.snapshots[i + 1].offset() - self.snapshots[i - 1].offset();
            if let Some(least) = (1..self.snapshots.len() - 1).min_by_key(gap) {
                self.snapshots.remove(least);
            }
        }
    }
}

/// Tokens of a prompt that a device reads at once: more where there are more threads to share them.
fn at_once(device: &Device) -> usize {
    match device {
        Device::Cpu(cpu) => (32 * cpu.threads()).clamp(AT_ONCE, PREFILL),
        Device::Gpu(_) => PREFILL,
    }
}

/// What is known after the last of these tokens, `[1, D]`.
fn last(model: &dyn LanguageModel, ids: &[u32], cache: &mut Cache) -> Result<Tensor> {
    let ids = Tensor::from_slice(ids, [1, ids.len()], model.device())?;
    let hidden = model.device().run(|| model.forward_cached(&ids, cache))?;
    let [tokens, width] = [hidden.shape()[1], hidden.shape()[2]];
    hidden.reshape([tokens, width])?.rows(tokens - 1, 1)
}

/// Several sequences that step together.
pub(crate) struct Batched<'a> {
    model: &'a dyn LanguageModel,
    cache: Cache,
    /// `[B, D]`.
    hidden: Tensor,
    /// Which prompt each row belongs to.
    places: Vec<usize>,
}

impl<'a> Batched<'a> {
    /// Reads each prompt by itself.
    pub(crate) fn read(model: &'a dyn LanguageModel, prompts: &[Vec<u32>]) -> Result<Self> {
        let (mut caches, mut rows) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let mut session = Session::new(model)?.for_one_prompt();
            session.read(prompt)?;
            rows.extend(session.hidden);
            caches.push(session.cache);
        }
        if rows.is_empty() {
            return Err(Error::value("generate", "there is no prompt; give at least one"));
        }
        let hidden = concat(&rows.iter().collect::<Vec<_>>(), 0)?;
        Ok(Batched { model, cache: Cache::stack(caches)?, hidden, places: (0..prompts.len()).collect() })
    }

    pub(crate) fn places(&self) -> &[usize] {
        &self.places
    }

    /// `[B, V]`.
    pub(crate) fn logits(&self) -> Result<Tensor> {
        self.model.logits(&self.hidden)
    }

    /// Keeps these rows, each of which reads one more token.
    pub(crate) fn step(&mut self, rows: &[usize], tokens: &[u32]) -> Result<()> {
        if rows.len() < self.places.len() {
            self.cache.keep(rows)?;
            self.places = rows.iter().map(|&row| self.places[row]).collect();
        }
        let ids = Tensor::from_slice(tokens, [tokens.len(), 1], self.model.device())?;
        let hidden = self.model.device().run(|| self.model.forward_cached(&ids, &mut self.cache))?;
        self.hidden = hidden.reshape([tokens.len(), hidden.shape().last()])?;
        Ok(())
    }
}
