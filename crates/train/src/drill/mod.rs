//! Training on tasks whose data is a program, and what they say about the model.

mod report;
mod study;
mod task;

pub use report::write_report;
pub use study::{Measured, STUDY, Variant, measure, measure_all};
pub(crate) use task::NO_ANSWER;
pub use task::Task;

use crate::losses::Losses;
use crate::step::{descend, held_out_loss};
use crate::{Ended, Event, Metrics, Optimiser, Outcome, Packed, Record, Schedule, Settings, draw};
use alluvium_core::{Device, Error, Result, Tensor};
use alluvium_lm::nn::Ablation;
use alluvium_lm::{Batch, Keep, LanguageModel, initialise, parameter_count};
use alluvium_ops::{argmax, embedding};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What is trained on a task.
#[derive(Clone, Debug)]
pub struct Exercise {
    /// The task.
    pub task: Task,
    /// Every number of the run; [`Settings::of_task`] suits the task.
    pub settings: Settings,
    /// What is taken out of the model.
    pub ablation: Ablation,
}

impl std::fmt::Display for Exercise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Exercise { task, settings, ablation } = self;
        write!(f, "{}, {ablation}, {}, seed {}", task.name(), settings.optimizer, settings.seed)
    }
}

/// How well a model does on sequences it does not learn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Mean loss of the answers, in nats.
    pub loss: f64,
    /// Share of the answers that are right.
    pub accuracy: f64,
}

/// A model that is trained on a task. Every sequence is new: nothing is ever seen twice, so nothing can be learnt by
/// heart.
pub struct Drill {
    /// The model as it stands.
    pub model: Box<dyn LanguageModel>,
    /// What is trained.
    pub exercise: Exercise,
    /// What was measured.
    pub records: Vec<Record>,
    held_out: Vec<Packed>,
    optimiser: Optimiser,
    losses: Losses,
    step: u64,
    device: Device,
    out: Option<(PathBuf, Metrics)>,
}

impl std::fmt::Debug for Drill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Drill in {} at step {}", self.exercise.task.name(), self.step)
    }
}

