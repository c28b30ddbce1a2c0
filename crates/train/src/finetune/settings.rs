//! The settings of fine-tuning: those of `mlx_lm.lora`, from flags, YAML and TOML.

use crate::data::{LongSamples, SampleOrder};
use crate::trainer::{FirstValidation, LoopSettings};
use crate::{Adafactor, Decayed, LossKind, LrSchedule, OptimizerConfig, OptimizerKind, Schedule, TrainDtype};
use alluvium_core::{Error, Result};
use alluvium_lm::{FineTuneType, LoraParameters};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The settings of a fine-tuning run. Names and defaults are those of `mlx_lm.lora`; what that program lacks comes
/// last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneSettings {
    /// The folder of the model.
    pub model: PathBuf,
    /// Whether to train.
    pub train: bool,
    /// A folder of `train.jsonl`, `valid.jsonl` and `test.jsonl`, or one file to train on.
    pub data: PathBuf,
    /// What is trained.
    pub fine_tune_type: FineTuneType,
    /// The optimizer.
    pub optimizer: OptimizerKind,
    /// Its constants, by its name.
    pub optimizer_config: Map<String, Value>,
    /// Whether only answers count in the loss.
    pub mask_prompt: bool,
    /// The number of layers to train, from the last one; -1 trains all.
    pub num_layers: i64,
    /// Samples in a batch.
    pub batch_size: usize,
    /// Batches to train on.
    pub iters: u64,
    /// Validation batches; -1 takes all.
    pub val_batches: i64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Batches between reports of the training loss.
    pub steps_per_report: u64,
    /// Batches between validations.
    pub steps_per_eval: u64,
    /// Batches whose gradients are averaged before a step.
    pub grad_accumulation_steps: u64,
    /// An adapter that the training begins with.
    pub resume_adapter_file: Option<PathBuf>,
    /// The folder of the adapter.
    pub adapter_path: PathBuf,
    /// Batches between checkpoints.
    pub save_every: u64,
    /// Whether to measure the loss of the test data at the end.
    pub test: bool,
    /// Test batches; -1 takes all.
    pub test_batches: i64,
    /// The maximum length of a sample in tokens.
    pub max_seq_length: usize,
    /// Whether layers are computed again in the backward pass instead of keeping their activations.
    pub grad_checkpoint: bool,
    /// A schedule of the learning rate, in the place of `learning_rate`.
    pub lr_schedule: Option<LrSchedule>,
    /// The low-rank updates.
    pub lora_parameters: Option<LoraParameters>,
    /// The seed of new adapters and of the order of samples.
    pub seed: u64,
    /// What is done with samples longer than `max_seq_length`. mlx-lm cuts them.
    pub long_samples: LongSamples,
    /// The order of samples.
    pub sample_order: SampleOrder,
    /// Maximum norm of the gradient; 0 disables clipping.
    pub grad_clip: f32,
    /// What is minimized: the cross-entropy of samples, or a preference on pairs of answers.
    pub loss: LossKind,
    /// The temperature of DPO, or the weight of ORPO's odds ratio.
    pub beta: f32,
    /// The dtype of activations and of the working copies of trained parameters.
    pub dtype: TrainDtype,
}

impl Default for FinetuneSettings {
    fn default() -> Self {
        FinetuneSettings {
            model: PathBuf::new(),
            train: false,
            data: PathBuf::new(),
            fine_tune_type: FineTuneType::Lora,
            optimizer: OptimizerKind::Adam,
            optimizer_config: Map::new(),
            mask_prompt: false,
            num_layers: 16,
            batch_size: 4,
            iters: 1000,
            val_batches: 25,
            learning_rate: 1e-5,
            steps_per_report: 10,
            steps_per_eval: 200,
            grad_accumulation_steps: 1,
            resume_adapter_file: None,
            adapter_path: PathBuf::from("adapters"),
            save_every: 100,
            test: false,
            test_batches: 500,
            max_seq_length: 2048,
            grad_checkpoint: false,
            lr_schedule: None,
            lora_parameters: None,
            seed: 0,
            long_samples: LongSamples::Cut,
            sample_order: SampleOrder::Random,
            grad_clip: 0.0,
            loss: LossKind::Sft,
            beta: 0.1,
            dtype: TrainDtype::F32,
        }
    }
}

/// Keys of mlx-lm's configurations that change nothing here: services that logs go to, caches, code of a model.
const WITHOUT_EFFECT: [&str; 6] =
    ["config", "report_to", "project_name", "trust_remote_code", "clear_cache_threshold", "wandb"];

