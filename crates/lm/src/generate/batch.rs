//! Several sequences that are generated together.

use super::decoding::{Decoding, GeneratedToken, Generation};
use super::options::GenerateOptions;
use super::session::Session;
use crate::cache::Cache;
use crate::model::ModelRef;
use crate::tokenizer::Tokenizer;
use alluvium_core::{Error, Result, Tensor};
use alluvium_ops::concat;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// A prompt and what to generate after it.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The token ids of the prompt.
    pub prompt: Vec<u32>,
    /// What to generate and when to stop.
    pub options: GenerateOptions,
}

impl Request {
    /// A request.
    pub fn new(prompt: impl Into<Vec<u32>>, options: GenerateOptions) -> Self {
        Request { prompt: prompt.into(), options }
    }
}

/// Completes several requests together. Each completion is the one that [`generate`](super::generate) gives for the
/// request alone. `on_token` receives the index of the request and its next token; a `Break` ends that request.
///
/// # Errors
/// As [`generate`](super::generate), and when there are no requests.
pub fn generate_batch<'m>(
    model: impl Into<ModelRef<'m>>,
    tokenizer: Option<&'m Tokenizer>,
    requests: &[Request],
    on_token: &mut dyn FnMut(usize, &GeneratedToken) -> Result<ControlFlow<()>>,
) -> Result<Vec<Generation>> {
    if requests.is_empty() {
        return Err(Error::value("generate", "there are no requests; give at least one"));
    }
    let mut batch = GenerationBatch::new(model, tokenizer);
    let ids = requests.iter().map(|request| batch.add(request)).collect::<Result<Vec<_>>>()?;
    while !batch.is_empty() {
        for (id, token) in batch.step()? {
            if on_token(id, &token?)?.is_break() {
                batch.stop(id);
            }
        }
    }
    let completion = |id| batch.remove(id).ok_or_else(|| Error::value("generate", "a completion is missing"));
    ids.into_iter().map(completion).collect()
}

/// Sequences that are generated together: continuous batching. Sequences join and leave between steps; nothing is
/// padded.
///
/// ```no_run
/// # use alluvium_lm::{GenerationBatch, Request, GenerateOptions, load};
/// # let loaded = load("model".as_ref(), &alluvium_core::Device::cpu())?;
/// # let tokenizer = loaded.tokenizer.as_ref();
/// let mut batch = GenerationBatch::new(loaded.model.as_ref(), tokenizer);
/// let id = batch.add(&Request::new([1, 2, 3], GenerateOptions::default()))?;
/// while !batch.is_empty() {
///     for (id, token) in batch.step()? {
///         print!("{}", token?.text);
///     }
/// }
/// let generation = batch.remove(id);
/// # Ok::<(), alluvium_core::Error>(())
/// ```
pub struct GenerationBatch<'m> {
    model: ModelRef<'m>,
    tokenizer: Option<&'m Tokenizer>,
    /// The sequences that are generated.
    active: Vec<Sequence<'m>>,
    /// Their caches as one, with a row for each sequence of the last step.
    cache: Option<Cache>,
    done: BTreeMap<usize, Generation>,
    next_id: usize,
}

struct Sequence<'m> {
    id: usize,
    decoding: Decoding<'m>,
    place: Place,
}

/// Where the state of a sequence is.
enum Place {
    /// It has read its prompt: its own cache, and the hidden state of the last token, `[1, D]`.
    Joining(Box<Cache>, Tensor),
    /// A row of the batch's cache, which has read all tokens but the last one.
    Row(usize),
}

impl std::fmt::Debug for GenerationBatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GenerationBatch of {} sequences", self.active.len())
    }
}

impl<'m> GenerationBatch<'m> {
    /// A batch without sequences. Without a tokenizer the completions have tokens but no text.
    pub fn new(model: impl Into<ModelRef<'m>>, tokenizer: Option<&'m Tokenizer>) -> Self {
        let (active, done) = (Vec::new(), BTreeMap::new());
        GenerationBatch { model: model.into(), tokenizer, active, cache: None, done, next_id: 0 }
    }

    /// Reads the prompt of a request, which joins the batch at the next step. Returns its id. Ids count from 0.
    ///
    /// # Errors
    /// As [`Session::prefill`], and when there are stop texts but no tokenizer. The batch is as before.
    pub fn add(&mut self, request: &Request) -> Result<usize> {
        let mut decoding = Decoding::new(self.tokenizer, &request.prompt, &request.options)?;
        let mut session = Session::new(self.model.clone())?.without_snapshots();
        session.set_prompt_logprobs(request.options.prompt_logprobs);
        session.prefill(&request.prompt)?;
        decoding.set_prompt_logprobs(session.take_prompt_logprobs());
        self.join(session, decoding)
    }

