//! The training loop: steps, reports, validation, checkpoints.

use crate::data::{PackedBatch, TrainingData};
use crate::meter::{Diverged, LossMeter, Throughput, WeightedSum};
use crate::objective::correct_targets;
use crate::output::{AdapterOutput, BEST, Output};
use crate::state::{self, DataSource, Progress};
use crate::{
    Masters, Metrics, MetricsRow, Objective, Optimizer, OptimizerConfig, Schedule, StepOptions, draw, folder,
    train_step,
};
use alluvium_core::{Device, Error, Result, Tensor};
use alluvium_lm::formats::write_atomic;
use alluvium_lm::{Config, LanguageModel, Tokenizer, parameter_count, visit_trainable};
use alluvium_ops::global_norm;
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// An event of a run.
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
    /// A validation batch was evaluated.
    Evaluated {
        /// Batches done.
        done: usize,
        /// All validation batches.
        of: usize,
    },
    /// A row for the metrics.
    Measured(&'a MetricsRow),
    /// The model was validated. The time that the observer takes does not count in the throughput.
    Validated(&'a Trainer),
    /// A checkpoint was written.
    Saved(&'a Path),
}

/// Receives the events of a run; `Break` asks the run to save and to stop.
pub type Observer<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a;

/// The state of a run after the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// After its last step.
    Finished,
    /// Because the observer asked; [`Run::resume`](crate::Run::resume) continues it.
    Stopped,
}

/// The metric of validation batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ValidationMetric {
    /// The mean loss.
    #[default]
    Loss,
    /// The mean loss, and the share of the targets that are the model's most likely token.
    LossAndAccuracy,
}

/// Batches that the model is not trained on.
#[derive(Clone, Debug, Default)]
pub struct Validation {
    /// The batches; without any there is no validation.
    pub batches: Vec<PackedBatch>,
    /// The metric.
    pub metric: ValidationMetric,
    /// Loss to draw beside the curve, for example that of token frequencies alone.
    pub baseline: Option<f64>,
}

/// The settings of the training loop.
#[derive(Clone, Debug, PartialEq)]
pub struct LoopSettings {
    /// Optimizer steps.
    pub iters: u64,
    /// Batches whose gradients are averaged before a step.
    pub grad_accumulation_steps: usize,
    /// Maximum norm of the gradient; 0 disables clipping.
    pub grad_clip: f32,
    /// Steps between reports of the training loss.
    pub steps_per_report: u64,
    /// Steps between validations.
    pub steps_per_eval: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// When the first validation is.
    pub first_validation: FirstValidation,
    /// The learning rates.
    pub schedule: Schedule,
    /// The constants of the optimizer.
    pub optimizer: OptimizerConfig,
}

/// When the first validation of a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstValidation {
    /// After `steps_per_eval` steps.
    #[default]
    AfterSteps,
    /// Before the first step, too: the model that is fine-tuned.
    BeforeTraining,
}

/// The parts of a [`Trainer`].
pub struct TrainerParts {
    /// The model; its parameters are updated in place.
    pub model: Box<dyn LanguageModel>,
    /// The model's configuration, which is saved with it.
    pub config: Config,
    /// Saved with the model.
    pub tokenizer: Option<Tokenizer>,
    /// The objective that is minimized, for example [`NextToken`](crate::NextToken).
    pub objective: Box<dyn Objective<dyn LanguageModel, PackedBatch>>,
    /// Training batches.
    pub data: Box<dyn TrainingData>,
    /// Validation batches.
    pub validation: Validation,
    /// Steps, schedule, optimizer, intervals.
    pub settings: LoopSettings,
    /// The device of the model.
    pub device: Device,
}

/// A training run of a language model.
pub struct Trainer {
    parts: TrainerParts,
    optimizer: Optimizer,
    metrics: Metrics,
    meter: LossMeter,
    throughput: Throughput,
    step: u64,
    tokens: u64,
    /// The step of the last checkpoint.
    saved: Option<u64>,
    /// Whether all files of the checkpoint are of the present step.
    is_saved: bool,
    out: Option<PathBuf>,
    source: Option<DataSource>,
    /// The settings that checkpoints record.
    record: Value,
    output: Output,
    /// The lowest validation loss so far.
    best: Option<f64>,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer").field("step", &self.step).field("out", &self.out).finish_non_exhaustive()
    }
}

