//! The engine's thread.

use super::prefix_cache::PrefixCache;
use super::{CHUNK, EngineOptions, EngineStats, Event, EventSink, Job, JobResult, Shared};
use crate::generate::decoding::Decoding;
use crate::generate::session::MIN_PREFILL_TAIL;
use crate::generate::{GeneratedToken, GenerationBatch, Request, Session};
use crate::model::{LanguageModel, ModelRef};
use crate::tokenizer::Tokenizer;
use alluvium_core::{Device, Error, Result};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Sequences of a batch: rows of a product that are summed in one order, whatever their number.
const MAX_BATCH: usize = 32;
/// Tokens of a piece of a prompt on a GPU. States are kept at multiples of it there.
const GPU_PIECE: usize = 256;

/// Rounds of the engine between two returns of free memory to the system. Requests of random lengths leave free blocks
/// of more and more sizes in the pool, each as many as were ever in use at once.
const TRIM_ROUNDS: usize = 1024;
/// The time without requests after which free memory is returned, too.
const IDLE: Duration = Duration::from_secs(1);

/// A request whose prompt is read.
struct Joining<'m> {
    request: Request,
    sink: Box<dyn EventSink>,
    session: Session<'m>,
    decoding: Decoding<'m>,
    result: JobResult,
    /// Tokens of the prompt that came from the prefix cache.
    reused: usize,
    /// Where the state is kept: whole pieces that leave more than [`MIN_PREFILL_TAIL`] tokens.
    keep_at: usize,
}

/// The state of the engine's thread.
pub(super) struct Worker<'m> {
    shared: &'m Shared,
    model: ModelRef<'m>,
    tokenizer: Option<&'m Tokenizer>,
    options: EngineOptions,
    /// Sequences that are generated together, at most [`MAX_BATCH`] in each.
    batches: Vec<GenerationBatch<'m>>,
    /// By the batch of a sequence and its id there.
    sinks: BTreeMap<(usize, usize), Box<dyn EventSink>>,
    joining: Option<Joining<'m>>,
    prefixes: PrefixCache,
    /// Since free memory was returned.
    rounds: usize,
}

impl<'m> Worker<'m> {
    pub(super) fn new(
        shared: &'m Shared,
        model: Arc<dyn LanguageModel>,
        tokenizer: Option<&'m Tokenizer>,
        options: EngineOptions,
    ) -> Self {
        let model = ModelRef::from(model);
        let prefixes = PrefixCache::new(options.prefix_cache_bytes);
        let (batches, sinks) = (Vec::new(), BTreeMap::new());
        Worker { shared, model, tokenizer, options, batches, sinks, joining: None, prefixes, rounds: 0 }
    }

    pub(super) fn run(&mut self) {
        while self.wait() {
            self.rounds += 1;
            if self.rounds == TRIM_ROUNDS {
                self.trim();
            }
            if self.joining.is_none() && self.sinks.len() < self.options.max_sequences.max(1) {
                self.start_next();
            }
            self.read_piece();
            (0..self.batches.len()).for_each(|batch| self.step(batch));
        }
    }

    /// Returns free memory to the system: that of the CPU's pool, then that of the allocator.
    fn trim(&mut self) {
        self.rounds = 0;
        if let Device::Cpu(cpu) = self.model.device() {
            cpu.memory().trim();
        }
        // glibc keeps what threads have freed in a heap for each of them, and returns its end alone
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: the call changes nothing that is allocated; the allocator takes its own locks.
        unsafe {
            libc::malloc_trim(0);
        }
    }

