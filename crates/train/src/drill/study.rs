//! What the recall study compares, and its runs.

use super::{Drill, Exercise, Task};
use crate::{Changes, Event, OptimiserKind, Outcome, Record};
use alluvium_core::cpu::Cpu;
use alluvium_core::{Device, Error, Result};
use alluvium_lm::nn::Ablation;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What is compared, on each seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    /// The task.
    pub task: Task,
    /// What is taken out of the model.
    pub ablation: Ablation,
    /// The optimiser.
    pub optimizer: OptimiserKind,
    /// Optimiser steps.
    pub iters: u64,
}

impl Variant {
    /// One run of it, with its own steps or others.
    ///
    /// # Errors
    /// When a number is out of range.
    pub fn exercise(&self, seed: u64, iters: Option<u64>) -> Result<Exercise> {
        let changes = Changes {
            iters: Some(iters.unwrap_or(self.iters)),
            seed: Some(seed),
            optimizer: Some(self.optimizer),
            ..Changes::default()
        };
        Ok(Exercise { task: self.task, settings: changes.settings_for(self.task)?, ablation: self.ablation })
    }

    const fn new(task: Task, ablation: Ablation, optimizer: OptimiserKind, iters: u64) -> Self {
        Variant { task, ablation, optimizer, iters }
    }
}

/// Each task with the whole model, and without the part that the task needs: after as many steps as the whole model
/// takes to learn it on every seed. Overwriting is compared with both optimisers, because they differ in how far a
/// model comes without the delta term.
pub const STUDY: [Variant; 6] = [
    Variant::new(Task::Recall, Ablation::None, OptimiserKind::Muon, 1_000),
    Variant::new(Task::Recall, Ablation::Convolution, OptimiserKind::Muon, 1_000),
    Variant::new(Task::Overwrite, Ablation::None, OptimiserKind::AdamW, 1_500),
    Variant::new(Task::Overwrite, Ablation::DeltaTerm, OptimiserKind::AdamW, 1_500),
    Variant::new(Task::Overwrite, Ablation::None, OptimiserKind::Muon, 1_000),
    Variant::new(Task::Overwrite, Ablation::DeltaTerm, OptimiserKind::Muon, 1_000),
];

/// One run of the comparison.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was trained.
    pub exercise: Exercise,
    /// Its number of parameters.
    pub parameters: usize,
    /// Steps and the accuracy after them.
    pub curve: Vec<(u64, f64)>,
    /// How long the run took, its evaluations included.
    pub seconds: f64,
}

impl Measured {
    /// The accuracy at the end.
    pub fn accuracy(&self) -> f64 {
        self.curve.last().map_or(0.0, |&(_, accuracy)| accuracy)
    }

    /// Whether it is a run of a variant; its steps may have been changed.
    pub(super) fn is(&self, variant: Variant) -> bool {
        let Exercise { task, ablation, settings } = &self.exercise;
        (*task, *ablation, settings.optimizer) == (variant.task, variant.ablation, variant.optimizer)
    }
}

/// Trains once and keeps what was measured, not the model.
///
/// # Errors
/// As [`Drill::run`].
pub fn measure(exercise: Exercise, device: &Device, observe: &mut dyn FnMut(Event<'_>) -> Outcome) -> Result<Measured> {
    let started = Instant::now();
    let mut drill = Drill::new(exercise, None, device)?;
    drill.run(observe)?;
    let curve = drill.records.iter().filter_map(|r| Some((r.step, r.accuracy?))).collect();
    let parameters = drill.parameters();
    Ok(Measured { exercise: drill.exercise, parameters, curve, seconds: started.elapsed().as_secs_f64() })
}

/// Trains all, in their order; on the processor as many at once as it has threads, because models as small as these
/// gain nothing from more than one. What is measured does not depend on it, but for the seconds.
///
/// # Errors
/// As [`Drill::run`], for the first that fails.
pub fn measure_all(
    exercises: &[Exercise],
    device: &Device,
    observe: &(dyn Fn(&Exercise, &Record) + Sync),
) -> Result<Vec<Measured>> {
    let at_once = match device {
        Device::Cpu(cpu) => cpu.threads(),
        Device::Gpu(_) => 1,
    };
    let (next, measured) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || -> Result<()> {
        let device = match device {
            Device::Cpu(_) => Cpu::builder().threads(1).open()?.into(),
            gpu => gpu.clone(),
        };
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(exercise) = exercises.get(index) else { return Ok(()) };
            let run = measure(exercise.clone(), &device, &mut |event| {
                if let Event::Measured(record) = event {
                    observe(exercise, record);
                }
                Outcome::Continue
            })?;
            measured.lock().unwrap_or_else(PoisonError::into_inner).push((index, run));
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(worker)).collect();
        let broken = |_| Err(Error::value("train", "a thread broke off"));
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(broken))
    })?;
    let mut measured = measured.into_inner().unwrap_or_else(PoisonError::into_inner);
    measured.sort_by_key(|(index, _)| *index);
    Ok(measured.into_iter().map(|(_, run)| run).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    #[test]
    fn runs_at_once_measure_what_they_measure_alone_and_come_in_order() {
        let exercise = |seed| {
            let exercise = STUDY[3].exercise(seed, Some(2)).unwrap();
            let settings = Settings { batch_size: 2, val_batches: 1, steps_per_eval: 1, ..exercise.settings };
            Exercise { settings, ..exercise }
        };
        let exercises: Vec<Exercise> = (0..5).map(exercise).collect();
        let device = Device::from(Cpu::builder().threads(3).open().unwrap());
        let runs = measure_all(&exercises, &device, &|_, _| ()).unwrap();
        assert_eq!(runs.iter().map(|run| run.exercise.settings.seed).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        for run in runs {
            let alone = measure(run.exercise, &Device::cpu(), &mut |_| Outcome::Continue).unwrap();
            assert_eq!(alone.curve, run.curve);
        }
    }
}