impl Trainer {
    /// A run at step 0 that writes no files.
    pub fn new(parts: TrainerParts) -> Self {
        Trainer {
            optimizer: Optimizer::new(parts.settings.optimizer),
            metrics: Metrics::default(),
            meter: LossMeter::default(),
            throughput: Throughput::new(),
            step: 0,
            tokens: 0,
            saved: None,
            is_saved: false,
            out: None,
            source: None,
            record: Value::Null,
            output: Output::Model { settings: None },
            best: None,
            parts,
        }
    }

    /// Updates these masters of the model's parameters: see [`Masters::take`].
    pub fn with_masters(self, masters: Masters) -> Self {
        Trainer { optimizer: self.optimizer.with_masters(masters), ..self }
    }

    /// Writes checkpoints, `metrics.jsonl` and `loss.svg` to a folder, which is made.
    ///
    /// # Errors
    /// When the folder holds a run, a model or files that the run would overwrite, or cannot be made.
    pub fn with_folder(mut self, out: &Path) -> Result<Self> {
        folder::claim(out)?;
        self.metrics = Metrics::open(&out.join(crate::metrics::FILE), 0)?;
        self.out = Some(out.to_owned());
        Ok(self)
    }

    /// Remembers in the checkpoint where the data came from, for a resumed run.
    pub(crate) fn with_source(self, source: Option<DataSource>) -> Self {
        Trainer { source, ..self }
    }

    /// Records in checkpoints the settings that a resumed run needs.
    pub(crate) fn with_record(self, record: Value) -> Self {
        Trainer { record, ..self }
    }

    /// Writes an adapter instead of a model.
    pub(crate) fn with_output(self, output: Output) -> Self {
        Trainer { output, ..self }
    }

    /// Continues the run whose state is in a folder. The model must be that of the state.
    pub(crate) fn restored(mut self, out: &Path, progress: &Progress) -> Result<Self> {
        let path = out.join(state::FILE);
        if progress.fingerprint != self.parts.data.fingerprint() {
            let why = "the text is not the one this run was begun with; give the same --data, unchanged";
            return Err(Error::file(path, why));
        }
        self.parts.data.seek(progress.position).map_err(|error| Error::file(&path, error.to_string()))?;
        folder::clear(out);
        self.metrics = Metrics::open(&out.join(crate::metrics::FILE), progress.step)?;
        state::restore(&path, &mut self.optimizer, &self.parts.device)?;
        (self.step, self.tokens, self.saved) = (progress.step, progress.tokens, Some(progress.step));
        (self.meter.losses, self.best) = (progress.unreported, progress.best);
        self.out = Some(out.to_owned());
        if let Output::Adapter(output) = &self.output
            && !AdapterOutput::of_step(out, self.step).exists()
        {
            // a kill after the state left it out, and no later step writes it
            output.save(&self.trained(), out, self.step)?;
        }
        Ok(self)
    }

    /// The model as it stands.
    pub fn model(&self) -> &(dyn LanguageModel + 'static) {
        self.parts.model.as_ref()
    }

    /// The trained parameters in f32.
    fn trained(&self) -> Vec<(String, &Tensor)> {
        self.optimizer.masters().parameters(self.model())
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.parts.tokenizer.as_ref()
    }

    /// Ends the run and returns its model.
    pub fn into_model(self) -> Box<dyn LanguageModel> {
        self.parts.model
    }

    /// The settings of the loop.
    pub fn settings(&self) -> &LoopSettings {
        &self.parts.settings
    }

