//! The loop of a distillation: batches, the teacher's logits, steps, validation, the model that is written.

use super::{DistillBatch, Distillation, TargetFolder, TeacherLogits, TopLogits};
use crate::data::{LongSamples, PackedBatch, Sample, SampleOrder, Samples, read_calibration};
use crate::meter::WeightedSum;
use crate::{Decayed, Gradients, Objective, Optimizer, OptimizerConfig, OptimizerKind, gradients};
use alluvium_core::rng::Rng;
use alluvium_core::{DType, Device, Error, Result, Tensor};
use alluvium_lm::adapter::{Adapter, Fuse};
use alluvium_lm::{
    Change, Checkpointing, Converted, LanguageModel, Loaded, Parameters, Role, Tokenizer, Weight, convert, freeze,
    load, unfreeze, visit_trainable_mut,
};
use alluvium_ops::cast;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The settings of a distillation.
#[derive(Clone, Debug, PartialEq)]
pub struct DistillSettings {
    /// The folder of the teacher.
    pub teacher: PathBuf,
    /// The folder of the student, which is left as it is.
    pub student: PathBuf,
    /// The new folder of the trained student.
    pub output: PathBuf,
    /// The data: a folder with `train.jsonl` and perhaps `valid.jsonl`, a `.jsonl` file, or a text.
    pub data: PathBuf,
    /// Samples to train on.
    pub num_samples: usize,
    /// The maximum length of a sample in tokens.
    pub max_seq_length: usize,
    /// Samples in a batch.
    pub batch_size: usize,
    /// Passes over the samples.
    pub epochs: usize,
    /// Adam's learning rate.
    pub learning_rate: f32,
    /// The divisor of both rows of logits.
    pub temperature: f32,
    /// Whether layers of the student are computed again in the backward pass.
    pub grad_checkpoint: bool,
    /// A folder of the teacher's largest logits, which are computed where they are missing. Without one the teacher
    /// stays in memory, and all its logits count.
    pub target_dir: Option<PathBuf>,
    /// The order of the samples.
    pub sample_order: SampleOrder,
    /// The seed of a random order, which also decides which samples are taken.
    pub seed: u64,
}

/// An event of a distillation.
#[derive(Debug)]
#[non_exhaustive]
pub enum DistillEvent<'a> {
    /// A long preparation begins.
    Preparing(&'a str),
    /// The targets of a batch are on disk.
    Targets {
        /// Batches done.
        done: usize,
        /// All batches.
        of: usize,
    },
    /// A step was taken.
    Stepped {
        /// Steps done.
        step: usize,
        /// All steps.
        of: usize,
        /// The mean divergence of the batch before the step, in nats per token.
        loss: f64,
        /// The tokens of the batch.
        tokens: usize,
    },
    /// The validation samples were measured.
    Validated {
        /// Steps done.
        step: usize,
        /// The mean divergence, in nats per token.
        loss: f64,
    },
}

/// Receives the events; `Break` ends the run, and nothing is written.
pub type DistillObserver<'a> = dyn FnMut(DistillEvent<'_>) -> ControlFlow<()> + 'a;

/// The result of a distillation.
#[derive(Clone, Debug)]
pub struct Distilled {
    /// The validation divergence before the first step and after the last one, in nats per token.
    pub validation: [f64; 2],
    /// The elements that were trained.
    pub trained: usize,
    /// The model that was written.
    pub model: Converted,
}

/// The number of logits of a token that are kept on disk, as in mlx-lm.
const LARGEST: usize = 1024;
/// Steps between validations.
const STEPS_PER_EVAL: usize = 200;
/// The most validation samples, where the data has none of its own.
const VALIDATION: usize = 32;

/// Trains all parameters of a plain student, and writes it to a new folder.
///
/// # Errors
/// When a file is missing or wrong, the vocabularies differ, the student is quantized, the loss is not finite, or memory
/// runs out. `None` when the observer broke.
pub fn distill(
    settings: &DistillSettings,
    device: &Device,
    observe: &mut DistillObserver<'_>,
) -> Result<Option<Distilled>> {
    run(settings, device, observe, &|student| {
        let mut packed = None;
        student.weights_mut("", &mut |name, _, weight| {
            if weight.quantized().is_some() {
                packed.get_or_insert_with(|| name.to_owned());
            }
        });
        match packed {
            Some(name) => Err(Error::value(
                "distill",
                format!("`{name}` of the student is quantized; use dwq, or a plain student"),
            )),
            None => {
                unfreeze(student, &|_| true);
                Ok(())
            }
        }
    })
}

