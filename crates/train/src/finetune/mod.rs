//! Fine-tuning of a checkpoint: adapters or the parameters themselves, on conversations.

mod dropout;
mod memory;
mod references;
mod report;
mod settings;

pub use memory::estimate_memory;
pub use settings::FinetuneSettings;

use crate::data::{PackedBatch, SampleData, Samples, Targets, read_pairs, read_samples};
use crate::output::{AdapterOutput, Output};
use crate::state::{self, Progress};
use crate::trainer::{Observer, Trainer, TrainerParts, Validation, ValidationMetric};
use crate::{Event, LossKind, Masters, MemoryEstimate, NextToken, References, RunStatus};
use alluvium_core::{DType, Device, Error, Result};
use alluvium_lm::adapter::{Adapter, DropoutSwitch, dropout_switch, is_in_last_layers};
use alluvium_lm::{
    Checkpointing, LanguageModel, Loaded, Role, Tokenizer, attach_low_rank, freeze, load, set_dtype, unfreeze,
    visit_trainable_mut,
};
use alluvium_ops::cast;
use dropout::WithDropout;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A prepared fine-tuning run.
pub struct Finetune {
    /// The training loop.
    pub trainer: Trainer,
    /// The settings, with those that were chosen for the run.
    pub settings: FinetuneSettings,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// The data.
    pub data: FinetuneData,
    /// The memory of a step.
    pub memory: MemoryEstimate,
    /// Trained elements, and all of them.
    pub parameters: [usize; 2],
    dropout: Option<DropoutSwitch>,
    references: Option<References>,
}

impl std::fmt::Debug for Finetune {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Finetune").field("trainer", &self.trainer).finish_non_exhaustive()
    }
}

/// The samples of a run.
#[derive(Clone, Debug, Default)]
pub struct FinetuneData {
    /// Training samples.
    pub train: Samples,
    /// Validation samples; there may be none.
    pub validation: Samples,
    /// Test samples; there may be none.
    pub test: Samples,
}

impl FinetuneData {
    /// Reads `train.jsonl`, `valid.jsonl` and `test.jsonl` of a folder, or one file of training data.
    ///
    /// # Errors
    /// When there is no training data, a line is wrong, or no sample has a target.
    pub fn read(settings: &FinetuneSettings, tokenizer: &Tokenizer) -> Result<Self> {
        let targets = if settings.mask_prompt { Targets::Answers } else { Targets::All };
        let read = |path: &Path| -> Result<Samples> {
            let (longest, long) = (settings.max_seq_length, settings.long_samples);
            match settings.loss {
                LossKind::Sft => Ok(Samples::new(read_samples(path, tokenizer, targets)?, longest, long)),
                _ => Ok(Samples::of_pairs(read_pairs(path, tokenizer)?, longest, long)),
            }
        };
        let place = |name: &str| {
            let [lines, parquet] = ["jsonl", "parquet"].map(|end| settings.data.join(format!("{name}.{end}")));
            if parquet.exists() && !lines.exists() { parquet } else { lines }
        };
        let optional = |name: &str| {
            let path = place(name);
            if settings.data.is_dir() && path.exists() { read(&path) } else { Ok(Samples::default()) }
        };
        let train = match settings.data.is_dir() {
            true => place("train"),
            false => settings.data.clone(),
        };
        let missing = |path: &Path, what: &str| {
            let why =
                format!("there is no {what} data; --data takes a folder with train.jsonl (valid.jsonl, test.jsonl)");
            Error::file(path, why)
        };
        if settings.train && !train.exists() {
            return Err(missing(&train, "training"));
        }
        let data = FinetuneData {
            train: if train.exists() { read(&train)? } else { Samples::default() },
            validation: optional("valid")?,
            test: optional("test")?,
        };
        if settings.train && data.train.samples.is_empty() {
            let why = match data.train.without_target {
                0 => "it has no samples".to_owned(),
                count => format!("none of its {count} samples has a token that counts in the loss"),
            };
            return Err(Error::file(train, why));
        }
        if settings.test && data.test.samples.is_empty() {
            return Err(missing(&settings.data.join("test.jsonl"), "test"));
        }
        Ok(data)
    }
}