    /// Everything that was measured.
    pub fn metrics(&self) -> &[MetricsRow] {
        self.metrics.rows()
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The number of parameters.
    pub fn parameter_count(&self) -> usize {
        parameter_count(self.model())
    }

    /// Trains to the last step, or until the observer breaks; then saves, if there is a folder.
    ///
    /// # Errors
    /// When the loss is not finite, or memory or disk run out. The last checkpoint is intact then.
    pub fn run(&mut self, observe: &mut Observer<'_>) -> Result<RunStatus> {
        // a run that was stopped during validation validates before it goes on
        let mut wish = observe(Event::Ready(self));
        self.throughput = Throughput::new();
        let measured = self.metrics.rows().iter().any(|row| row.step == self.step && row.val_loss.is_some());
        let is_first = self.step == 0 && self.parts.settings.first_validation == FirstValidation::BeforeTraining;
        let is_due = is_first || (self.step > 0 && self.is_due(self.parts.settings.steps_per_eval));
        if is_due && !measured && wish.is_continue() {
            wish = self.validate(observe)?;
        }
        while self.step < self.parts.settings.iters && wish.is_continue() {
            wish = self.one_step(observe)?;
            if self.is_due(self.parts.settings.steps_per_report) {
                let row = self.report()?;
                wish = any_break(wish, observe(Event::Measured(&row)));
            }
            if self.is_due(self.parts.settings.steps_per_eval) && wish.is_continue() {
                wish = self.validate(observe)?;
            }
            if self.is_due(self.parts.settings.save_every) && wish.is_continue() {
                wish = self.save_to_folder(observe)?;
            }
        }
        if !self.is_saved {
            // the observer has no more to say
            let _ = self.save_to_folder(observe)?;
        }
        Ok(if self.step < self.parts.settings.iters { RunStatus::Stopped } else { RunStatus::Finished })
    }

    /// Whether something that happens every `every` steps, and after the last one, happens now.
    fn is_due(&self, every: u64) -> bool {
        self.step == self.parts.settings.iters || self.step.is_multiple_of(every)
    }

    fn one_step(&mut self, observe: &mut Observer<'_>) -> Result<ControlFlow<()>> {
        let settings = &self.parts.settings;
        let batches: Vec<PackedBatch> =
            (0..settings.grad_accumulation_steps).map(|_| self.parts.data.next_batch()).collect::<Result<_>>()?;
        let step = self.step + 1;
        let options = StepOptions { step, learning_rate: self.schedule().rate(step), grad_clip: settings.grad_clip };
        let (model, objective) = (self.parts.model.as_mut(), self.parts.objective.as_ref());
        let stats = train_step(model, objective, &mut self.optimizer, &batches, &options)?;
        self.meter.push(step, stats);
        if self.parts.device.is_host() {
            self.sync()?;
        }
        let tokens: usize = batches.iter().map(PackedBatch::tokens).sum();
        self.throughput.add(tokens);
        (self.step, self.tokens, self.is_saved) = (step, self.tokens + tokens as u64, false);
        Ok(observe(Event::Stepped { step, tokens }))
    }

    fn schedule(&self) -> &Schedule {
        &self.parts.settings.schedule
    }

    /// Reads the losses that were not read yet.
    fn sync(&mut self) -> Result<()> {
        match self.meter.sync()? {
            Some(diverged) => Err(self.diverged(&diverged)),
            None => Ok(()),
        }
    }

    fn diverged(&self, what: &Diverged) -> Error {
        // the loss of the first step is that of the parameters it begins with
        if what.step == 1 {
            let why = "the weights are not finite, or too large: the checkpoint may be broken or badly converted";
            return Error::value("train", format!("{what}; no step was taken: {why}"));
        }
        self.broken(&what.to_string())
    }

    fn broken(&self, what: &str) -> Error {
        let left = match self.saved {
            Some(step) => format!("the checkpoint of step {step} is intact"),
            None => "there is no checkpoint yet".to_owned(),
        };
        Error::value("train", format!("{what}; {left}; begin again with a lower learning rate, or look at the data"))
    }

    fn report(&mut self) -> Result<MetricsRow> {
        self.sync()?;
        let row = MetricsRow {
            loss: Some(self.meter.mean_and_reset()),
            learning_rate: Some(self.schedule().rate(self.step)),
            grad_norm: Some(self.meter.grad_norm),
            tokens_per_second: Some(self.throughput.rate_and_reset()),
            peak_memory: Some(self.parts.device.peak_memory()),
            ..self.row()
        };
        self.metrics.push(row.clone())?;
        Ok(row)
    }

    /// Measures the validation batches and records the result, unless the observer breaks before.
    fn validate(&mut self, observe: &mut Observer<'_>) -> Result<ControlFlow<()>> {
        if self.parts.validation.batches.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let started = Instant::now();
        let Some(row) = self.evaluate(observe)? else { return Ok(ControlFlow::Break(())) };
        self.metrics.push(row.clone())?;
        self.keep_best(row.val_loss)?;
        let wish = observe(Event::Measured(&row));
        let wish = any_break(wish, observe(Event::Validated(self)));
        self.throughput.exclude(started);
        Ok(wish)
    }

    /// Writes the adapter of the lowest validation loss.
    fn keep_best(&mut self, loss: Option<f64>) -> Result<()> {
        let (Some(loss), Some(out), Output::Adapter(output)) = (loss, &self.out, &self.output) else { return Ok(()) };
        if self.step == 0 || !loss.is_finite() || self.best.is_some_and(|best| best <= loss) {
            return Ok(());
        }
        output.save_tensors(&self.trained(), &out.join(BEST))?;
        self.best = Some(loss);
        Ok(())
    }

    /// Measures the validation batches; `None` when the observer broke before the last one.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn evaluate(&self, observe: &mut Observer<'_>) -> Result<Option<MetricsRow>> {
        let TrainerParts { objective, validation, device, .. } = &self.parts;
        let (mut loss, mut correct) = (WeightedSum::default(), WeightedSum::default());
        for (done, batch) in validation.batches.iter().enumerate() {
            let weight = objective.weight(batch);
            loss.add(f64::from(objective.validation_loss(self.model(), batch)?.item()?), weight);
            if validation.metric == ValidationMetric::LossAndAccuracy {
                let targets = batch.target_count().max(1) as f64;
                correct.add(correct_targets(self.model(), batch, device)? as f64 / targets, targets);
            }
            if observe(Event::Evaluated { done: done + 1, of: validation.batches.len() }).is_break() {
                return Ok(None);
            }
        }
        let accuracy = (validation.metric == ValidationMetric::LossAndAccuracy).then(|| correct.mean());
        Ok(Some(MetricsRow { val_loss: Some(loss.mean()), accuracy, ..self.row() }))
    }