/// The constants of Adafactor in `optimizer_config`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AdafactorKeys {
    eps: Option<[f32; 2]>,
    clip_threshold: Option<f32>,
    decay_rate: Option<f32>,
    beta_1: Option<f32>,
    weight_decay: f32,
    scale_parameter: Option<bool>,
    relative_step: Option<bool>,
    warmup_init: bool,
}

impl AdafactorKeys {
    fn settings(&self) -> Result<Adafactor> {
        let default = Adafactor::default();
        let settings = Adafactor {
            eps: self.eps.unwrap_or(default.eps),
            clip_threshold: self.clip_threshold.unwrap_or(default.clip_threshold),
            decay_rate: self.decay_rate.unwrap_or(default.decay_rate),
            beta1: self.beta_1,
            scale_parameter: self.scale_parameter.unwrap_or(default.scale_parameter),
            relative_step: self.relative_step.unwrap_or(default.relative_step),
            warmup_init: self.warmup_init,
        };
        let wrong = |key: &str, value: f32, what: &str| {
            let why = format!("`optimizer_config.adafactor`: {key} is {value}, expected {what}");
            Err(Error::value("finetune", why))
        };
        if !(settings.clip_threshold > 0.0 && settings.clip_threshold.is_finite()) {
            return wrong("clip_threshold", settings.clip_threshold, "a finite value above 0");
        }
        if let Some(&eps) = settings.eps.iter().find(|eps| !(**eps > 0.0 && eps.is_finite())) {
            return wrong("eps", eps, "finite values above 0");
        }
        if !(settings.decay_rate < 0.0 && settings.decay_rate.is_finite()) {
            return wrong("decay_rate", settings.decay_rate, "a finite value below 0");
        }
        match settings.beta1 {
            Some(beta) if !(0.0..1.0).contains(&beta) => wrong("beta_1", beta, "0 or more and less than 1"),
            _ => Ok(settings),
        }
    }
}

/// The constants of an optimizer in `optimizer_config`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct OptimizerKeys {
    betas: Option<[f32; 2]>,
    eps: Option<f32>,
    bias_correction: bool,
    weight_decay: Option<f32>,
}

