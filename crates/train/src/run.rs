//! Runs from files: a new model trained on text or on a synthetic task, begun or resumed.

use crate::data::{
    Corpus, Document, SequenceSize, Skipped, Task, TaskData, TextFiles, TokenData, TrainingData, encode, read_text,
    split,
};
use crate::output::Output;
use crate::state::{self, DataSource, Progress};
use crate::trainer::{Event, Observer, Trainer, TrainerParts, Validation, ValidationMetric};
use crate::{Masters, NextToken, Settings};
use alluvium_core::{Device, Error, Result};
use alluvium_lm::{Checkpointing, Config, LanguageModel, Tokenizer, initialize};
use std::path::{Path, PathBuf};

/// The paths of a run.
#[derive(Clone, Debug)]
pub struct RunPaths {
    /// The training data. `None` takes the source of the run that is resumed.
    pub source: Option<DataSource>,
    /// An existing `tokenizer.json`, or a folder with one; `None` trains a tokenizer on the text.
    pub tokenizer: Option<PathBuf>,
    /// Folder of checkpoints and measurements.
    pub out: PathBuf,
}

/// A summary of the text of a run.
#[derive(Clone, Debug)]
pub struct TextSummary {
    /// Files that were read.
    pub files: usize,
    /// Bytes of text.
    pub bytes: usize,
    /// Files that were not read.
    pub skipped: Skipped,
    /// Those among them that look like text in another encoding than UTF-8.
    pub undecodable: Vec<PathBuf>,
    /// Tokens in an epoch.
    pub train_tokens: usize,
    /// Tokens of the validation text.
    pub validation_tokens: usize,
    /// Bytes of the validation text.
    pub validation_bytes: usize,
    /// Validation loss of a model that knows token frequencies alone; `None` without validation text.
    pub unigram_loss: Option<f64>,
    /// The start of a line of the validation text.
    pub sample_prompt: Option<String>,
}

/// A run and what was read for it.
#[derive(Debug)]
pub struct Run {
    /// The training loop.
    pub trainer: Trainer,
    /// The text; `None` for a synthetic task.
    pub text: Option<TextSummary>,
    /// The settings of the run.
    pub settings: Settings,
}

/// Settings that may differ when a run is resumed; `vocab_size` is always the tokenizer's.
const CHANGEABLE_ON_RESUME: [&str; 7] =
    ["iters", "steps_per_report", "steps_per_eval", "save_every", "val_batches", "warmup", "vocab_size"];

impl Run {
    /// Prepares a new run.
    ///
    /// # Errors
    /// When the folder holds a run, a model or files that the run would overwrite, there is too little text, or the
    /// settings fit no model.
    pub fn begin(paths: &RunPaths, settings: Settings, device: &Device, observe: &mut Observer<'_>) -> Result<Self> {
        let source = paths.source.clone().ok_or_else(|| Error::value("train", "no text and no task was given"))?;
        // before the text is read, which may take long, and again once there is something to write
        crate::folder::claim(&paths.out)?;
        let preparation = Preparation { source, tokenizer: paths.tokenizer.clone(), out: &paths.out, device };
        let Prepared { trainer, text, source, settings } = preparation.trainer(settings, None, observe)?;
        let trainer = trainer.with_folder(&paths.out)?.with_source(source);
        let trainer = recorded(trainer, &settings)?;
        Ok(Run { trainer, text, settings })
    }

