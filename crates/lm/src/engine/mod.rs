//! A thread that completes requests as they come: continuous batching, prompts in pieces, shared prefixes.
//!
//! Between two steps of the running sequences the engine reads one piece of the next prompt, so a long prompt does not
//! stop them. The states after a prompt are kept at a multiple of 64 tokens, where the delta rule's chunks end:
//! a prompt that begins with the same tokens continues there. Products of several rows sum in another order than those
//! of one row, so log-probabilities differ by roundings of f32 from those of a request that runs alone and is read in
//! other pieces.

mod prefix_cache;

use self::prefix_cache::PrefixCache;
use crate::generate::decoding::Decoding;
use crate::generate::{GeneratedToken, Generation, GenerationBatch, Request, Session};
use crate::model::{LanguageModel, ModelRef};
use crate::tokenizer::Tokenizer;
use alluvium_core::{Error, Result};
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Tokens of a chunk of the delta rule. States are kept, and prompts are cut, at multiples of it.
pub(crate) const CHUNK: usize = 64;

/// The limits of an [`Engine`].
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Sequences that are generated together.
    pub max_sequences: usize,
    /// Requests that wait; further ones are refused.
    pub max_queue: usize,
    /// Bytes of states and caches that are kept for prompts with a common beginning; 0 keeps none.
    pub prefix_cache_bytes: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { max_sequences: 8, max_queue: 256, prefix_cache_bytes: 1 << 30 }
    }
}

/// What happens to a request.
#[derive(Debug)]
pub enum Event {
    /// The prompt was read; this many of its tokens were in the prefix cache.
    Started {
        /// Tokens of the prompt that were not read again.
        reused_tokens: usize,
    },
    /// The next token.
    Token(GeneratedToken),
    /// The completion ended. It is the last event.
    Finished(Generation),
    /// The request failed. It is the last event.
    Failed(Error),
}

/// Receives the events of a request, on the engine's thread: it must not block.
pub trait EventSink: Send {
    /// Takes an event. `Break` cancels the request.
    fn send(&mut self, event: Event) -> ControlFlow<()>;

    /// Whether nobody waits for the events any more; a request that waits or is read is then dropped.
    fn is_closed(&self) -> bool {
        false
    }
}

impl EventSink for std::sync::mpsc::Sender<Event> {
    fn send(&mut self, event: Event) -> ControlFlow<()> {
        match std::sync::mpsc::Sender::send(self, event) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// [`EngineOptions::max_queue`] requests wait.
    QueueFull,
    /// The engine is shutting down.
    ShuttingDown,
}

/// Counters of an engine since it began, and its load now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that are read or generated.
    pub running: usize,
    /// Requests that ended with a completion.
    pub finished: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Of these, tokens that were in the prefix cache.
    pub reused_tokens: u64,
    /// Generated tokens.
    pub completion_tokens: u64,
    /// Bytes of the prefix cache.
    pub prefix_cache_bytes: usize,
}

/// Completes requests on a thread of its own.
///
/// ```no_run
/// # use alluvium_lm::{GenerateOptions, Request, load, engine::{Engine, EngineOptions, Event}};
/// # use std::sync::Arc;
/// # let loaded = load("model".as_ref(), &alluvium_core::Device::cpu())?;
/// let engine = Engine::new(loaded.model.into(), loaded.tokenizer.map(Arc::new), EngineOptions::default());
/// let (sender, events) = std::sync::mpsc::channel();
/// engine.submit(Request::new([1, 2, 3], GenerateOptions::default()), Box::new(sender)).unwrap();
/// for event in events {
///     if let Event::Token(token) = event {
///         print!("{}", token.text);
///     }
/// }
/// # Ok::<(), alluvium_core::Error>(())
/// ```
pub struct Engine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    max_queue: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    is_closing: bool,
    stats: EngineStats,
}

struct Job {
    request: Request,
    sink: Box<dyn EventSink>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine with {:?}", self.stats())
    }
}