/// Keys that may differ when a run is resumed.
const CHANGEABLE_ON_RESUME: [&str; 9] = [
    "iters",
    "steps_per_report",
    "steps_per_eval",
    "save_every",
    "val_batches",
    "test",
    "test_batches",
    "train",
    "data",
];

/// Whether a run is begun or continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A new run in a folder without one.
    Begin,
    /// The run in the folder goes on at its last checkpoint.
    Resume,
}

impl Finetune {
    /// Loads the model and the data, attaches the adapters and measures the memory of a step.
    ///
    /// # Errors
    /// When a file is missing or wrong, the folder of the adapter holds another run, or a step does not fit the memory.
    pub fn prepare(
        mut settings: FinetuneSettings,
        start: Start,
        device: &Device,
        observe: &mut Observer<'_>,
    ) -> Result<Self> {
        let state_file = settings.adapter_path.join(state::FILE);
        let progress = match start {
            Start::Begin => {
                crate::folder::check(&settings.adapter_path)?;
                None
            }
            Start::Resume => Some(resumed(&state_file, &mut settings)?),
        };
        // nothing can be saved yet, so there is nothing to stop for
        let _ = observe(Event::Preparing("loading the model"));
        let Loaded { mut model, tokenizer, config } = load(&settings.model, device)?;
        let tokenizer = tokenizer.ok_or_else(|| Error::file(&settings.model, "the folder has no tokenizer.json"))?;
        let _ = observe(Event::Preparing("reading the data"));
        let data = FinetuneData::read(&settings, &tokenizer)?;
        let references = references::references(model.as_ref(), &settings, &data)?;
        let dtypes = make_trainable(model.as_mut(), &settings)?;
        if let Some(file) = &settings.resume_adapter_file
            && progress.is_none()
        {
            begin_with(model.as_mut(), file, &settings, device)?;
        }
        if progress.is_some() {
            state::restore_parameters(&state_file, model.as_mut(), device)?;
        }
        let masters = Masters::take(model.as_mut(), settings.dtype.into())?;
        let _ = observe(Event::Preparing("measuring the memory of a step"));
        let memory = choose_memory(model.as_mut(), &mut settings, &data)?;
        let parameters = count(model.as_ref());
        let batches = |samples: &Samples, most: i64| {
            samples.batches(settings.batch_size, usize::try_from(most).unwrap_or(usize::MAX))
        };
        let validation = Validation {
            batches: batches(&data.validation, settings.val_batches),
            metric: ValidationMetric::Loss,
            baseline: None,
        };
        let keys = settings.to_keys()?;
        let forward = NextToken { checkpointing: memory.checkpointing, ..NextToken::new(device) };
        let objective = references::objective(forward, &settings, references.clone());
        let switch = dropout_switch(model.as_mut());
        let done = progress.as_ref().map_or(0, |progress| progress.step) * settings.grad_accumulation_steps;
        let trainer = Trainer::new(TrainerParts {
            model,
            config,
            tokenizer: None,
            objective: match switch.clone() {
                Some(switch) => Box::new(WithDropout { objective, switch, next: done.into() }),
                None => objective,
            },
            data: Box::new(SampleData::new(&data.train, settings.batch_size, settings.sample_order, settings.seed)?),
            validation,
            settings: settings.loop_settings()?,
            device: device.clone(),
        });
        let trainer = trainer
            .with_masters(masters)
            .with_record(keys.clone().into())
            .with_output(Output::Adapter(AdapterOutput { config: keys, dtypes }));
        let trainer = match &progress {
            Some(progress) => trainer.restored(&settings.adapter_path, progress)?,
            None => trainer.with_folder(&settings.adapter_path)?,
        };
        if let Some(references) = &references {
            references::write(references, &settings)?;
        }
        Ok(Finetune { trainer, settings, tokenizer, data, memory, parameters, dropout: switch, references })
    }

    /// Trains to the last step, or until the observer breaks; then saves. Afterwards the model drops nothing.
    ///
    /// # Errors
    /// As [`Trainer::run`].
    pub fn run(&mut self, observe: &mut Observer<'_>) -> Result<RunStatus> {
        let status = self.trainer.run(observe);
        self.dropout.iter().for_each(DropoutSwitch::off);
        status
    }