    /// Resumes the run in a folder at its last checkpoint. `change` gets the settings of the run and returns those to
    /// continue with: intervals, `iters` and `warmup` may differ.
    ///
    /// # Errors
    /// When there is no run, a setting that changes the result differs, or the text is another one or gone.
    pub fn resume(
        paths: &RunPaths,
        change: impl FnOnce(&Settings) -> Result<Settings>,
        device: &Device,
        observe: &mut Observer<'_>,
    ) -> Result<Self> {
        let path = paths.out.join(state::FILE);
        let progress = state::progress(&path)?;
        let before: Settings = progress.settings(&path)?;
        let settings = change(&before)?;
        let mut differences = before.differences(&settings);
        differences.retain(|d| !CHANGEABLE_ON_RESUME.iter().any(|name| d.split(' ').next() == Some(name)));
        if !differences.is_empty() {
            let why = format!("the run cannot be resumed with other settings: {}", differences.join("; "));
            return Err(Error::file(&path, why));
        }
        let source = match &paths.source {
            Some(source) => source.clone(),
            None => remembered(&path, &progress)?,
        };
        let preparation = Preparation { source, tokenizer: Some(paths.out.clone()), out: &paths.out, device };
        let Prepared { trainer, text, source, settings } = preparation.trainer(settings, Some(&progress), observe)?;
        let trainer = trainer.restored(&paths.out, &progress)?;
        Ok(Run { trainer: recorded(trainer.with_source(source), &settings)?, text, settings })
    }
}

/// The source that a run was begun with.
fn remembered(state: &Path, progress: &Progress) -> Result<DataSource> {
    let source = progress
        .source
        .clone()
        .ok_or_else(|| Error::file(state, "it does not say where the text of this run is; give --data"))?;
    if let DataSource::Text(paths) = &source
        && let Some(gone) = paths.iter().find(|path| !path.exists())
    {
        let why = format!("the text of this run was at {}, which is gone; give --data", gone.display());
        return Err(Error::file(state, why));
    }
    Ok(source)
}

/// The inputs from which [`Run::begin`] and [`Run::resume`] make a trainer.
struct Preparation<'a> {
    source: DataSource,
    tokenizer: Option<PathBuf>,
    out: &'a Path,
    device: &'a Device,
}

struct Prepared {
    trainer: Trainer,
    text: Option<TextSummary>,
    source: Option<DataSource>,
    settings: Settings,
}

/// The trainer, which writes the settings into its checkpoints.
fn recorded(trainer: Trainer, settings: &Settings) -> Result<Trainer> {
    let record = serde_json::to_value(settings).map_err(|error| Error::value("train", error.to_string()))?;
    Ok(trainer.with_record(record).with_output(Output::Model { settings: Some(settings.toml()) }))
}