/// Refuses requests and drops those that wait once the engine's thread has ended, a panic included.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closing = true;
        let left = std::mem::take(&mut state.queue);
        drop(state);
        drop(left);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Starts an engine. Without a tokenizer completions have tokens but no text.
    pub fn new(model: Arc<dyn LanguageModel>, tokenizer: Option<Arc<Tokenizer>>, options: EngineOptions) -> Self {
        let shared =
            Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), max_queue: options.max_queue });
        let of_thread = shared.clone();
        let run = move || {
            let _refuses_after = Closing(&of_thread);
            let tokenizer = tokenizer.as_deref();
            Worker::new(&of_thread, model, tokenizer, options).run();
        };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(run).ok();
        if thread.is_none() {
            shared.lock().is_closing = true;
        }
        Engine { shared, thread }
    }

    /// Adds a request to the queue. The sink gets its events, the last of which is [`Event::Finished`] or
    /// [`Event::Failed`], unless it cancels the request.
    ///
    /// # Errors
    /// When the queue is full or the engine is shutting down.
    pub fn submit(&self, request: Request, sink: Box<dyn EventSink>) -> std::result::Result<(), Refusal> {
        let mut state = self.shared.lock();
        if state.is_closing {
            return Err(Refusal::ShuttingDown);
        }
        if state.queue.len() >= self.shared.max_queue {
            // requests whose callers hung up make room
            state.queue.retain(|job| !job.sink.is_closed());
            if state.queue.len() >= self.shared.max_queue {
                return Err(Refusal::QueueFull);
            }
        }
        state.queue.push_back(Job { request, sink });
        state.stats.waiting = state.queue.len();
        self.shared.changed.notify_one();
        Ok(())
    }

    /// The counters.
    pub fn stats(&self) -> EngineStats {
        self.shared.lock().stats
    }

    /// Refuses further requests, finishes those that were taken and ends the thread.
    pub fn shut_down(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // a panic of the thread was reported by it
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    /// As [`Engine::shut_down`].
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// A request whose prompt is read.
struct Joining<'m> {
    request: Request,
    sink: Box<dyn EventSink>,
    session: Session<'m>,
    decoding: Decoding<'m>,
    /// Tokens of the prompt that came from the prefix cache.
    reused: usize,
    /// Where the state is kept: a multiple of [`CHUNK`] before the last token.
    keep_at: usize,
}

/// The state of the engine's thread.
struct Worker<'m> {
    shared: &'m Shared,
    model: ModelRef<'m>,
    tokenizer: Option<&'m Tokenizer>,
    options: EngineOptions,
    batch: GenerationBatch<'m>,
    sinks: BTreeMap<usize, Box<dyn EventSink>>,
    joining: Option<Joining<'m>>,
    prefixes: PrefixCache,
}

impl<'m> Worker<'m> {
    fn new(
        shared: &'m Shared,
        model: Arc<dyn LanguageModel>,
        tokenizer: Option<&'m Tokenizer>,
        options: EngineOptions,
    ) -> Self {
        let model = ModelRef::from(model);
        let batch = GenerationBatch::new(model.clone(), tokenizer);
        let prefixes = PrefixCache::new(options.prefix_cache_bytes);
        Worker { shared, model, tokenizer, options, batch, sinks: BTreeMap::new(), joining: None, prefixes }
    }

    fn run(&mut self) {
        while self.wait() {
            if self.joining.is_none() && self.sinks.len() < self.options.max_sequences.max(1) {
                self.start_next();
            }
            self.read_piece();
            self.step();
        }
    }

