//! The presets: the size of a model and the settings that suit it.

use super::{Architecture, Settings};
use crate::data::Task;
use crate::{OptimizerKind, TrainDtype};
use serde::{Deserialize, Serialize};

/// A preset: the size of the model and the settings that suit it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Preset {
    /// About a million parameters: minutes on a laptop's CPU.
    #[default]
    Tiny,
    /// About five million parameters: an hour on a CPU.
    Small,
    /// About a hundred million parameters: for a GPU.
    Base,
}

impl std::fmt::Display for Preset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Preset::Tiny => "tiny",
            Preset::Small => "small",
            Preset::Base => "base",
        })
    }
}

impl Settings {
    /// The settings of a preset.
    pub fn of(preset: Preset) -> Self {
        let (iters, batch_size, max_seq_length, learning_rate) = match preset {
            Preset::Tiny => (600, 8, 256, 4e-3),
            Preset::Small => (2_000, 8, 512, 2e-3),
            Preset::Base => (20_000, 16, 2_048, 6e-4),
        };
        Settings {
            preset,
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
            optimizer: OptimizerKind::AdamW,
            dtype: TrainDtype::F32,
            grad_checkpoint: preset == Preset::Base,
            z_loss: 0.0,
            seed: 0,
            val_split: 0.05,
            val_batches: 8,
            steps_per_report: 10,
            steps_per_eval: 100,
            save_every: 100,
            architecture: Architecture::of(preset),
        }
    }

    /// Settings for a synthetic task: two Gated DeltaNet layers of width 64 and no attention.
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
            // passes the long initial plateau of these tasks earlier than AdamW, for every seed
            optimizer: OptimizerKind::Muon,
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
                ..Architecture::of(Preset::Tiny)
            },
            ..Settings::of(Preset::Tiny)
        }
    }
}

impl Architecture {
    /// The settings of a preset.
    pub fn of(preset: Preset) -> Self {
        let (hidden, wide, layers, head_dim, linear_dim) = match preset {
            Preset::Tiny => (128, 384, 4, 32, 32),
            Preset::Small => (256, 768, 4, 64, 64),
            Preset::Base => (768, 2_048, 12, 64, 128),
        };
        let vocab_size = match preset {
            Preset::Tiny => 1_024,
            Preset::Small => 4_096,
            Preset::Base => 16_384,
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
}