impl DistillSettings {
    fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::value("distill", why));
        let counts = [("num_samples", self.num_samples), ("batch_size", self.batch_size), ("epochs", self.epochs)];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return wrong(format!("{name} is 0, expected 1 or more"));
        }
        if self.max_seq_length < 2 {
            return wrong(format!("max_seq_length is {}, expected 2 or more", self.max_seq_length));
        }
        for (name, value) in [("learning_rate", self.learning_rate), ("temperature", self.temperature)] {
            if !(value > 0.0 && value.is_finite()) {
                return wrong(format!("{name} is {value}, expected a finite value above 0"));
            }
        }
        Ok(())
    }
}

/// Computes the targets that a folder lacks, and no more.
///
/// # Errors
/// As [`distill`].
pub(super) fn targets(
    settings: &DistillSettings,
    device: &Device,
    observe: &mut DistillObserver<'_>,
) -> Result<ControlFlow<()>> {
    settings.check()?;
    let tokenizer = tokenizer(&settings.teacher)?;
    let batches = Batches::read(settings, &tokenizer)?;
    batches.write_targets(settings, device, observe)
}

/// A distillation of the parameters that `choose` makes trainable.
pub(super) fn run(
    settings: &DistillSettings,
    device: &Device,
    observe: &mut DistillObserver<'_>,
    choose: &dyn Fn(&mut dyn LanguageModel) -> Result<()>,
) -> Result<Option<Distilled>> {
    settings.check()?;
    alluvium_lm::refuse_existing(&settings.output)?;
    let batches = Batches::read(settings, &tokenizer(&settings.teacher)?)?;
    if batches.write_targets(settings, device, observe)?.is_break() {
        return Ok(None);
    }
    // nothing can be stopped between two loads
    let _ = observe(DistillEvent::Preparing("loading the model"));
    let teacher = match &settings.target_dir {
        Some(folder) => Teacher::Folder(TargetFolder::new(folder)),
        None => Teacher::Model(load(&settings.teacher, device)?.model),
    };
    let Loaded { mut model, .. } = load(&settings.student, device)?;
    choose(model.as_mut())?;
    let mut student = Student::new(model, settings, device)?;
    let Some(before) = student.validate(&teacher, &batches.validation, 0, observe)? else { return Ok(None) };
    let (mut after, steps) = (before, settings.epochs * batches.train.len());
    for step in 0..steps {
        let at = step % batches.train.len();
        let (loss, tokens) = student.step(teacher.batch(("train", at), &batches.train[at])?, step)?;
        if observe(DistillEvent::Stepped { step: step + 1, of: steps, loss, tokens }).is_break() {
            return Ok(None);
        }
        if (step + 1) % STEPS_PER_EVAL == 0 || step + 1 == steps {
            let Some(loss) = student.validate(&teacher, &batches.validation, step + 1, observe)? else {
                return Ok(None);
            };
            after = loss;
        }
    }
    let trained = student.weights.0.values().map(Tensor::elements).sum();
    let adapter = Adapter::of_tensors(&settings.output, student.weights.0);
    let change = Change::Fuse(adapter, Fuse::Requantize);
    let model = convert(&settings.student, &settings.output, None, &change, &mut |_, _| ())?;
    Ok(Some(Distilled { validation: [before, after], trained, model }))
}

fn tokenizer(folder: &Path) -> Result<Tokenizer> {
    Tokenizer::find(folder)?.ok_or_else(|| Error::file(folder, "the folder has no tokenizer.json"))
}

/// The batches of a run.
struct Batches {
    train: Vec<PackedBatch>,
    validation: Vec<PackedBatch>,
}