    fn row(&self) -> MetricsRow {
        MetricsRow { step: self.step, tokens: self.tokens, ..MetricsRow::default() }
    }

    fn save_to_folder(&mut self, observe: &mut Observer<'_>) -> Result<ControlFlow<()>> {
        let Some(out) = self.out.clone() else { return Ok(ControlFlow::Continue(())) };
        self.save(&out)?;
        Ok(observe(Event::Saved(&out)))
    }

    /// Writes tokenizer, state, model and loss curve; each file whole or not at all.
    fn save(&mut self, out: &Path) -> Result<()> {
        self.sync()?;
        let mut parameters = Vec::new();
        visit_trainable(self.model(), &mut |_, parameter| parameters.push(parameter));
        if !global_norm(&parameters)?.item()?.is_finite() {
            return Err(self.broken(&format!("parameters are not finite after step {}", self.step)));
        }
        let progress = Progress {
            step: self.step,
            tokens: self.tokens,
            position: self.parts.data.position(),
            fingerprint: self.parts.data.fingerprint(),
            source: self.source.clone(),
            unreported: self.meter.losses,
            best: self.best,
            settings: self.record.clone(),
        };
        if let Output::Model { settings: Some(settings) } = &self.output {
            let settings = format!("# `alluvium train --config` takes this file.\n{settings}");
            write_atomic(out.join(folder::SETTINGS), |file| file.write_all(settings.as_bytes()))?;
        }
        if let Some(tokenizer) = self.tokenizer()
            && self.saved.is_none()
        {
            // before the first state: a run that can be resumed has its tokenizer
            tokenizer.save(out)?;
        }
        // the state before the model: a kill between the two leaves a run that resumes, never a model without one
        state::save(&out.join(state::FILE), self.model(), &self.optimizer, &progress)?;
        match &self.output {
            Output::Model { .. } => alluvium_lm::save(self.model(), &self.parts.config, self.tokenizer(), out)?,
            Output::Adapter(output) => output.save(&self.trained(), out, self.step)?,
        }
        self.saved = Some(self.step);
        draw(&out.join(folder::CURVE), self.metrics.rows(), self.parts.validation.baseline)?;
        self.is_saved = true;
        Ok(())
    }
}

fn any_break(a: ControlFlow<()>, b: ControlFlow<()>) -> ControlFlow<()> {
    if a.is_break() { a } else { b }
}