    /// Adds a sequence whose session has read the prompt.
    ///
    /// # Errors
    /// When the session has read nothing.
    pub(crate) fn join(&mut self, session: Session<'m>, decoding: Decoding<'m>) -> Result<usize> {
        let (cache, hidden) = session.into_cache()?;
        let id = self.next_id;
        self.next_id += 1;
        match decoding.is_finished() {
            true => drop(self.done.insert(id, decoding.into_generation())),
            false => {
                let place = Place::Joining(Box::new(cache), hidden);
                self.active.push(Sequence { id, decoding, place });
            }
        }
        Ok(id)
    }

    /// Whether no sequence is generated.
    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// The number of sequences that are generated.
    pub(crate) fn len(&self) -> usize {
        self.active.len()
    }

    /// Whether a sequence ended and its completion was not taken yet.
    pub(crate) fn has_ended(&self, id: usize) -> bool {
        self.done.contains_key(&id)
    }

    /// Ends a sequence; [`GenerationBatch::remove`] returns what was generated.
    pub fn stop(&mut self, id: usize) {
        if let Some(at) = self.active.iter().position(|sequence| sequence.id == id) {
            self.done.insert(id, self.active.remove(at).decoding.into_generation());
        }
    }

    /// Takes the completion of a sequence out of the batch, ended or not.
    pub fn remove(&mut self, id: usize) -> Option<Generation> {
        self.stop(id);
        self.done.remove(&id)
    }

    /// Generates one token of each sequence. A sequence that cannot go on, because its logits are not finite or the
    /// tokenizer fails, ends with its error; the others are not affected.
    ///
    /// # Errors
    /// When the forward pass fails. Every sequence has ended then.
    pub fn step(&mut self) -> Result<Vec<(usize, Result<GeneratedToken>)>> {
        let device = self.model.device().clone();
        let tokens = device.run(|| {
            let logits = self.forward()?;
            let choose = |(row, sequence): (usize, &mut Sequence<'m>)| {
                sequence.place = Place::Row(row);
                (sequence.id, sequence.decoding.next(&logits, row))
            };
            Ok(self.active.iter_mut().enumerate().map(choose).collect::<Vec<_>>())
        });
        match &tokens {
            Ok(tokens) => {
                for (id, token) in tokens {
                    if token.as_ref().map_or(true, |token| token.finish_reason.is_some()) {
                        self.stop(*id);
                    }
                }
            }
            Err(_) => {
                let ids: Vec<usize> = self.active.iter().map(|sequence| sequence.id).collect();
                ids.into_iter().for_each(|id| self.stop(id));
            }
        }
        if self.active.is_empty() {
            self.cache = None;
        }
        tokens
    }

    /// Reads the last token of each sequence and merges the caches of those that join: the logits of all, `[B, V]`.
    fn forward(&mut self) -> Result<Tensor> {
        let row = |sequence: &Sequence<'_>| match sequence.place {
            Place::Row(row) => Some((row, sequence.decoding.last_token()?)),
            Place::Joining(..) => None,
        };
        let (rows, last): (Vec<usize>, Vec<u32>) = self.active.iter().filter_map(row).unzip();
        let (mut caches, mut hidden) = (Vec::new(), Vec::new());
        if let Some(mut cache) = self.cache.take().filter(|_| !rows.is_empty()) {
            if rows.len() < cache.offsets().len() {
                cache.select(&rows)?;
            }
            let ids = Tensor::from_slice(&last, [last.len(), 1], self.model.device())?;
            let x = self.model.forward_cached(&ids, &mut cache)?;
            hidden.push(x.reshape([last.len(), x.shape().last()])?);
            caches.push(cache);
        }
        // sequences join at the end, so those with a row come first and in the order of their rows
        for sequence in &mut self.active {
            if let Place::Joining(..) = sequence.place {
                let Place::Joining(cache, last) = std::mem::replace(&mut sequence.place, Place::Row(0)) else {
                    continue;
                };
                caches.push(*cache);
                hidden.push(last);
            }
        }
        if hidden.is_empty() {
            return Err(Error::value("generate", "the batch is empty; add a request"));
        }
        self.cache = Some(if caches.len() == 1 { caches.remove(0) } else { Cache::merge(caches)? });
        self.model.logits(&concat(&hidden.iter().collect::<Vec<_>>(), 0)?)
    }
}