impl Batches {
    fn read(settings: &DistillSettings, tokenizer: &Tokenizer) -> Result<Self> {
        let longest = settings.max_seq_length;
        let own = |path: &Path| -> Result<Vec<Sample>> {
            let samples = read_calibration(path, tokenizer, longest)?;
            Ok(Samples::new(samples, longest, LongSamples::Cut).samples.to_vec())
        };
        let is_folder = settings.data.is_dir();
        let (train, valid) = (settings.data.join("train.jsonl"), settings.data.join("valid.jsonl"));
        let mut train = own(if is_folder { &train } else { &settings.data })?;
        if settings.sample_order == SampleOrder::Random {
            Rng::new(settings.seed, "samples").shuffle(&mut train);
        }
        let mut validation = if is_folder && valid.exists() {
            own(&valid)?
        } else {
            // what is left over, else a tenth
            let kept = train.len().saturating_sub(VALIDATION.min(train.len().div_ceil(10)));
            train.split_off(settings.num_samples.min(kept))
        };
        validation.truncate(VALIDATION);
        train.truncate(settings.num_samples);
        if train.is_empty() || validation.is_empty() {
            let why = "it has fewer than 2 samples; one is needed to train on, and one to validate";
            return Err(Error::file(&settings.data, why));
        }
        let batches = |samples: Vec<Sample>| {
            Samples { samples: samples.into(), ..Samples::default() }.batches(settings.batch_size, usize::MAX)
        };
        Ok(Batches { train: batches(train), validation: batches(validation) })
    }