impl FinetuneSettings {
    /// Reads a configuration file: TOML where its name ends in `.toml`, else YAML. Keys without effect are left out.
    ///
    /// # Errors
    /// When it cannot be read or parsed.
    pub fn read_file(path: &Path) -> Result<Map<String, Value>> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let wrong = |why: String| Error::file(path, why);
        let parsed: Option<Map<String, Value>> = if path.extension().is_some_and(|end| end == "toml") {
            Some(toml::from_str(&text).map_err(|error| wrong(error.to_string()))?)
        } else {
            serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?
        };
        let mut keys = parsed.unwrap_or_default();
        keys.retain(|key, value| !WITHOUT_EFFECT.contains(&key.as_str()) && !value.is_null());
        if keys.contains_key("hf_dataset") {
            return Err(wrong(
                "`hf_dataset`: nothing is downloaded; save the data set as JSON lines, give `data`".into(),
            ));
        }
        // checked here, so that the error names the file
        Self::from_keys(keys.clone()).map_err(|error| wrong(error.to_string()))?;
        Ok(keys)
    }

    /// The defaults with these keys.
    ///
    /// # Errors
    /// When a key is not known, or a value is of another type or out of range.
    pub fn from_keys(keys: Map<String, Value>) -> Result<Self> {
        let wrong = |why: String| Error::value("finetune", why);
        let mut settings: Self = serde_path_to_error::deserialize(Value::Object(keys)).map_err(|error| {
            // the whole object has no key to name
            let key = error.path().to_string();
            let why = error.into_inner().to_string();
            wrong(if key == "." { why } else { format!("`{key}`: {why}") })
        })?;
        if settings.fine_tune_type != FineTuneType::Full {
            settings.lora_parameters.get_or_insert_with(LoraParameters::default);
        } else {
            settings.lora_parameters = None;
        }
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::value("finetune", why));
        let counts = [
            ("batch_size", self.batch_size as u64),
            ("iters", self.iters),
            ("steps_per_report", self.steps_per_report),
            ("steps_per_eval", self.steps_per_eval),
            ("grad_accumulation_steps", self.grad_accumulation_steps),
            ("save_every", self.save_every),
            ("rank", self.lora_parameters.as_ref().map_or(1, |parameters| parameters.rank as u64)),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return wrong(format!("{name} is 0, expected 1 or more"));
        }
        // what is counted in a step is a product of two of these
        let most = u64::from(u32::MAX);
        let bounded = [
            ("batch_size", self.batch_size as u64),
            ("max_seq_length", self.max_seq_length as u64),
            ("grad_accumulation_steps", self.grad_accumulation_steps),
        ];
        if let Some((name, count)) = bounded.iter().find(|(_, count)| *count > most) {
            return wrong(format!("{name} is {count}, expected at most {most}"));
        }
        for (name, count) in [("val_batches", self.val_batches), ("test_batches", self.test_batches)] {
            if count < -1 {
                return wrong(format!("{name} is {count}, expected 0 or more, or -1 for all"));
            }
        }
        if self.max_seq_length < 2 {
            return wrong(format!("max_seq_length is {}, expected 2 or more", self.max_seq_length));
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return wrong(format!("learning_rate is {}, expected a finite value above 0", self.learning_rate));
        }
        if !(self.grad_clip >= 0.0 && self.grad_clip.is_finite()) {
            return wrong(format!("grad_clip is {}, expected 0 or more", self.grad_clip));
        }
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return wrong(format!("beta is {}, expected a finite value above 0", self.beta));
        }
        if let Some(LoraParameters { scale, dropout, .. }) = &self.lora_parameters {
            if !scale.is_finite() {
                return wrong(format!("scale is {scale}, expected a finite value"));
            }
            if !(0.0..1.0).contains(dropout) {
                return wrong(format!("dropout is {dropout}, expected 0 or more and less than 1"));
            }
        }
        if let Some(schedule) = &self.lr_schedule {
            schedule.check()?;
        }
        self.optimizer_settings().map(|_| ())
    }

    /// The constants of the optimizer, with MLX's defaults.
    fn optimizer_settings(&self) -> Result<OptimizerConfig> {
        let name = self.optimizer.to_string();
        let given = self.optimizer_config.get(&name).filter(|keys| !keys.is_null()).cloned();
        let given = given.unwrap_or_else(|| Value::Object(Map::new()));
        let wrong = |error| Error::value("finetune", format!("`optimizer_config.{name}`: {error}"));
        if self.optimizer == OptimizerKind::Adafactor {
            let keys: AdafactorKeys = serde_json::from_value(given).map_err(wrong)?;
            return Ok(OptimizerConfig {
                kind: self.optimizer,
                weight_decay: keys.weight_decay,
                decayed: Decayed::All,
                adafactor: keys.settings()?,
                ..OptimizerConfig::default()
            });
        }
        let keys: OptimizerKeys = serde_json::from_value(given).map_err(wrong)?;
        let [beta1, beta2] = keys.betas.unwrap_or([0.9, 0.999]);
        let weight_decay = keys.weight_decay.unwrap_or(match self.optimizer {
            OptimizerKind::Adam | OptimizerKind::Sgd => 0.0,
            OptimizerKind::AdamW | OptimizerKind::Muon | OptimizerKind::Adafactor => 0.01,
        });
        Ok(OptimizerConfig {
            kind: self.optimizer,
            beta1,
            beta2,
            eps: keys.eps.unwrap_or(1e-8),
            weight_decay,
            decayed: Decayed::All,
            bias_correction: keys.bias_correction,
            ..OptimizerConfig::default()
        })
    }

    /// The settings of the loop, which counts optimizer steps: `grad_accumulation_steps` batches each.
    ///
    /// # Errors
    /// When the optimizer has other constants.
    pub fn loop_settings(&self) -> Result<LoopSettings> {
        let steps = |batches: u64| batches.div_ceil(self.grad_accumulation_steps);
        let schedule = match &self.lr_schedule {
            Some(schedule) => Schedule::Mlx(schedule.clone()),
            None => Schedule::Constant(self.learning_rate as f32),
        };
        Ok(LoopSettings {
            iters: steps(self.iters),
            grad_accumulation_steps: self.grad_accumulation_steps as usize,
            grad_clip: self.grad_clip,
            steps_per_report: steps(self.steps_per_report),
            steps_per_eval: steps(self.steps_per_eval),
            save_every: steps(self.save_every),
            first_validation: FirstValidation::BeforeTraining,
            schedule,
            optimizer: self.optimizer_settings()?,
        })
    }

    /// The settings as `adapter_config.json` has them.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub fn to_keys(&self) -> Result<Map<String, Value>> {
        match serde_json::to_value(self) {
            Ok(Value::Object(keys)) => Ok(keys),
            Ok(_) => Ok(Map::new()),
            Err(error) => Err(Error::value("finetune", format!("the settings cannot be written: {error}"))),
        }
    }
}
