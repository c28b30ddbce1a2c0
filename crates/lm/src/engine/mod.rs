//! A thread that completes requests as they come: continuous batching, prompts in pieces, shared prefixes.
//!
//! Between two steps of the running sequences the engine reads one piece of the next prompt, so a long prompt does not
//! stop them. The states after a prompt are kept at a multiple of 64 tokens, where the delta rule's chunks end:
//! a prompt that begins with the same tokens continues there.
//!
//! **Batch invariance.** A request's tokens and log-probabilities are bit-identical alone and beside others, with and
//! without the prefix cache:
//!
//! | device | holds for |
//! |---|---|
//! | CPU | all models without experts; with experts while prompts have at most 64 tokens |
//! | wgpu | all models without experts |
//! | CUDA | up to 8 sequences of models without experts, as on wgpu |
//!
//! On the CPU they are bit-identical to [`generate`](crate::generate()), too. A row of a product is summed in one order
//! for up to 32 rows, so larger batches take their steps 32 sequences at a time; pieces of prompts have more rows, and
//! each row of those is summed in the order of the general product. A GPU reads the same pieces of a prompt whatever
//! runs beside it.

mod prefix_cache;
mod worker;

use self::worker::Worker;
use crate::generate::{GenerateOptions, GeneratedToken, Generation, Request};
use crate::model::LanguageModel;
use crate::tokenizer::Tokenizer;
use alluvium_core::Error;
use std::collections::VecDeque;
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
    /// The hidden state of the last token, after [`Engine::submit_embedding`]. It is the last event.
    Embedded(Vec<f32>),
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
    /// The engine's thread ended by a panic, or could not be started.
    Stopped,
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
    /// The thread ended, or never began.
    has_ended: bool,
    stats: EngineStats,
}

struct Job {
    request: Request,
    result: JobResult,
    sink: Box<dyn EventSink>,
}

/// What a job is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum JobResult {
    Completion,
    Embedding,
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
        state.has_ended = true;
        state.stats.waiting = 0;
        state.stats.running = 0;
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
            shared.lock().has_ended = true;
        }
        Engine { shared, thread }
    }

    /// Adds a request to the queue. The sink gets its events, the last of which is [`Event::Finished`] or
    /// [`Event::Failed`], unless it cancels the request.
    ///
    /// # Errors
    /// When the queue is full, the engine is shutting down, or its thread has ended.
    pub fn submit(&self, request: Request, sink: Box<dyn EventSink>) -> std::result::Result<(), Refusal> {
        self.add(Job { request, result: JobResult::Completion, sink })
    }

    /// Adds a text whose embedding is wanted: the model's last hidden state at its last token, after the final norm.
    /// The sink gets [`Event::Embedded`] or [`Event::Failed`].
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn submit_embedding(&self, tokens: Vec<u32>, sink: Box<dyn EventSink>) -> std::result::Result<(), Refusal> {
        let request = Request::new(tokens, GenerateOptions { max_tokens: 0, ..GenerateOptions::default() });
        self.add(Job { request, result: JobResult::Embedding, sink })
    }

    fn add(&self, job: Job) -> std::result::Result<(), Refusal> {
        let mut state = self.shared.lock();
        if state.is_closing {
            return Err(Refusal::ShuttingDown);
        }
        if state.has_ended {
            return Err(Refusal::Stopped);
        }
        if state.queue.len() >= self.shared.max_queue {
            // requests whose callers hung up make room
            state.queue.retain(|job| !job.sink.is_closed());
            if state.queue.len() >= self.shared.max_queue {
                return Err(Refusal::QueueFull);
            }
        }
        state.queue.push_back(job);
        state.stats.waiting = state.queue.len();
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Whether the engine's thread runs. A panic ends it; requests are then refused.
    pub fn is_running(&self) -> bool {
        !self.shared.lock().has_ended
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