impl Drill {
    /// Prepares a run; with `out`, a folder that holds no model yet, what is measured and the model go there.
    ///
    /// # Errors
    /// When the folder holds a run or a model, or the settings fit no model or not the task.
    pub fn new(exercise: Exercise, out: Option<&Path>, device: &Device) -> Result<Self> {
        let Exercise { task, ref settings, ablation } = exercise;
        let held_out = (0..settings.val_batches.max(1))
            .map(|i| task.batch(settings.batch_size, sizes(settings), settings.seed, &format!("held out {i}")))
            .collect::<Result<_>>()?;
        let config = settings.architecture.config(settings.max_seq_length, 0)?;
        let mut model = initialise(&config, settings.seed, device)?;
        model.ablate(ablation);
        let optimiser = Optimiser::new(settings.optimizer, settings.adamw());
        let out = match out {
            Some(out) => {
                crate::trainer::claim(out)?;
                Some((out.to_owned(), Metrics::open(&out.join("metrics.jsonl"), 0)?))
            }
            None => None,
        };
        let device = device.clone();
        let losses = Losses::default();
        Ok(Drill { model, exercise, records: Vec::new(), held_out, optimiser, losses, step: 0, device, out })
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The number of parameters.
    pub fn parameters(&self) -> usize {
        parameter_count(self.model.as_ref())
    }

    /// Trains to the end, or until the observer says stop; then saves, where there is a folder.
    ///
    /// # Errors
    /// When the loss is no number, memory or disk run out.
    pub fn run(&mut self, observe: &mut dyn FnMut(Event<'_>) -> Outcome) -> Result<Ended> {
        let mut started = Instant::now();
        let mut wish = Outcome::Continue;
        while self.step < self.exercise.settings.iters && wish == Outcome::Continue {
            self.one_step()?;
            wish = observe(Event::Stepped { step: self.step, tokens: self.tokens() });
            let settings = &self.exercise.settings;
            let due = |every: u64| self.step == settings.iters || self.step.is_multiple_of(every);
            let (report, evaluate) = (due(settings.steps_per_report), due(settings.steps_per_eval));
            if report {
                self.settle()?;
                let record = self.report(started);
                started = Instant::now();
                self.note(record, observe)?;
            }
            if evaluate {
                let paused = Instant::now();
                let Score { loss, accuracy } = self.score()?;
                let record = Record { held_out_loss: Some(loss), accuracy: Some(accuracy), ..self.record() };
                self.note(record, observe)?;
                started += paused.elapsed();
            }
        }
        self.save()?;
        Ok(if self.step == self.exercise.settings.iters { Ended::Finished } else { Ended::Stopped })
    }

    fn one_step(&mut self) -> Result<()> {
        let Exercise { task, settings, .. } = &self.exercise;
        let step = self.step + 1;
        let batches = (0..settings.grad_accumulation_steps)
            .map(|i| task.batch(settings.batch_size, sizes(settings), settings.seed, &format!("step {step} {i}")))
            .collect::<Result<Vec<_>>>()?;
        let model = self.model.as_mut();
        let measures = descend(model, &mut self.optimiser, &batches, settings, step, &self.device)?;
        self.losses.push(step, measures);
        if self.device.reads_at_once() {
            self.settle()?;
        }
        self.step = step;
        Ok(())
    }

    /// Reads the losses that were not read yet.
    fn settle(&mut self) -> Result<()> {
        match self.losses.settle()? {
            Some(diverged) => Err(Error::value("train", format!("{diverged}; lower the learning rate"))),
            None => Ok(()),
        }
    }

    /// The model on the held-out sequences.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn score(&self) -> Result<Score> {
        let model = self.model.as_ref();
        let loss = held_out_loss(model, &self.held_out, &self.exercise.settings, &self.device)?;
        let (mut right, mut all) = (0, 0);
        for batch in &self.held_out {
            let asked: Vec<u32> =
                (0..).zip(&batch.targets).filter(|(_, target)| **target != NO_ANSWER).map(|(at, _)| at).collect();
            let answers = answers(model, batch, &asked, &self.device)?;
            right += asked.iter().zip(&answers).filter(|(at, answer)| batch.targets[**at as usize] == **answer).count();
            all += asked.len();
        }
        Ok(Score { loss, accuracy: right as f64 / all.max(1) as f64 })
    }

    fn report(&mut self, started: Instant) -> Record {
        let (steps, loss) = (self.losses.steps, self.losses.take_mean());
        let settings = &self.exercise.settings;
        let schedule = Schedule { peak: settings.learning_rate, warmup: settings.warmup, steps: settings.iters };
        let tokens = (steps as usize * self.tokens()) as f64;
        Record {
            loss: Some(loss),
            learning_rate: Some(schedule.rate(self.step)),
            grad_norm: Some(self.losses.norm),
            tokens_per_second: Some(tokens / started.elapsed().as_secs_f64().max(1e-9)),
            peak_memory: Some(self.device.peak_memory()),
            ..self.record()
        }
    }

    fn record(&self) -> Record {
        Record { step: self.step, tokens: self.step * self.tokens() as u64, ..Record::default() }
    }

    /// Tokens of a step.
    fn tokens(&self) -> usize {
        let Settings { batch_size, grad_accumulation_steps, max_seq_length, .. } = self.exercise.settings;
        batch_size * grad_accumulation_steps * max_seq_length
    }

    fn note(&mut self, record: Record, observe: &mut dyn FnMut(Event<'_>) -> Outcome) -> Result<()> {
        observe(Event::Measured(&record));
        if let Some((_, metrics)) = &mut self.out {
            metrics.push(record.clone())?;
        }
        self.records.push(record);
        Ok(())
    }

    fn save(&self) -> Result<()> {
        let Some((out, _)) = &self.out else { return Ok(()) };
        alluvium_lm::save(self.model.as_ref(), None, out)?;
        draw(&out.join("loss.svg"), &self.records, None)
    }
}

fn sizes(settings: &Settings) -> [usize; 2] {
    [settings.max_seq_length, settings.architecture.vocab_size]
}

/// The likeliest word after each of these tokens of a batch.
fn answers(model: &dyn LanguageModel, batch: &Packed, asked: &[u32], device: &Device) -> Result<Vec<u32>> {
    let [ids, positions, offsets, _] = batch.tensors(device)?;
    let batch = Batch { ids: &ids, positions: &positions, cu_seqlens: Some(&offsets) };
    let hidden = model.hidden(&batch, Keep::Activations)?;
    let rows = hidden.reshape([ids.elements(), hidden.shape().last()])?;
    let rows = embedding(&rows, &Tensor::from_slice(asked, [asked.len()], device)?)?;
    argmax(&model.head().linear(&rows)?)?.to_vec::<u32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(task: Task, ablation: Ablation) -> Drill {
        let settings = Settings { iters: 80, val_batches: 2, steps_per_eval: 40, ..Settings::of_task(task) };
        let settings = Settings { warmup: 4, batch_size: 8, ..settings };
        Drill::new(Exercise { task, settings, ablation }, None, &Device::cpu()).unwrap()
    }

    #[test]
    fn a_short_run_lowers_the_loss_and_measures_accuracy() {
        let mut drill = short(Task::Overwrite, Ablation::None);
        let before = drill.score().unwrap();
        assert!(before.accuracy < 0.1, "{before:?}");
        assert_eq!(drill.run(&mut |_| Outcome::Continue).unwrap(), Ended::Finished);
        let after = drill.score().unwrap();
        assert!(after.loss < before.loss - 0.3 && after.accuracy > before.accuracy, "{before:?} {after:?}");
        let last = drill.records.last().unwrap();
        assert_eq!((last.step, last.held_out_loss, last.accuracy), (80, Some(after.loss), Some(after.accuracy)));
    }

    #[test]
    fn each_ablation_changes_what_the_model_says_and_still_trains() {
        let score = |ablation| {
            let mut drill = short(Task::Overwrite, ablation);
            let first = drill.score().unwrap().loss;
            drill.one_step().unwrap();
            assert_ne!(drill.score().unwrap().loss, first);
            first
        };
        let all = [Ablation::None, Ablation::Convolution, Ablation::DeltaTerm].map(score);
        assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2], "{all:?}");
    }

    #[test]
    fn the_observer_can_end_a_run_and_what_was_measured_is_in_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            iters: 9,
            batch_size: 2,
            val_batches: 1,
            steps_per_report: 2,
            ..short(Task::Recall, Ablation::None).exercise.settings
        };
        let exercise = Exercise { task: Task::Recall, settings, ablation: Ablation::None };
        let out = folder.path().join("run");
        let mut drill = Drill::new(exercise.clone(), Some(&out), &Device::cpu()).unwrap();
        let ended = drill
            .run(&mut |e| if matches!(e, Event::Stepped { step: 4, .. }) { Outcome::Stop } else { Outcome::Continue })
            .unwrap();
        assert_eq!((ended, drill.step()), (Ended::Stopped, 4));
        assert_eq!(std::fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines().count(), 2);
        assert!(out.join("model.safetensors").exists());
        let error = Drill::new(exercise, Some(&out), &Device::cpu()).unwrap_err().to_string();
        assert!(error.contains("already holds model.safetensors"), "{error}");
    }
}