    fn write_targets(
        &self,
        settings: &DistillSettings,
        device: &Device,
        observe: &mut DistillObserver<'_>,
    ) -> Result<ControlFlow<()>> {
        let Some(folder) = &settings.target_dir else { return Ok(ControlFlow::Continue(())) };
        let folder = TargetFolder::new(folder);
        if folder.has("train", self.train.len()) && folder.has("valid", self.validation.len()) {
            return Ok(ControlFlow::Continue(()));
        }
        let _ = observe(DistillEvent::Preparing("loading the teacher"));
        let teacher = load(&settings.teacher, device)?.model;
        let numbered = |split, batches: &[PackedBatch]| {
            batches.iter().cloned().enumerate().map(move |(at, batch)| ((split, at), batch)).collect::<Vec<_>>()
        };
        let all = [numbered("valid", &self.validation), numbered("train", &self.train)].concat();
        for (done, (place, batch)) in all.iter().enumerate() {
            let make = || TopLogits::of(&TeacherLogits::of(teacher.as_ref(), batch)?, LARGEST);
            folder.write(*place, batch, make)?;
            if observe(DistillEvent::Targets { done: done + 1, of: all.len() }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// The source of the teacher's logits.
enum Teacher {
    Model(Box<dyn LanguageModel>),
    Folder(TargetFolder),
}

impl Teacher {
    fn batch(&self, place: (&str, usize), tokens: &PackedBatch) -> Result<DistillBatch> {
        let teacher = match self {
            Teacher::Model(model) => TeacherLogits::of(model.as_ref(), tokens)?,
            Teacher::Folder(folder) => TeacherLogits::Largest(folder.read(place, tokens)?),
        };
        Ok(DistillBatch { tokens: tokens.clone(), teacher })
    }
}

/// The model that is trained.
struct Student {
    model: Box<dyn LanguageModel>,
    /// The trained parameters in f32. The model has them as they are stored, so that it computes what will be written.
    weights: Accumulators,
    stored: BTreeMap<String, DType>,
    optimizer: Optimizer,
    objective: Distillation,
    learning_rate: f32,
}

impl Student {
    fn new(mut model: Box<dyn LanguageModel>, settings: &DistillSettings, device: &Device) -> Result<Self> {
        let (mut weights, mut stored, mut result) = (BTreeMap::new(), BTreeMap::new(), Ok(()));
        visit_trainable_mut(model.as_mut(), &mut |name, slot| {
            stored.insert(name.clone(), slot.dtype());
            match to_dtype(&slot.detach(), DType::F32) {
                Ok(wide) => drop(weights.insert(name, wide)),
                Err(error) => result = Err(error),
            }
        });
        result?;
        let optimizer = Optimizer::new(OptimizerConfig {
            kind: OptimizerKind::Adam,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decayed: Decayed::All,
            bias_correction: true,
            ..OptimizerConfig::default()
        });
        let checkpointing = if settings.grad_checkpoint { Checkpointing::Layers } else { Checkpointing::None };
        let objective = Distillation { temperature: settings.temperature, checkpointing, device: device.clone() };
        let (weights, learning_rate) = (Accumulators(weights), settings.learning_rate);
        let mut student = Student { model, weights, stored, optimizer, objective, learning_rate };
        student.round()?;
        Ok(student)
    }

    /// Gives the model its parameters, rounded to the dtypes in which they are stored.
    fn round(&mut self) -> Result<()> {
        let Student { model, weights, stored, .. } = self;
        let mut result = Ok(());
        visit_trainable_mut(model.as_mut(), &mut |name, slot| {
            if let (Some(weight), Some(&dtype)) = (weights.0.get(&name), stored.get(&name)) {
                match to_dtype(weight, dtype).and_then(|rounded| to_dtype(&rounded, DType::F32)) {
                    Ok(rounded) => *slot = rounded,
                    Err(error) => result = Err(error),
                }
            }
        });
        result
    }

    /// One step of Adam: the loss before it, and the tokens.
    fn step(&mut self, batch: DistillBatch, step: usize) -> Result<(f64, usize)> {
        let tokens = batch.tokens.tokens();
        let Gradients { loss, mut by_name, .. } = gradients(self.model.as_mut(), &self.objective, &[batch])?;
        let loss = finite(f64::from(loss.item()?), step + 1)?;
        let device = self.objective.device.clone();
        let Student { optimizer, weights, learning_rate, .. } = self;
        device.run(|| optimizer.step(weights, &mut by_name, *learning_rate, step as u64 + 1))?;
        self.round()?;
        Ok((loss, tokens))
    }

    /// The mean loss of the validation batches; `None` when the observer broke.
    fn validate(
        &self,
        teacher: &Teacher,
        batches: &[PackedBatch],
        step: usize,
        observe: &mut DistillObserver<'_>,
    ) -> Result<Option<f64>> {
        let mut sum = WeightedSum::default();
        for (at, tokens) in batches.iter().enumerate() {
            let batch = teacher.batch(("valid", at), tokens)?;
            let loss = self.objective.loss(self.model.as_ref(), &batch)?.item()?;
            sum.add(f64::from(loss), self.objective.weight(&batch));
        }
        let loss = finite(sum.mean(), step)?;
        Ok(observe(DistillEvent::Validated { step, loss }).is_continue().then_some(loss))
    }
}

const NOT_FINITE: &str =
    "the weights of teacher or student are not finite: the checkpoint may be broken or badly converted";

fn finite(loss: f64, step: usize) -> Result<f64> {
    match loss.is_finite() {
        true => Ok(loss),
        false => {
            // before the first step it is no fault of the learning rate
            let advice = if step == 0 { NOT_FINITE } else { "lower the learning rate" };
            let why = format!("the loss is {loss} at step {step}; nothing was written; {advice}");
            Err(Error::value("distill", why))
        }
    }
}

fn to_dtype(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype { Ok(x.clone()) } else { cast(x, dtype) }
}

/// Parameters in f32 by their names in the model.
struct Accumulators(BTreeMap<String, Tensor>);

impl Parameters for Accumulators {
    fn parameters<'a>(&'a self, _: &str, f: &mut dyn FnMut(String, &'a Tensor, Role)) {
        self.0.iter().for_each(|(name, tensor)| f(name.clone(), tensor, Role::Trainable));
    }

    fn parameters_mut<'a>(&'a mut self, _: &str, f: &mut dyn FnMut(String, &'a mut Tensor, &mut Role)) {
        self.0.iter_mut().for_each(|(name, tensor)| f(name.clone(), tensor, &mut Role::Trainable));
    }
}

/// Makes everything trainable but the codes and the modules that `is_frozen` says yes to.
pub(super) fn train_all_but(model: &mut dyn LanguageModel, is_frozen: &dyn Fn(&Weight) -> bool) {
    let mut frozen = BTreeSet::new();
    model.weights_mut("", &mut |name, _, weight| {
        if is_frozen(weight) {
            frozen.insert(name.to_owned());
        }
    });
    unfreeze(model, &|_| true);
    freeze(model, &|name| name.rsplit_once('.').is_some_and(|(module, _)| frozen.contains(module)));
}