impl Preparation<'_> {
    fn trainer(self, settings: Settings, before: Option<&Progress>, observe: &mut Observer<'_>) -> Result<Prepared> {
        match self.source.clone() {
            DataSource::Text(paths) => self.text_trainer(&paths, settings, before, observe),
            DataSource::Task(task) => self.task_trainer(task, settings, before),
        }
    }

    fn text_trainer(
        self,
        paths: &[PathBuf],
        mut settings: Settings,
        before: Option<&Progress>,
        observe: &mut Observer<'_>,
    ) -> Result<Prepared> {
        let mut prepare = |what| {
            // nothing can be saved yet, so there is nothing to stop for
            let _ = observe(Event::Preparing(what));
        };
        prepare("reading text");
        let absolute = |path: &PathBuf| std::path::absolute(path).map_err(Error::io(path, "read"));
        let absolute: Vec<PathBuf> = paths.iter().map(absolute).collect::<Result<_>>()?;
        let TextFiles { documents, files, bytes, skipped, undecodable } = read_text(paths, Some(self.out))?;
        let documents = split(documents, settings.val_split, settings.seed)?;
        let tokenizer = match &self.tokenizer {
            Some(path) => Tokenizer::load(path)?,
            None => {
                prepare("training the tokenizer");
                let texts = documents.train.iter().flat_map(|document| encode::bounded_words(&document.text));
                Tokenizer::train(texts, settings.architecture.vocab_size, &|_| ())?.with_sampling(0.7, 0.95)
            }
        };
        settings.architecture.vocab_size = tokenizer.vocab_size();
        prepare("tokenizing");
        let corpus = Corpus::new(encode::documents(&tokenizer, &documents.train)?)?;
        let validation = match documents.validation.is_empty() {
            true => None,
            false => Some(Corpus::new(encode::documents(&tokenizer, &documents.validation)?)?),
        };
        let summary = TextSummary {
            files,
            bytes,
            skipped,
            undecodable,
            train_tokens: corpus.tokens(),
            validation_tokens: validation.as_ref().map_or(0, Corpus::tokens),
            validation_bytes: documents.validation.iter().map(|document| document.text.len()).sum(),
            unigram_loss: validation.as_ref().map(|v| corpus.unigram_loss(v, settings.architecture.vocab_size)),
            sample_prompt: documents.validation.iter().find_map(sample_prompt),
        };
        prepare("making the model");
        let end = tokenizer.eos_token_ids().first().copied();
        let model = self.model(&settings, end.unwrap_or(0), before)?;
        let (block, rows) = (settings.max_seq_length, settings.batch_size);
        let mut batches = validation.map_or(Vec::new(), |corpus| corpus.batches(block * rows, block));
        if settings.val_batches > 0 {
            batches.truncate(settings.val_batches);
        }
        let validation = Validation { batches, metric: ValidationMetric::Loss, baseline: summary.unigram_loss };
        let data = Box::new(TokenData::new(corpus, block, rows, settings.seed)?);
        let source = absolute.iter().all(|path| path.to_str().is_some()).then_some(DataSource::Text(absolute));
        let trainer = self.assemble(model, Some(tokenizer), data, validation, &settings)?;
        Ok(Prepared { trainer, text: Some(summary), source, settings })
    }

    fn task_trainer(self, task: Task, settings: Settings, before: Option<&Progress>) -> Result<Prepared> {
        let model = self.model(&settings, 0, before)?;
        let (data, validation) = task_data(task, &settings)?;
        let trainer = self.assemble(model, None, Box::new(data), validation, &settings)?;
        Ok(Prepared { trainer, text: None, source: Some(DataSource::Task(task)), settings })
    }

    fn model(
        &self,
        settings: &Settings,
        end: u32,
        before: Option<&Progress>,
    ) -> Result<(Box<dyn LanguageModel>, Config)> {
        let config = settings.architecture.config(settings.max_seq_length, end)?;
        let model = match before {
            Some(_) => state::model(&self.out.join(state::FILE), &config, self.device)?,
            None => initialize(&config, settings.seed, self.device)?,
        };
        Ok((model, config))
    }

    fn assemble(
        &self,
        (mut model, config): (Box<dyn LanguageModel>, Config),
        tokenizer: Option<Tokenizer>,
        data: Box<dyn TrainingData>,
        validation: Validation,
        settings: &Settings,
    ) -> Result<Trainer> {
        let masters = Masters::take(model.as_mut(), settings.dtype.into())?;
        let checkpointing = if settings.grad_checkpoint { Checkpointing::Layers } else { Checkpointing::None };
        let objective = NextToken { z_loss: settings.z_loss, checkpointing, device: self.device.clone() };
        let (objective, device, settings) = (Box::new(objective), self.device.clone(), settings.loop_settings());
        let parts = TrainerParts { model, config, tokenizer, objective, data, validation, settings, device };
        Ok(Trainer::new(parts).with_masters(masters))
    }
}

/// The training and validation batches of a task.
///
/// # Errors
/// When the settings' lengths or vocabulary are too small for the task.
pub fn task_data(task: Task, settings: &Settings) -> Result<(TaskData, Validation)> {
    let sizes = SequenceSize { length: settings.max_seq_length, vocab_size: settings.architecture.vocab_size };
    let data = TaskData { task, batch_size: settings.batch_size, sizes, seed: settings.seed, batches: 0 };
    let batches = (0..settings.val_batches.max(1)).map(|i| data.validation_batch(i)).collect::<Result<_>>()?;
    Ok((data, Validation { batches, metric: ValidationMetric::LossAndAccuracy, baseline: None }))
}

/// The start of the first line that is long enough to be a prompt.
fn sample_prompt(document: &Document) -> Option<String> {
    let line = document.text.lines().find(|line| line.len() > 8)?;
    let start: String = line.chars().take(24).collect();
    // whole words, where there are several
    let end = if start.len() == line.len() { None } else { start.trim_end().rfind(' ') };
    Some(end.filter(|&end| end >= 8).map_or(start.clone(), |end| start[..end].to_owned()))
}
