//! A run: from text to a model, and on again after it was stopped.

use crate::corpus::{Corpus, Cursor, Packed};
use crate::losses::Losses;
use crate::state::{self, Progress};
use crate::step::{descend, held_out_loss};
use crate::{Found, Metrics, Optimiser, Record, Schedule, Settings, draw};
use alluvium_core::{Device, Error, Result};
use alluvium_lm::{LanguageModel, Tokenizer, initialise, parameter_count};
use alluvium_ops::global_norm;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What happens in a run, as it happens.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A long preparation begins.
    Preparing(&'a str),
    /// The run is about to take its first step.
    Ready(&'a Trainer),
    /// A step was taken.
    Stepped {
        /// Steps done.
        step: u64,
        /// Tokens of the step.
        tokens: usize,
    },
    /// A line for the metrics.
    Measured(&'a Record),
    /// A checkpoint was written.
    Saved(&'a Path),
}

/// What the observer of a run wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Go on.
    Continue,
    /// Save and end.
    Stop,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// After its last step.
    Finished,
    /// Because the observer asked; `resume` goes on.
    Stopped,
}

/// A run and everything it holds.
pub struct Trainer {
    /// The model as it stands.
    pub model: Box<dyn LanguageModel>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// What was found under the data's paths; the texts of training are gone.
    pub found: Found,
    /// Every number of the run.
    pub settings: Settings,
    /// What was measured.
    pub metrics: Metrics,
    /// The loss of token frequencies alone on the held-out tokens.
    pub unigram_loss: Option<f64>,
    /// Tokens of an epoch, and held-out tokens.
    pub corpus_tokens: (usize, usize),
    corpus: Corpus,
    held_out: Vec<Packed>,
    optimiser: Optimiser,
    step: u64,
    tokens: u64,
    cursor: Cursor,
    interval: Interval,
    losses: Losses,
    /// The step of the last checkpoint; none before the first.
    saved: Option<u64>,
    data: Vec<PathBuf>,
    out: PathBuf,
    device: Device,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trainer at step {} in {}", self.step, self.out.display())
    }
}

/// Where a run's text, tokenizer and folder are.
#[derive(Clone, Debug)]
pub struct Places {
    /// Files and folders of text; none are those that the run to resume remembers.
    pub data: Vec<PathBuf>,
    /// An existing tokenizer.json or a folder with one; none trains one.
    pub tokenizer: Option<PathBuf>,
    /// Where the model, the state and the measurements go.
    pub out: PathBuf,
}

/// Settings that may change when a run goes on; the vocabulary is the tokenizer's, whatever was asked for.
const FREE: [&str; 7] =
    ["iters", "steps_per_report", "steps_per_eval", "save_every", "val_batches", "warmup", "vocab_size"];

/// Where the run's text was.
fn remembered(state: &Path, progress: &Progress) -> Result<Vec<PathBuf>> {
    if progress.data.is_empty() {
        return Err(Error::file(state, "it does not say where the text of this run is; give --data"));
    }
    let data: Vec<PathBuf> = progress.data.iter().map(PathBuf::from).collect();
    if let Some(gone) = data.iter().find(|path| !path.exists()) {
        let why = format!("the text of this run was at {}, which is gone; give --data", gone.display());
        return Err(Error::file(state, why));
    }
    Ok(data)
}

impl Trainer {
    /// Prepares a new run in a folder that holds none yet.
    ///
    /// # Errors
    /// When the folder holds a run or a model, the text is too little, or the settings fit no model.
    pub fn begin(
        places: &Places,
        settings: Settings,
        device: &Device,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        claim(&places.out)?;
        let trainer = Self::prepare(places, settings, device, None, tell)?;
        // before the first checkpoint: whoever resumes needs the tokenizer, whatever else a kill leaves
        trainer.tokenizer.save(&places.out)?;
        Ok(trainer)
    }

    /// Goes on where the run in the folder was saved last. `settings` gets the run's own and may change `iters`.
    ///
    /// # Errors
    /// When there is no run, a setting that changes the result differs, or the text is another or no longer there.
    pub fn resume(
        places: &Places,
        change: impl FnOnce(&Settings) -> Result<Settings>,
        device: &Device,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let path = places.out.join(state::FILE);
        let progress = state::progress(&path)?;
        let settings = change(&progress.settings)?;
        let mut differences = progress.settings.differences(&settings);
        differences.retain(|d| !FREE.iter().any(|name| d.split(' ').next() == Some(name)));
        if !differences.is_empty() {
            let why = format!("the run cannot go on with other settings: {}", differences.join("; "));
            return Err(Error::file(&path, why));
        }
        let data = match places.data.is_empty() {
            true => remembered(&path, &progress)?,
            false => places.data.clone(),
        };
        let places = Places { data, tokenizer: Some(places.out.clone()), out: places.out.clone() };
        let mut trainer = Self::prepare(&places, settings, device, Some(&progress), tell)?;
        state::restore(&path, &mut trainer.optimiser, device)?;
        (trainer.step, trainer.tokens, trainer.cursor) = (progress.step, progress.tokens, progress.cursor());
        if !trainer.corpus.has(&trainer.cursor) {
            return Err(Error::file(&path, "it stands at a place that the text does not have; begin again"));
        }
        trainer.saved = Some(progress.step);
        (trainer.losses.sum, trainer.losses.steps) = progress.unreported;
        Ok(trainer)
    }

    fn prepare(
        places: &Places,
        mut settings: Settings,
        device: &Device,
        before: Option<&Progress>,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        tell(Event::Preparing("reading text"));
        let data = places.data.iter().map(|path| std::path::absolute(path).map_err(Error::io(path, "read")));
        let data: Vec<PathBuf> = data.collect::<Result<_>>()?;
        let mut found = crate::read(&places.data, Some(&places.out), settings.held_out, settings.seed)?;
        let tokenizer = match &places.tokenizer {
            Some(path) => Tokenizer::load(path)?,
            None => {
                tell(Event::Preparing("training the tokenizer"));
                let texts = found.pieces.iter().filter(|p| !p.held_out).map(|p| p.text.as_str());
                Tokenizer::train(texts, settings.architecture.vocab_size, &|_| ())?
            }
        };
        settings.architecture.vocab_size = tokenizer.vocab_size();
        tell(Event::Preparing("tokenizing"));
        let end = tokenizer.eos_token_ids().first().copied();
        let documents = |held_out: bool| -> Result<Vec<Vec<u32>>> {
            let encode = |text: &str| tokenizer.encode(text).map(|ids| ids.into_iter().chain(end).collect());
            found.pieces.iter().filter(|p| p.held_out == held_out).map(|p| encode(&p.text)).collect()
        };
        let corpus = Corpus::new(documents(false)?, settings.seed)?;
        if before.is_some_and(|before| before.corpus != corpus.fingerprint()) {
            let why = "the text is not the one this run was begun with; give the same --data, unchanged";
            return Err(Error::file(places.out.join(state::FILE), why));
        }
        let held = documents(true)?;
        let held = if held.is_empty() { None } else { Some(Corpus::new(held, settings.seed)?) };
        found.pieces.retain(|p| p.held_out);

        tell(Event::Preparing("making the model"));
        let config = settings.architecture.config(settings.max_seq_length, end.unwrap_or(0))?;
        let model = match before {
            Some(_) => state::model(&places.out.join(state::FILE), &config, device)?,
            None => initialise(&config, settings.seed, device)?,
        };
        let batch = settings.batch_size * settings.max_seq_length;
        let mut held_out = held.as_ref().map_or(Vec::new(), |held| held.once(batch, settings.max_seq_length));
        if settings.val_batches > 0 {
            held_out.truncate(settings.val_batches);
        }
        Ok(Trainer {
            unigram_loss: held.as_ref().map(|held| corpus.unigram_loss(held, settings.architecture.vocab_size)),
            corpus_tokens: (corpus.tokens(), held.map_or(0, |held| held.tokens())),
            metrics: Metrics::open(&places.out.join("metrics.jsonl"), before.map_or(0, |before| before.step))?,
            optimiser: Optimiser::new(settings.optimizer, settings.adamw()),
            out: places.out.clone(),
            device: device.clone(),
            step: 0,
            tokens: 0,
            cursor: Cursor::default(),
            interval: Interval::new(),
            losses: Losses::default(),
            saved: None,
            data,
            model,
            tokenizer,
            found,
            settings,
            corpus,
            held_out,
        })
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The number of parameters.
    pub fn parameters(&self) -> usize {
        parameter_count(self.model.as_ref())
    }

    /// Trains to the end, or until the observer says stop; then saves.
    ///
    /// # Errors
    /// When the loss is no number, memory or disk run out. What was saved last is intact.
    pub fn run(&mut self, observe: &mut dyn FnMut(Event<'_>) -> Outcome) -> Result<Ended> {
        observe(Event::Ready(self));
        self.interval.started = Instant::now();
        let mut whole = false;
        while self.step < self.settings.iters {
            let tokens = self.one_step()?;
            self.interval.tokens += tokens;
            let wish = observe(Event::Stepped { step: self.step, tokens });
            let last = self.step == self.settings.iters;
            let due = |every: u64| last || self.step.is_multiple_of(every);
            let (report, evaluate, save) =
                (due(self.settings.steps_per_report), due(self.settings.steps_per_eval), due(self.settings.save_every));
            if report {
                let record = self.report()?;
                observe(Event::Measured(&record));
            }
            if evaluate && !self.held_out.is_empty() {
                let started = Instant::now();
                let record = self.evaluate()?;
                self.interval.pause(started);
                observe(Event::Measured(&record));
            }
            whole = save || wish == Outcome::Stop;
            if whole {
                self.save()?;
                observe(Event::Saved(&self.out));
            }
            if wish == Outcome::Stop && !last {
                return Ok(Ended::Stopped);
            }
        }
        if !whole {
            // a kill may have come between the last state and its model
            self.save()?;
        }
        Ok(Ended::Finished)
    }

    fn one_step(&mut self) -> Result<usize> {
        let settings = &self.settings;
        let length = settings.batch_size * settings.max_seq_length;
        let batches: Vec<Packed> = (0..settings.grad_accumulation_steps)
            .map(|_| self.corpus.next(&mut self.cursor, length, settings.max_seq_length))
            .collect();
        let step = self.step + 1;
        let model = self.model.as_mut();
        let measures = descend(model, &mut self.optimiser, &batches, settings, step, &self.device)?;
        self.losses.push(step, measures);
        if self.device.reads_at_once() {
            self.settle()?;
        }
        let tokens: usize = batches.iter().map(|b| b.inputs.len()).sum();
        (self.step, self.tokens) = (step, self.tokens + tokens as u64);
        Ok(tokens)
    }

    /// Reads the losses that were not read yet.
    fn settle(&mut self) -> Result<()> {
        match self.losses.settle()? {
            Some(diverged) => Err(self.diverged(&diverged.to_string())),
            None => Ok(()),
        }
    }

    fn diverged(&self, what: &str) -> Error {
        let left = match self.saved {
            Some(step) => format!("the checkpoint of step {step} is intact"),
            None => "there is no checkpoint yet".to_owned(),
        };
        Error::value("train", format!("{what}; {left}; begin again with a lower learning rate, or look at the data"))
    }

    fn report(&mut self) -> Result<Record> {
        self.settle()?;
        let (loss, speed) = (self.losses.take_mean(), self.interval.finish());
        let settings = &self.settings;
        let schedule = Schedule { peak: settings.learning_rate, warmup: settings.warmup, steps: settings.iters };
        let record = Record {
            loss: Some(loss),
            learning_rate: Some(schedule.rate(self.step)),
            grad_norm: Some(self.losses.norm),
            tokens_per_second: Some(speed),
            peak_memory: Some(self.device.peak_memory()),
            ..self.record()
        };
        self.metrics.push(record.clone())?;
        Ok(record)
    }

    fn evaluate(&mut self) -> Result<Record> {
        let loss = held_out_loss(self.model.as_ref(), &self.held_out, &self.settings, &self.device)?;
        let record = Record { held_out_loss: Some(loss), ..self.record() };
        self.metrics.push(record.clone())?;
        Ok(record)
    }

    fn record(&self) -> Record {
        Record { step: self.step, tokens: self.tokens, ..Record::default() }
    }

    /// Writes the state, the model in MLX's layout and the loss curve; each file whole or not at all.
    ///
    /// # Errors
    /// When a file cannot be written or a parameter is no number; the checkpoint before stays.
    pub fn save(&mut self) -> Result<()> {
        self.settle()?;
        let mut parameters = Vec::new();
        self.model.visit("", &mut |_, parameter| parameters.push(parameter));
        if !global_norm(&parameters)?.item()?.is_finite() {
            return Err(self.diverged(&format!("parameters are no numbers after step {}", self.step)));
        }
        let progress = Progress {
            step: self.step,
            tokens: self.tokens,
            epoch: self.cursor.epoch,
            document: self.cursor.document,
            token: self.cursor.token,
            corpus: self.corpus.fingerprint(),
            data: self
                .data
                .iter()
                .map(|path| path.to_str().map(str::to_owned))
                .collect::<Option<_>>()
                .unwrap_or_default(),
            unreported: (self.losses.sum, self.losses.steps),
            settings: self.settings.clone(),
        };
        // the state first: a kill between the two leaves a run that goes on, never a model without one
        state::save(&self.out.join(state::FILE), self.model.as_ref(), &self.optimiser, &progress)?;
        alluvium_lm::save(self.model.as_ref(), Some(&self.tokenizer), &self.out)?;
        self.saved = Some(self.step);
        draw(&self.out.join("loss.svg"), &self.metrics.records, self.unigram_loss)
    }
}

/// Makes the folder of a new run; one that holds a run or a model is refused.
pub(crate) fn claim(out: &Path) -> Result<()> {
    for name in [state::FILE, "model.safetensors"] {
        if out.join(name).exists() {
            let why = format!("it already holds {name}; --resume continues a run, or choose another folder");
            return Err(Error::file(out, why));
        }
    }
    std::fs::create_dir_all(out).map_err(Error::io(out, "create"))
}

/// Time between two reports, and the tokens in it.
struct Interval {
    started: Instant,
    tokens: usize,
}

impl Interval {
    fn new() -> Self {
        Interval { started: Instant::now(), tokens: 0 }
    }

    /// Time since `from` is not training.
    fn pause(&mut self, from: Instant) {
        self.started += from.elapsed();
    }

    /// The tokens a second; begins anew.
    fn finish(&mut self) -> f64 {
        let done = std::mem::replace(self, Interval::new());
        done.tokens as f64 / done.started.elapsed().as_secs_f64().max(1e-9)
    }
}
