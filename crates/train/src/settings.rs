//! Every number of a run: one dial sets them all, a TOML file and flags change some.

use crate::{OptimiserKind, Task};
use alluvium_core::{Error, Result};
use alluvium_lm::Config;
use alluvium_lm::models::qwen3_5::{MixtureKeys, RopeParameters, Sizes};
use alluvium_ops::{AdamW, Correction};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The dial: how large a model, and what goes with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Size {
    /// About a million parameters: minutes on a laptop's processor.
    #[default]
    Tiny,
    /// About five million parameters: an hour on a processor.
    Small,
    /// About a hundred million parameters: for a GPU.
    Base,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Size::Tiny => "tiny",
            Size::Small => "small",
            Size::Base => "base",
        })
    }
}

/// Declares [`Settings`], [`Architecture`] and [`Changes`] from one table, so that no number is in one and not in the
/// other.
macro_rules! settings {
    (
        run { $($(#[doc = $doc:literal])+ $name:ident: $ty:ty,)* }
        shape { $($(#[doc = $shape_doc:literal])+ $shape:ident: usize,)* }
    ) => {
        /// Every number of a run.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct Settings {
            /// The dial.
            pub size: Size,
            $($(#[doc = $doc])+ pub $name: $ty,)*
            /// The model's shape.
            pub architecture: Architecture,
        }

        /// The shape of a model; the names are those of config.json.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct Architecture {
            $($(#[doc = $shape_doc])+ pub $shape: usize,)*
        }

        /// Changes to what the dial sets: keys of a TOML file, and flags.
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        #[cfg_attr(feature = "clap", derive(clap::Args))]
        pub struct Changes {
            /// The dial that sets all other numbers: tiny (a million parameters), small (five), base (a hundred)
            #[cfg_attr(feature = "clap", arg(long))]
            pub size: Option<Size>,
            $(
                $(#[doc = $doc])+
                #[cfg_attr(feature = "clap", arg(long, value_name = "X"))]
                pub $name: Option<$ty>,
            )*
            $(
                $(#[doc = $shape_doc])+
                #[cfg_attr(feature = "clap", arg(long, value_name = "N", help_heading = "Shape of the model"))]
                pub $shape: Option<usize>,
            )*
        }

        impl Changes {
            /// The settings of the dial with these changes.
            ///
            /// # Errors
            /// When a number is out of range.
            pub fn settings(&self) -> Result<Settings> {
                let mut settings = Settings::of(self.size.unwrap_or_default());
                if let Some(iters) = self.iters {
                    settings.warmup = iters / 20;
                }
                self.applied(settings)
            }

            /// The settings that suit a task with these changes; the dial and what concerns text say nothing here.
            ///
            /// # Errors
            /// When a number is out of range.
            pub fn settings_for(&self, task: Task) -> Result<Settings> {
                let mut settings = Settings::of_task(task);
                if let Some(iters) = self.iters {
                    settings.warmup = iters / 20;
                }
                self.over(settings).checked()
            }

            /// Other settings with these changes.
            ///
            /// # Errors
            /// When a number is out of range.
            pub fn applied(&self, settings: Settings) -> Result<Settings> {
                self.over(settings).checked()?.fit_for_text()
            }

            fn over(&self, mut settings: Settings) -> Settings {
                settings.size = self.size.unwrap_or(settings.size);
                $(if let Some(x) = self.$name { settings.$name = x; })*
                $(if let Some(x) = self.$shape { settings.architecture.$shape = x; })*
                settings
            }

            /// These changes, and those of `over` where it says something.
            pub fn overlaid(self, over: Self) -> Self {
                Changes {
                    size: over.size.or(self.size),
                    $($name: over.$name.or(self.$name),)*
                    $($shape: over.$shape.or(self.$shape),)*
                }
            }
        }

        impl Settings {
            /// Every setting's name and value, for a person.
            pub fn listing(&self) -> Vec<(&'static str, String)> {
                vec![
                    $((stringify!($name), self.$name.to_string()),)*
                    $((stringify!($shape), self.architecture.$shape.to_string()),)*
                ]
            }

            /// The names of the settings that differ between two runs, with both values.
            pub fn differences(&self, other: &Self) -> Vec<String> {
                let mut all = Vec::new();
                if self.size != other.size {
                    all.push(format!("size was {}, now {}", self.size, other.size));
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

settings! {
  run {
    /// Optimiser steps
    iters: u64,
    /// Sequences of `max_seq_length` tokens in a batch; they are packed, not padded
    batch_size: usize,
    /// Longest piece of a document
    max_seq_length: usize,
    /// Highest learning rate; it rises over `warmup` steps and falls to a tenth along a cosine
    learning_rate: f32,
    /// Steps of the rise
    warmup: u64,
    /// Decay of the matrices, decoupled from the gradient
    weight_decay: f32,
    /// Memory of the mean of gradients
    beta1: f32,
    /// Memory of the mean of squared gradients
    beta2: f32,
    /// The gradient's norm is held below this; 0 leaves it
    grad_clip: f32,
    /// Batches whose gradients are summed before a step
    grad_accumulation_steps: usize,
    /// adamw or muon
    optimizer: OptimiserKind,
    /// Run layers again in the backward pass instead of keeping what they computed
    grad_checkpoint: bool,
    /// Weight of the squared log-sum-exp in the loss
    z_loss: f32,
    /// Seed of weights and order
    seed: u64,
    /// Share of the text that is kept from training
    held_out: f64,
    /// Batches of the held-out loss; 0 takes all
    val_batches: usize,
    /// Steps between reports
    steps_per_report: u64,
    /// Steps between held-out losses
    steps_per_eval: u64,
    /// Steps between checkpoints
    save_every: u64,
  }
  shape {
    /// Width of the residual stream
    hidden_size: usize,
    /// Width of the SwiGLU layers
    intermediate_size: usize,
    /// Layers; every `full_attention_interval`-th is attention, the others Gated DeltaNet
    num_hidden_layers: usize,
    /// One attention layer in so many
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
    /// Taps of the short convolution
    linear_conv_kernel_dim: usize,
    /// Words of the tokenizer that is trained; an existing one brings its own
    vocab_size: usize,
  }
}

impl Settings {
    /// What the dial sets.
    pub fn of(size: Size) -> Self {
        let (iters, batch_size, max_seq_length, learning_rate) = match size {
            Size::Tiny => (600, 8, 256, 4e-3),
            Size::Small => (2_000, 8, 512, 2e-3),
            Size::Base => (20_000, 16, 2_048, 6e-4),
        };
        Settings {
            size,
            iters,
            batch_size,
            max_seq_length,
            learning_rate,
            warmup: iters / 20,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            grad_clip: 1.0,
            grad_accumulation_steps: 1,
            optimizer: OptimiserKind::AdamW,
            grad_checkpoint: size == Size::Base,
            z_loss: 0.0,
            seed: 0,
            held_out: 0.05,
            val_batches: 8,
            steps_per_report: 10,
            steps_per_eval: 100,
            save_every: 100,
            architecture: Architecture::of(size),
        }
    }

    /// What suits a task: two Gated DeltaNet layers of width 64 and no attention.
    pub fn of_task(task: Task) -> Self {
        let (iters, max_seq_length, vocab_size) = match task {
            Task::Recall => (1_000, 64, 128),
            Task::Overwrite => (1_000, 40, 64),
        };
        Settings {
            iters,
            batch_size: 32,
            max_seq_length,
            learning_rate: 5e-3,
            warmup: iters / 20,
            weight_decay: 0.01,
            // leaves the long flat start of these tasks sooner than AdamW, whatever the seed
            optimizer: OptimiserKind::Muon,
            val_batches: 16,
            steps_per_report: 50,
            steps_per_eval: 100,
            architecture: Architecture {
                hidden_size: 64,
                intermediate_size: 128,
                num_hidden_layers: 2,
                full_attention_interval: 3,
                num_attention_heads: 2,
                num_key_value_heads: 2,
                linear_num_key_heads: 2,
                linear_num_value_heads: 2,
                vocab_size,
                ..Architecture::of(Size::Tiny)
            },
            ..Settings::of(Size::Tiny)
        }
    }

    fn checked(self) -> Result<Self> {
        let wrong = |name: &str, why: &str| Err(Error::value("settings", format!("{name} {why}")));
        let shape = &self.architecture;
        let counts = [
            ("iters", self.iters as usize),
            ("batch_size", self.batch_size),
            ("max_seq_length", self.max_seq_length),
            ("grad_accumulation_steps", self.grad_accumulation_steps),
            ("steps_per_report", self.steps_per_report as usize),
            ("steps_per_eval", self.steps_per_eval as usize),
            ("save_every", self.save_every as usize),
            ("full_attention_interval", shape.full_attention_interval),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return wrong(name, "is 0, expected 1 or more");
        }
        if self.batch_size.checked_mul(self.max_seq_length).is_none_or(|n| n > u32::MAX as usize) {
            return wrong("batch_size", "times max_seq_length is more than a batch can hold");
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return wrong("learning_rate", &format!("is {}, expected a number above 0", self.learning_rate));
        }
        let weights = [("weight_decay", self.weight_decay), ("grad_clip", self.grad_clip), ("z_loss", self.z_loss)];
        if let Some((name, x)) = weights.iter().find(|(_, x)| !(*x >= 0.0 && x.is_finite())) {
            return wrong(name, &format!("is {x}, expected 0 or more"));
        }
        let shares = [("beta1", f64::from(self.beta1)), ("beta2", f64::from(self.beta2)), ("held_out", self.held_out)];
        if let Some((name, x)) = shares.iter().find(|(_, x)| !(0.0..1.0).contains(x)) {
            return wrong(name, &format!("is {x}, expected 0 or more and less than 1"));
        }
        Ok(self)
    }

    fn fit_for_text(self) -> Result<Self> {
        let shape = &self.architecture;
        let wrong = |name: &str, why: &str| Err(Error::value("settings", format!("{name} {why}")));
        if shape.num_hidden_layers < shape.full_attention_interval {
            return wrong("num_hidden_layers", "is below full_attention_interval: there would be no attention layer");
        }
        if shape.vocab_size < 257 {
            return wrong("vocab_size", "is below 257: 256 bytes and the end of text");
        }
        Ok(self)
    }

    pub(crate) fn adamw(&self) -> AdamW {
        AdamW {
            learning_rate: self.learning_rate,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: 1e-8,
            weight_decay: self.weight_decay,
            step: 1,
            correction: Correction::Yes,
        }
    }
}

impl Architecture {
    /// What the dial sets.
    pub fn of(size: Size) -> Self {
        let (hidden, wide, layers, head_dim, linear_dim) = match size {
            Size::Tiny => (128, 384, 4, 32, 32),
            Size::Small => (256, 768, 4, 64, 64),
            Size::Base => (768, 2_048, 12, 64, 128),
        };
        let vocab_size = match size {
            Size::Tiny => 1_024,
            Size::Small => 4_096,
            Size::Base => 16_384,
        };
        let heads = hidden / head_dim;
        Architecture {
            hidden_size: hidden,
            intermediate_size: wide,
            num_hidden_layers: layers,
            full_attention_interval: 4,
            num_attention_heads: heads,
            num_key_value_heads: heads / 2,
            head_dim,
            linear_num_key_heads: (hidden / linear_dim / 2).max(1),
            linear_num_value_heads: hidden / linear_dim,
            linear_key_head_dim: linear_dim,
            linear_value_head_dim: linear_dim,
            linear_conv_kernel_dim: 4,
            vocab_size,
        }
    }

    /// The configuration of a dense `qwen3_5` model of this shape, its embedding tied to its output.
    ///
    /// # Errors
    /// When the sizes fit no model.
    pub fn config(&self, longest: usize, end_of_text: u32) -> Result<Config> {
        let sizes = Sizes {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            full_attention_interval: self.full_attention_interval,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            linear_num_key_heads: self.linear_num_key_heads,
            linear_num_value_heads: self.linear_num_value_heads,
            linear_key_head_dim: self.linear_key_head_dim,
            linear_value_head_dim: self.linear_value_head_dim,
            linear_conv_kernel_dim: self.linear_conv_kernel_dim,
            vocab_size: self.vocab_size,
            max_position_embeddings: longest.max(4096),
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            mixture: MixtureKeys::default(),
            rope_parameters: RopeParameters {
                rope_type: "default".to_owned(),
                rope_theta: 10_000.0,
                partial_rotary_factor: 0.5,
            },
        };
        sizes.config(end_of_text)
    }
}

impl Changes {
    /// The changes in a TOML file.
    ///
    /// # Errors
    /// When it cannot be read, is no TOML, or has a key that is no setting.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        toml::from_str(&text).map_err(|e| Error::file(path, e.to_string().trim_end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_dial() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, "size = \"small\"\niters = 7\nlearning_rate = 0.5\nhidden_size = 64\n").unwrap();
        let flags = Changes { iters: Some(9), ..Changes::default() };
        let settings = Changes::read(&path).unwrap().overlaid(flags).settings().unwrap();
        let want = Settings { iters: 9, learning_rate: 0.5, warmup: 0, ..Settings::of(Size::Small) };
        let want = Settings { architecture: Architecture { hidden_size: 64, ..want.architecture }, ..want };
        assert_eq!(settings, want);
    }

    #[test]
    fn a_key_that_is_no_setting_and_a_number_out_of_range_are_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, "itres = 7\n").unwrap();
        let error = Changes::read(&path).unwrap_err().to_string();
        assert!(error.contains("unknown field `itres`") && error.contains("run.toml"), "{error}");
        let changes = Changes { batch_size: Some(0), ..Changes::default() };
        assert_eq!(changes.settings().unwrap_err().to_string(), "settings: batch_size is 0, expected 1 or more");
        let changes = Changes { learning_rate: Some(f32::NAN), ..Changes::default() };
        assert!(changes.settings().is_err());
    }

    #[test]
    fn what_differs_is_named_with_both_values() {
        let (a, mut b) = (Settings::of(Size::Tiny), Settings::of(Size::Tiny));
        assert!(a.differences(&b).is_empty());
        b.seed = 5;
        assert_eq!(a.differences(&b), ["seed was 0, now 5"]);
    }
}