    /// Waits until there is work. `false` when there is none and none will come.
    fn wait(&mut self) -> bool {
        let shared = self.shared;
        let mut state = shared.lock();
        state.stats.running = self.sinks.len() + usize::from(self.joining.is_some());
        state.stats.prefix_cache_bytes = self.prefixes.bytes();
        while state.stats.running == 0 && state.queue.is_empty() {
            if state.is_closing {
                return false;
            }
            if self.rounds == 0 {
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (woken, timeout) = shared.changed.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if timeout.timed_out() && state.queue.is_empty() {
                drop(state);
                self.trim();
                state = shared.lock();
            }
        }
        true
    }

    fn count(&self, change: impl FnOnce(&mut EngineStats)) {
        change(&mut self.shared.lock().stats);
    }

    /// Takes the next request from the queue.
    fn start_next(&mut self) {
        let job = {
            let mut state = self.shared.lock();
            let job = state.queue.pop_front();
            state.stats.waiting = state.queue.len();
            job
        };
        let Some(Job { request, result, mut sink }) = job else { return };
        if sink.is_closed() {
            return self.count(|stats| stats.cancelled += 1);
        }
        match self.join(&request) {
            Ok((session, decoding, reused)) => {
                let unit = if self.is_cpu() { CHUNK } else { GPU_PIECE };
                // a prompt whose tokens are scored is read in one go: each token is scored by the one before it
                let is_scored = request.options.prompt_logprobs.is_some();
                let kept = if is_scored { 0 } else { request.prompt.len() };
                let keep_at = kept.saturating_sub(MIN_PREFILL_TAIL + 1) / unit * unit;
                self.joining = Some(Joining { request, sink, session, decoding, result, reused, keep_at });
            }
            Err(error) => {
                self.count(|stats| stats.failed += 1);
                let _ = sink.send(Event::Failed(error));
            }
        }
    }

    fn is_cpu(&self) -> bool {
        matches!(self.model.device(), Device::Cpu(_))
    }

    /// A session that begins with the longest prefix of the prompt that is kept.
    fn join(&mut self, request: &Request) -> Result<(Session<'m>, Decoding<'m>, usize)> {
        let mut decoding = Decoding::new(self.tokenizer, &request.prompt, &request.options)?;
        let scores = request.options.prompt_logprobs;
        let (mut session, reused) = match self.prefixes.find(&request.prompt).filter(|_| scores.is_none()) {
            Some((cache, tokens)) => (Session::with_cache(self.model.clone(), cache), tokens),
            None => (Session::new(self.model.clone())?, 0),
        };
        session.set_prompt_logprobs(scores);
        decoding.set_reused_tokens(reused);
        Ok((session.without_snapshots(), decoding, reused))
    }

    /// Reads one piece of the prompt that is read.
    fn read_piece(&mut self) {
        let Some(mut joining) = self.joining.take() else { return };
        if joining.sink.is_closed() {
            return self.count(|stats| stats.cancelled += 1);
        }
        if !self.is_cpu() {
            joining.session = joining.session.with_prefill_step_size(NonZeroUsize::new(GPU_PIECE));
        } else if !self.sinks.is_empty() {
            // the others wait for this piece
            joining.session = joining.session.with_prefill_step_size(NonZeroUsize::new(CHUNK));
        }
        let Joining { request, session, reused, keep_at, .. } = &mut joining;
        let keeps = *keep_at > *reused && session.tokens().len() + *reused < *keep_at;
        let end = if keeps { *keep_at } else { request.prompt.len() };
        let one = &mut |_| ControlFlow::Break(());
        match session.prefill_observed(&request.prompt[*reused..end], one) {
            Ok(read) if read.is_complete && keeps => {
                self.prefixes.insert(&request.prompt[..end], session.cache());
                self.joining = Some(joining);
            }
            Ok(read) if read.is_complete => self.begin(joining),
            Ok(_) => self.joining = Some(joining),
            Err(error) => {
                self.count(|stats| stats.failed += 1);
                let _ = joining.sink.send(Event::Failed(error));
            }
        }
    }

    /// Adds a sequence whose prompt was read to a batch.
    fn begin(&mut self, joining: Joining<'m>) {
        let Joining { request, mut sink, mut session, mut decoding, result, reused, .. } = joining;
        self.count(|stats| {
            stats.prompt_tokens += request.prompt.len() as u64;
            stats.reused_tokens += reused as u64;
        });
        if sink.send(Event::Started { reused_tokens: reused }).is_break() {
            return self.count(|stats| stats.cancelled += 1);
        }
        if result == JobResult::Embedding {
            let event = session.into_cache().and_then(|(_, hidden)| hidden.to_floats());
            self.count(|stats| if event.is_ok() { stats.finished += 1 } else { stats.failed += 1 });
            let _ = sink.send(event.map_or_else(Event::Failed, Event::Embedded));
            return;
        }
        decoding.set_prompt_logprobs(session.take_prompt_logprobs());
        let free = self.batches.iter().position(|batch| batch.len() < MAX_BATCH);
        let at = free.unwrap_or_else(|| {
            self.batches.push(GenerationBatch::new(self.model.clone(), self.tokenizer));
            self.batches.len() - 1
        });
        match self.batches[at].join(session, decoding) {
            Ok(id) => {
                self.sinks.insert((at, id), sink);
                // a completion of no tokens has ended already
                self.finish_ended(&[(at, id)]);
            }
            Err(error) => {
                self.count(|stats| stats.failed += 1);
                let _ = sink.send(Event::Failed(error));
            }
        }
    }

    /// Generates one token of each sequence of a batch.
    fn step(&mut self, batch: usize) {
        if self.batches[batch].is_empty() {
            return;
        }
        match self.batches[batch].step() {
            Ok(tokens) => {
                let ids: Vec<_> = tokens.iter().map(|(id, _)| (batch, *id)).collect();
                for (id, token) in tokens {
                    self.deliver((batch, id), token);
                }
                self.finish_ended(&ids);
            }
            Err(error) => {
                let ids: Vec<_> = self.sinks.keys().copied().filter(|(own, _)| *own == batch).collect();
                for at in ids {
                    drop(self.batches[batch].remove(at.1));
                    self.count(|stats| stats.failed += 1);
                    if let Some(mut sink) = self.sinks.remove(&at) {
                        let _ = sink.send(Event::Failed(Error::value("generate", error.to_string())));
                    }
                }
            }
        }
    }

    /// Sends a token or the error of a sequence.
    fn deliver(&mut self, at: (usize, usize), token: Result<GeneratedToken>) {
        let Some(sink) = self.sinks.get_mut(&at) else { return };
        let is_failed = token.is_err();
        let event = match token {
            Ok(token) => Event::Token(token),
            Err(error) => Event::Failed(error),
        };
        if sink.send(event).is_break() || is_failed {
            self.sinks.remove(&at);
            drop(self.batches[at.0].remove(at.1));
            self.count(|stats| if is_failed { stats.failed += 1 } else { stats.cancelled += 1 });
        } else {
            self.count(|stats| stats.completion_tokens += 1);
        }
    }

    /// Sends the completions of those sequences that have ended.
    fn finish_ended(&mut self, ids: &[(usize, usize)]) {
        for &(batch, id) in ids {
            if !self.batches[batch].has_ended(id) {
                continue;
            }
            let generation = self.batches[batch].remove(id);
            if let (Some(mut sink), Some(generation)) = (self.sinks.remove(&(batch, id)), generation) {
                self.count(|stats| stats.finished += 1);
                let _ = sink.send(Event::Finished(generation));
            }
        }
    }
}