    /// Waits until there is work. `false` when there is none and none will come.
    fn wait(&mut self) -> bool {
        let mut state = self.shared.lock();
        state.stats.running = self.sinks.len() + usize::from(self.joining.is_some());
        state.stats.prefix_cache_bytes = self.prefixes.bytes();
        while state.stats.running == 0 && state.queue.is_empty() {
            if state.is_closing {
                return false;
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
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
        let Some(Job { request, mut sink }) = job else { return };
        if sink.is_closed() {
            return self.count(|stats| stats.cancelled += 1);
        }
        match self.join(&request) {
            Ok((session, decoding, reused)) => {
                let keep_at = request.prompt.len().saturating_sub(1) / CHUNK * CHUNK;
                self.joining = Some(Joining { request, sink, session, decoding, reused, keep_at });
            }
            Err(error) => {
                self.count(|stats| stats.failed += 1);
                let _ = sink.send(Event::Failed(error));
            }
        }
    }

    /// A session that begins with the longest prefix of the prompt that is kept.
    fn join(&mut self, request: &Request) -> Result<(Session<'m>, Decoding<'m>, usize)> {
        let mut decoding = Decoding::new(self.tokenizer, &request.prompt, &request.options)?;
        let (session, reused) = match self.prefixes.find(&request.prompt) {
            Some((cache, tokens)) => (Session::with_cache(self.model.clone(), cache), tokens),
            None => (Session::new(self.model.clone())?, 0),
        };
        decoding.set_reused_tokens(reused);
        Ok((session.without_snapshots(), decoding, reused))
    }

    /// Reads one piece of the prompt that is read.
    fn read_piece(&mut self) {
        let Some(mut joining) = self.joining.take() else { return };
        if joining.sink.is_closed() {
            return self.count(|stats| stats.cancelled += 1);
        }
        if !self.sinks.is_empty() {
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

    /// Adds a sequence whose prompt was read to the batch.
    fn begin(&mut self, joining: Joining<'m>) {
        let Joining { request, mut sink, session, decoding, reused, .. } = joining;
        self.count(|stats| {
            stats.prompt_tokens += request.prompt.len() as u64;
            stats.reused_tokens += reused as u64;
        });
        if sink.send(Event::Started { reused_tokens: reused }).is_break() {
            return self.count(|stats| stats.cancelled += 1);
        }
        match self.batch.join(session, decoding) {
            Ok(id) => {
                self.sinks.insert(id, sink);
                // a completion of no tokens has ended already
                self.finish_ended(&[id]);
            }
            Err(error) => {
                self.count(|stats| stats.failed += 1);
                let _ = sink.send(Event::Failed(error));
            }
        }
    }

    /// Generates one token of each sequence.
    fn step(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        match self.batch.step() {
            Ok(tokens) => {
                let ids: Vec<usize> = tokens.iter().map(|(id, _)| *id).collect();
                for (id, token) in tokens {
                    self.deliver(id, token);
                }
                self.finish_ended(&ids);
            }
            Err(error) => {
                for (id, mut sink) in std::mem::take(&mut self.sinks) {
                    drop(self.batch.remove(id));
                    self.count(|stats| stats.failed += 1);
                    let _ = sink.send(Event::Failed(Error::value("generate", error.to_string())));
                }
            }
        }
    }

    /// Sends a token or the error of a sequence.
    fn deliver(&mut self, id: usize, token: Result<GeneratedToken>) {
        let Some(sink) = self.sinks.get_mut(&id) else { return };
        let is_failed = token.is_err();
        let event = match token {
            Ok(token) => Event::Token(token),
            Err(error) => Event::Failed(error),
        };
        if sink.send(event).is_break() || is_failed {
            self.sinks.remove(&id);
            drop(self.batch.remove(id));
            self.count(|stats| if is_failed { stats.failed += 1 } else { stats.cancelled += 1 });
        } else {
            self.count(|stats| stats.completion_tokens += 1);
        }
    }

    /// Sends the completions of those sequences that have ended.
    fn finish_ended(&mut self, ids: &[usize]) {
        for id in ids {
            if !self.batch.has_ended(*id) {
                continue;
            }
            let generation = self.batch.remove(*id);
            if let (Some(mut sink), Some(generation)) = (self.sinks.remove(id), generation) {
                self.count(|stats| stats.finished += 1);
                let _ = sink.send(Event::Finished(generation));
            }
        }
    }
}
