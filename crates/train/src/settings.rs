//! The settings of a run: a preset sets all of them; a TOML file and flags override some.

mod architecture;
mod preset;
#[cfg(test)]
mod tests;

use crate::data::Task;
use crate::trainer::{FirstValidation, LoopSettings};
use crate::{OptimizerConfig, OptimizerKind, Schedule, TrainDtype};
use alluvium_core::{Error, Result};
pub use preset::Preset;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Declares [`Settings`], [`Architecture`] and [`Overrides`] from one table, so that none lacks a setting.
macro_rules! settings {
    (
        run { $($(#[doc = $doc:literal])+ $name:ident: $ty:ty => $value:literal $(alias $flag:literal $key:literal)? $(bare $bare:literal)? $(missing $missing:ident)?,)* }
        shape { $($(#[doc = $shape_doc:literal])+ $shape:ident: usize,)* }
    ) => {
        /// The settings of a run.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct Settings {
            /// The preset that the run began with.
            pub preset: Preset,
            $($(#[doc = $doc])+ $(#[serde($missing)])? pub $name: $ty,)*
            /// The model's shape.
            pub architecture: Architecture,
        }

        /// The shape of a model; the names are those of config.json.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct Architecture {
            $($(#[doc = $shape_doc])+ pub $shape: usize,)*
        }

        /// Settings that differ from the preset: keys of a TOML file, and flags.
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        #[cfg_attr(feature = "clap", derive(clap::Args))]
        pub struct Overrides {
            /// Preset for all other settings: tiny (1 million parameters), small (5 million), base (100 million)
            #[cfg_attr(feature = "clap", arg(long, visible_alias = "size", value_enum))]
            #[serde(alias = "size")]
            pub preset: Option<Preset>,
            $(
                $(#[doc = $doc])+
                #[cfg_attr(feature = "clap", arg(long, value_name = $value $(, alias = $flag)? $(, num_args = 0..=1, default_missing_value = $bare)?))]
                $(#[serde(alias = $key)])?
                pub $name: Option<$ty>,
            )*
            $(
                $(#[doc = $shape_doc])+
                #[cfg_attr(feature = "clap", arg(long, value_name = "N", help_heading = "Model shape"))]
                pub $shape: Option<usize>,
            )*
        }

        impl Overrides {
            /// The settings of the preset with these overrides.
            ///
            /// # Errors
            /// When a setting is out of range.
            pub fn settings(&self) -> Result<Settings> {
                let mut settings = Settings::of(self.preset.unwrap_or_default());
                if let Some(iters) = self.iters {
                    settings.warmup = iters / 20;
                }
                self.applied(settings)?.fit_for_text()
            }

            /// The settings that suit a synthetic task with these overrides; the preset is ignored.
            ///
            /// # Errors
            /// When a setting is out of range.
            pub fn settings_for(&self, task: Task) -> Result<Settings> {
                let mut settings = Settings::of_task(task);
                if let Some(iters) = self.iters {
                    settings.warmup = iters / 20;
                }
                self.over(settings).checked()
            }

            /// Other settings with these overrides.
            ///
            /// # Errors
            /// When a setting is out of range.
            pub fn applied(&self, settings: Settings) -> Result<Settings> {
                self.over(settings).checked()
            }

            fn over(&self, mut settings: Settings) -> Settings {
                settings.preset = self.preset.unwrap_or(settings.preset);
                $(if let Some(x) = self.$name { settings.$name = x; })*
                $(if let Some(x) = self.$shape { settings.architecture.$shape = x; })*
                settings
            }

            /// These overrides and those of `over`, which win.
            pub fn overlaid(self, over: Self) -> Self {
                Overrides {
                    preset: over.preset.or(self.preset),
                    $($name: over.$name.or(self.$name),)*
                    $($shape: over.$shape.or(self.$shape),)*
                }
            }
        }

        impl Architecture {
            /// Every size by its name.
            fn sizes(&self) -> impl Iterator<Item = (&'static str, usize)> + Clone {
                [$((stringify!($shape), self.$shape),)*].into_iter()
            }
        }

        impl Settings {
            /// The name and value of every setting.
            pub fn listing(&self) -> Vec<(&'static str, String)> {
                vec![
                    $((stringify!($name), self.$name.to_string()),)*
                    $((stringify!($shape), self.architecture.$shape.to_string()),)*
                ]
            }

            /// The settings as TOML: a file that [`Overrides::read`] takes.
            pub fn toml(&self) -> String {
                let mut text = format!("preset = \"{}\"\n", self.preset);
                $(text += &format!("{} = {}\n", stringify!($name), quoted(&self.$name.to_string()));)*
                text += "\n";
                $(text += &format!("{} = {}\n", stringify!($shape), self.architecture.$shape);)*
                text
            }

            /// The settings that differ from those of another run, with both values.
            pub fn differences(&self, other: &Self) -> Vec<String> {
                let mut all = Vec::new();
                if self.preset != other.preset {
                    all.push(format!("preset was {}, now {}", self.preset, other.preset));
                }
                $(if self.$name != other.$name {
                    all.push(format!("{} was {}, now {}", stringify!($name), self.$name, other.$name));
                })*
                $(if self.architecture.$shape != other.architecture.$shape {
                    let (was, now) = (self.architecture.$shape, other.architecture.$shape);
                    all.push(format!("{} was {was}, now {now}", stringify!($shape)));
                })*
                all
            }
        }
    };
}

/// A value in TOML: numbers and truth values as they are, names quoted.
fn quoted(value: &str) -> String {
    match value.parse::<f64>().is_ok() || ["true", "false"].contains(&value) {
        true => value.to_owned(),
        false => format!("\"{value}\""),
    }
}

settings! {
  run {
    /// Number of optimizer steps
    iters: u64 => "N",
    /// Sequences of `max_seq_length` tokens in a batch; texts are packed without padding
    batch_size: usize => "N",
    /// Maximum sequence length; longer documents are cut into sequences of this length
    max_seq_length: usize => "N",
    /// Peak learning rate; it rises over `warmup` steps and falls along a cosine to a tenth
    learning_rate: f32 => "X",
    /// Number of warm-up steps
    warmup: u64 => "N",
    /// Decoupled weight decay of the matrices
    weight_decay: f32 => "X",
    /// AdamW: decay of the mean of gradients
    beta1: f32 => "X",
    /// AdamW: decay of the mean of squared gradients
    beta2: f32 => "X",
    /// Maximum norm of the gradient; 0 disables clipping
    grad_clip: f32 => "X",
    /// Batches whose gradients are averaged before a step
    grad_accumulation_steps: usize => "N",
    /// adamw or muon
    optimizer: OptimizerKind => "NAME",
    /// Dtype of activations and working weights: f32 or bf16, which halves the memory of activations. Masters, moments and
    /// gradients of parameters are f32
    dtype: TrainDtype => "DTYPE" missing default,
    /// Recompute layers in the backward pass instead of keeping their activations
    grad_checkpoint: bool => "BOOL" bare "true",
    /// Weight of the squared log-sum-exp in the loss; 0 disables it
    z_loss: f32 => "X",
    /// Seed of weights and data order
    seed: u64 => "N",
    /// Share of the text, in bytes, that is set apart for validation; 0 disables validation
    val_split: f64 => "X" alias "held-out" "held_out",
    /// Number of validation batches; 0 takes all
    val_batches: usize => "N",
    /// Steps between reports of the training loss
    steps_per_report: u64 => "N",
    /// Steps between validations
    steps_per_eval: u64 => "N",
    /// Steps between checkpoints
    save_every: u64 => "N",
  }
  shape {
    /// Width of the residual stream
    hidden_size: usize,
    /// Width of the SwiGLU layers
    intermediate_size: usize,
    /// Number of layers: every `full_attention_interval`-th is attention, the others are Gated DeltaNet
    num_hidden_layers: usize,
    /// Interval of the attention layers
    full_attention_interval: usize,
    /// Query heads of an attention layer
    num_attention_heads: usize,
    /// Key and value heads of an attention layer
    num_key_value_heads: usize,
    /// Width of an attention head
    head_dim: usize,
    /// Key heads of a Gated DeltaNet layer
    linear_num_key_heads: usize,
    /// Value heads of a Gated DeltaNet layer
    linear_num_value_heads: usize,
    /// Width of a key head
    linear_key_head_dim: usize,
    /// Width of a value head
    linear_value_head_dim: usize,
    /// Kernel size of the short convolution
    linear_conv_kernel_dim: usize,
    /// Vocabulary size of the tokenizer that is trained; ignored with --tokenizer
    vocab_size: usize,
  }
}

impl Settings {
    fn checked(self) -> Result<Self> {
        let wrong = |name: &str, why: &str| Err(Error::value("settings", format!("{name} {why}")));
        let counts = [
            ("iters", self.iters as usize),
            ("batch_size", self.batch_size),
            ("max_seq_length", self.max_seq_length),
            ("grad_accumulation_steps", self.grad_accumulation_steps),
            ("steps_per_report", self.steps_per_report as usize),
            ("steps_per_eval", self.steps_per_eval as usize),
            ("save_every", self.save_every as usize),
        ];
        let zero = counts.into_iter().chain(self.architecture.sizes()).find(|(_, n)| *n == 0);
        if let Some((name, _)) = zero {
            return wrong(name, "is 0, expected 1 or more");
        }
        if self.batch_size.checked_mul(self.max_seq_length).is_none_or(|n| n > u32::MAX as usize) {
            let why = format!(
                "times max_seq_length is {} × {}, expected at most {}",
                self.batch_size,
                self.max_seq_length,
                u32::MAX
            );
            return wrong("batch_size", &why);
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return wrong("learning_rate", &format!("is {}, expected a finite value above 0", self.learning_rate));
        }
        let weights = [("weight_decay", self.weight_decay), ("grad_clip", self.grad_clip), ("z_loss", self.z_loss)];
        if let Some((name, x)) = weights.iter().find(|(_, x)| !(*x >= 0.0 && x.is_finite())) {
            return wrong(name, &format!("is {x}, expected 0 or more"));
        }
        let shares =
            [("beta1", f64::from(self.beta1)), ("beta2", f64::from(self.beta2)), ("val_split", self.val_split)];
        if let Some((name, x)) = shares.iter().find(|(_, x)| !(0.0..1.0).contains(x)) {
            return wrong(name, &format!("is {x}, expected 0 or more and less than 1"));
        }
        Ok(self)
    }

    fn fit_for_text(self) -> Result<Self> {
        let shape = &self.architecture;
        let wrong = |name: &str, why: &str| Err(Error::value("settings", format!("{name} {why}")));
        if shape.num_hidden_layers < shape.full_attention_interval {
            return wrong(
                "num_hidden_layers",
                &format!(
                    "is {}, expected at least full_attention_interval = {}: there would be no attention layer",
                    shape.num_hidden_layers, shape.full_attention_interval
                ),
            );
        }
        if shape.vocab_size < 257 {
            return wrong(
                "vocab_size",
                &format!("is {}, expected 257 or more: 256 bytes and the end of text", shape.vocab_size),
            );
        }
        Ok(self)
    }

    /// The constants of the run's optimizer.
    pub fn optimizer_config(&self) -> OptimizerConfig {
        OptimizerConfig {
            kind: self.optimizer,
            beta1: self.beta1,
            beta2: self.beta2,
            weight_decay: self.weight_decay,
            ..OptimizerConfig::default()
        }
    }

    /// The settings of the training loop.
    pub fn loop_settings(&self) -> LoopSettings {
        LoopSettings {
            iters: self.iters,
            grad_accumulation_steps: self.grad_accumulation_steps,
            grad_clip: self.grad_clip,
            steps_per_report: self.steps_per_report,
            steps_per_eval: self.steps_per_eval,
            save_every: self.save_every,
            first_validation: FirstValidation::AfterSteps,
            schedule: self.schedule(),
            optimizer: self.optimizer_config(),
        }
    }

    /// The learning rates of the run.
    pub fn schedule(&self) -> Schedule {
        Schedule::WarmupCosine { peak: self.learning_rate, warmup: self.warmup, steps: self.iters }
    }
}

impl Overrides {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// When it cannot be read, is not TOML, or has an unknown key.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        toml::from_str(&text).map_err(|e| Error::file(path, e.to_string().trim_end()))
    }
}