    /// The mean loss of the test data.
    ///
    /// # Errors
    /// When memory runs out, or the loss is NaN.
    pub fn test_loss(&self, observe: &mut Observer<'_>) -> Result<f64> {
        test_loss(self.trainer.model(), (&self.data.test, self.references.as_ref()), &self.settings, observe)
    }
}

/// The mean loss of test samples per target, or per pair.
fn test_loss(
    model: &(dyn LanguageModel + 'static),
    (samples, references): (&Samples, Option<&References>),
    settings: &FinetuneSettings,
    observe: &mut Observer<'_>,
) -> Result<f64> {
    let most = usize::try_from(settings.test_batches).unwrap_or(usize::MAX);
    let batches: Vec<PackedBatch> = samples.batches(settings.batch_size, most);
    let objective = references::objective(NextToken::new(model.device()), settings, references.cloned());
    let (mut sum, mut weight) = (0.0, 0.0);
    for (done, batch) in batches.iter().enumerate() {
        let count = objective.weight(batch);
        sum += count * f64::from(objective.validation_loss(model, batch)?.item()?);
        weight += count;
        if observe(Event::Evaluated { done: done + 1, of: batches.len() }).is_break() {
            break;
        }
    }
    let loss = sum / weight;
    match loss.is_nan() {
        true => {
            let why = "the model's weights or those of the adapter are not finite, or no token of it counts";
            Err(Error::value("finetune", format!("the test loss is NaN: {why}")))
        }
        false => Ok(loss),
    }
}

/// The loss of the test data with the adapter in `adapter_path`, or without one where that folder does not exist.
///
/// # Errors
/// When a file is missing or wrong, or memory runs out.
pub fn test(settings: &FinetuneSettings, device: &Device, observe: &mut Observer<'_>) -> Result<f64> {
    let Loaded { mut model, tokenizer, .. } = load(&settings.model, device)?;
    let tokenizer = tokenizer.ok_or_else(|| Error::file(&settings.model, "the folder has no tokenizer.json"))?;
    let data = FinetuneData::read(settings, &tokenizer)?;
    let references = references::references(model.as_ref(), settings, &data)?;
    if settings.adapter_path.exists() {
        Adapter::read(&settings.adapter_path, device)?.attach(model.as_mut())?;
    }
    set_dtype(model.as_mut(), settings.dtype.into())?;
    test_loss(model.as_ref(), (&data.test, references.as_ref()), settings, observe)
}

/// The state of the run that is resumed. Its settings go on but for those that may differ.
fn resumed(file: &Path, settings: &mut FinetuneSettings) -> Result<Progress> {
    let progress = state::progress(file)?;
    let before: FinetuneSettings = progress.settings(file)?;
    let (was, now) = (before.to_keys()?, settings.to_keys()?);
    let differs = |key: &&String| was.get(*key) != now.get(*key) && !CHANGEABLE_ON_RESUME.contains(&key.as_str());
    if let Some(key) = now.keys().find(differs) {
        let (was, now) = (was.get(key).cloned().unwrap_or_default(), now.get(key).cloned().unwrap_or_default());
        return Err(Error::file(
            file,
            format!("the run cannot be resumed with another {key}: it was {was}, now {now}"),
        ));
    }
    Ok(progress)
}

/// Freezes the model but for what is trained. Returns the dtypes in which trained parameters are stored.
fn make_trainable(model: &mut dyn LanguageModel, settings: &FinetuneSettings) -> Result<BTreeMap<String, DType>> {
    freeze(model, &|_| true);
    let layers = model.cache_shapes().len();
    if let Some(parameters) = &settings.lora_parameters {
        attach_low_rank(model, settings.fine_tune_type, parameters, settings.num_layers, settings.seed)?;
        return freeze_plain(model).map(|()| BTreeMap::new());
    }
    if settings.num_layers > layers as i64 {
        let why = format!(
            "num_layers is {}, the model has {layers} layers; give {layers}, or -1 for all",
            settings.num_layers
        );
        return Err(Error::value("finetune", why));
    }
    if unfreeze(model, &|name| is_in_last_layers(name, settings.num_layers, layers) && !is_packed(name)) == 0 {
        return Err(Error::value("finetune", "no parameter can be trained: the model is quantized; use lora or dora"));
    }
    // updates in half precision would be lost in rounding
    let (mut dtypes, mut result) = (BTreeMap::new(), Ok(()));
    visit_trainable_mut(model, &mut |name, slot| {
        dtypes.insert(name, slot.dtype());
        if slot.dtype() != DType::F32 {
            match cast(slot, DType::F32) {
                Ok(wide) => *slot = wide,
                Err(error) => result = Err(error),
            }
        }
    });
    result.map(|()| dtypes)
}

/// Scales and biases of quantized weights, which belong to their codes.
fn is_packed(name: &str) -> bool {
    name.ends_with(".scales") || name.ends_with(".biases")
}

/// A plain tensor among a layer's fields cannot be frozen: all of a model's are parameters with roles.
fn freeze_plain(model: &mut dyn LanguageModel) -> Result<()> {
    let mut stray = None;
    model.parameters("", &mut |name, _, role| {
        let part = name.rsplit_once('.').map_or("", |(_, part)| part);
        if role == Role::Trainable && !["lora_a", "lora_b", "m"].contains(&part) {
            stray.get_or_insert(name);
        }
    });
    match stray {
        Some(name) => Err(Error::value("finetune", format!("`{name}` cannot be frozen: make it a `Parameter`"))),
        None => Ok(()),
    }
}

/// Begins with the tensors of a file of an earlier run; those that it lacks stay new.
fn begin_with(
    model: &mut dyn LanguageModel,
    file: &PathBuf,
    settings: &FinetuneSettings,
    device: &Device,
) -> Result<()> {
    let adapter = Adapter::read_file(file, settings.fine_tune_type, settings.lora_parameters.as_ref(), device)?;
    let mut left: BTreeMap<String, _> = adapter.tensors().collect();
    let mut result = Ok(());
    visit_trainable_mut(model, &mut |name, slot| {
        if let Some(tensor) = left.remove(&name)
            && result.is_ok()
        {
            if tensor.shape() != slot.shape() {
                let why = format!("`{name}` is {}, this run has {}", tensor.shape(), slot.shape());
                result = Err(Error::file(file, why));
            } else if tensor.dtype() == DType::F32 {
                *slot = tensor.clone();
            } else {
                result = cast(tensor, DType::F32).map(|wide| *slot = wide);
            }
        }
    });
    result?;
    match left.keys().next() {
        Some(name) => Err(Error::file(file, format!("`{name}` is not trained in this run"))),
        None => Ok(()),
    }
}

/// The memory of a step. Recomputes layers where a step does not fit otherwise.
fn choose_memory(
    model: &mut (dyn LanguageModel + 'static),
    settings: &mut FinetuneSettings,
    data: &FinetuneData,
) -> Result<MemoryEstimate> {
    let longest = data.train.longest().max(data.validation.longest());
    let tokens = longest.saturating_mul(settings.batch_size).saturating_mul(data.train.pairing.size());
    let tokens = tokens.min(data.train.tokens().max(1));
    let mut memory = None;
    for checkpointing in [Checkpointing::None, Checkpointing::Layers] {
        if settings.grad_checkpoint && checkpointing == Checkpointing::None {
            continue;
        }
        let estimate = estimate_memory(model, checkpointing, tokens, (settings.optimizer, settings.dtype))?;
        memory = Some(estimate);
        if estimate.fits() {
            settings.grad_checkpoint = checkpointing == Checkpointing::Layers;
            return Ok(estimate);
        }
    }
    let estimate = memory.ok_or_else(|| Error::value("finetune", "no estimate was made"))?;
    let fits = estimate.tokens_that_fit().unwrap_or(0);
    let why = format!(
        "a step of {} tokens takes {} MiB with recomputed layers, {} MiB are available: {fits} tokens fit; lower \
         --batch-size or --max-seq-length",
        estimate.tokens,
        estimate.total() >> 20,
        estimate.available.unwrap_or(0) >> 20,
    );
    Err(Error::value("finetune", why))
}

/// Trained elements, and all of them.
fn count(model: &dyn LanguageModel) -> [usize; 2] {
    let mut counts = [0; 2];
    model.parameters("", &mut |_, tensor, role| {
        counts[1] += tensor.elements();
        if role == Role::Trainable {
            counts[0] += tensor.elements();
        }
    });
    counts
}
