//! The experiments of the study and their runs.

use alluvium::core::cpu::Cpu;
use alluvium::core::{Device, Error, Result};
use alluvium::lm::initialize_decoder;
use alluvium::lm::nn::Ablation;
use alluvium::train::data::Task;
use alluvium::train::{
    Event, MetricsRow, NextToken, OptimizerKind, Overrides, Settings, Trainer, TrainerParts, task_data,
};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// One run: a task, its settings, and the part that the model lacks.
#[derive(Clone, Debug)]
pub(crate) struct Experiment {
    pub(crate) task: Task,
    pub(crate) settings: Settings,
    pub(crate) ablation: Ablation,
}

impl std::fmt::Display for Experiment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Experiment { task, settings, ablation } = self;
        write!(f, "{}, {ablation}, {}, seed {}", task.name(), settings.optimizer, settings.seed)
    }
}

/// What is compared, on each seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Variant {
    pub(crate) task: Task,
    pub(crate) ablation: Ablation,
    pub(crate) optimizer: OptimizerKind,
    pub(crate) iters: u64,
}

impl Variant {
    /// One run of the variant, with its own number of steps or another one.
    pub(crate) fn experiment(&self, seed: u64, iters: Option<u64>) -> Result<Experiment> {
        let overrides = Overrides {
            iters: Some(iters.unwrap_or(self.iters)),
            seed: Some(seed),
            optimizer: Some(self.optimizer),
            ..Overrides::default()
        };
        Ok(Experiment { task: self.task, settings: overrides.settings_for(self.task)?, ablation: self.ablation })
    }

    const fn new(task: Task, ablation: Ablation, optimizer: OptimizerKind, iters: u64) -> Self {
        Variant { task, ablation, optimizer, iters }
    }
}

/// Each task with the whole model, and without the part that the task needs, for as many steps as the whole model takes to
/// learn it on every seed. Overwriting is compared with both optimizers, because they differ in how far a model gets without
/// the delta term.
pub(crate) const STUDY: [Variant; 6] = [
    Variant::new(Task::Recall, Ablation::None, OptimizerKind::Muon, 1_000),
    Variant::new(Task::Recall, Ablation::Convolution, OptimizerKind::Muon, 1_000),
    Variant::new(Task::Overwrite, Ablation::None, OptimizerKind::AdamW, 1_500),
    Variant::new(Task::Overwrite, Ablation::DeltaTerm, OptimizerKind::AdamW, 1_500),
    Variant::new(Task::Overwrite, Ablation::None, OptimizerKind::Muon, 1_000),
    Variant::new(Task::Overwrite, Ablation::DeltaTerm, OptimizerKind::Muon, 1_000),
];

/// The result of a run.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) experiment: Experiment,
    pub(crate) parameters: usize,
    /// Steps, and the accuracy after them.
    pub(crate) curve: Vec<(u64, f64)>,
    /// Duration of the run with its validations.
    pub(crate) seconds: f64,
}

impl Measured {
    /// The accuracy at the end.
    pub(crate) fn accuracy(&self) -> f64 {
        self.curve.last().map_or(0.0, |&(_, accuracy)| accuracy)
    }

    /// Whether it is a run of a variant, whatever its number of steps.
    pub(crate) fn is(&self, variant: Variant) -> bool {
        let Experiment { task, ablation, settings } = &self.experiment;
        (*task, *ablation, settings.optimizer) == (variant.task, variant.ablation, variant.optimizer)
    }
}

/// Trains once and keeps the measurements, not the model.
fn measure(experiment: &Experiment, device: &Device, observe: &dyn Fn(&MetricsRow)) -> Result<Measured> {
    let started = Instant::now();
    let Experiment { task, settings, ablation } = experiment.clone();
    let config = settings.architecture.config(settings.max_seq_length, 0)?;
    let mut model = initialize_decoder(&config, settings.seed, device)?;
    model.ablate(ablation);
    let (data, validation) = task_data(task, &settings)?;
    let mut trainer = Trainer::new(TrainerParts {
        model: Box::new(model),
        config,
        tokenizer: None,
        objective: Box::new(NextToken::new(device)),
        data: Box::new(data),
        validation,
        settings: settings.loop_settings(),
        device: device.clone(),
    });
    trainer.run(&mut |event| {
        if let Event::Measured(row) = event {
            observe(row);
        }
        ControlFlow::Continue(())
    })?;
    let curve = trainer.metrics().iter().filter_map(|row| Some((row.step, row.accuracy?))).collect();
    let (parameters, seconds) = (trainer.parameter_count(), started.elapsed().as_secs_f64());
    Ok(Measured { experiment: experiment.clone(), parameters, curve, seconds })
}

/// Trains all, one on each thread of the CPU: models as small as these gain nothing from more than one thread.
pub(crate) fn measure_all(
    experiments: &[Experiment],
    device: &Device,
    observe: &(dyn Fn(&Experiment, &MetricsRow) + Sync),
) -> Result<Vec<Measured>> {
    let threads = match device {
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
            let Some(experiment) = experiments.get(index) else { return Ok(()) };
            let run = measure(experiment, &device, &|row| observe(experiment, row))?;
            measured.lock().unwrap_or_else(PoisonError::into_inner).push((index, run));
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let panicked = |_| Err(Error::value("recall_study", "a thread panicked"));
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(panicked))
    })?;
    let mut measured = measured.into_inner().unwrap_or_else(PoisonError::into_inner);
    measured.sort_by_key(|(index, _)| *index);
    Ok(measured.into_iter().map(|(_, run)| run).collect())
}
