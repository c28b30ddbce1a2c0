//! The memory of a training step, before a long run begins: what a model takes, and what each token of a batch adds.

use crate::{OptimizerKind, Settings, TrainDtype};
use alluvium_core::{DType, Device, Result};
use alluvium_lm::{Checkpointing, ShapeSource, build};

/// An estimate of the memory that a training step takes, in bytes. `train` computes it from the sizes of a model that is
/// not made yet ([`Settings::memory`]); fine-tuning measures what a token adds
/// ([`estimate_memory`](crate::finetune::estimate_memory)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The number of parameters.
    pub parameters: usize,
    /// The weights that the model computes with, as they are stored.
    pub weights: usize,
    /// The masters in f32 of what is trained, where the dtype of the run is another.
    pub masters: usize,
    /// One gradient per trained element, in f32.
    pub gradients: usize,
    /// The optimizer's moments, in f32.
    pub moments: usize,
    /// What a batch adds whatever its length.
    pub fixed: usize,
    /// What each token of a batch adds: activations that the backward pass needs, states, logits.
    pub per_token: usize,
    /// The tokens of the longest batch.
    pub tokens: usize,
    /// What the device has to give; `None` where it is not known.
    pub available: Option<usize>,
    /// What a layer keeps for the backward pass.
    pub checkpointing: Checkpointing,
}

/// What is trained, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trained {
    /// Trained elements.
    pub(crate) elements: usize,
    pub(crate) optimizer: OptimizerKind,
    pub(crate) dtype: TrainDtype,
}

impl Trained {
    /// The bytes of masters, gradients and moments.
    pub(crate) fn state(self) -> [usize; 3] {
        let copies = |count: usize| self.elements.saturating_mul(count * size_of::<f32>());
        [copies(usize::from(self.dtype != TrainDtype::F32)), copies(1), copies(self.optimizer.moments())]
    }
}

impl MemoryEstimate {
    /// The peak of a step with the longest batch.
    pub fn total(&self) -> usize {
        self.constant().saturating_add(self.activations())
    }

    /// What the tokens of the longest batch add.
    pub fn activations(&self) -> usize {
        self.per_token.saturating_mul(self.tokens)
    }

    /// Masters, gradients and moments.
    pub fn optimizer(&self) -> usize {
        [self.masters, self.gradients, self.moments].into_iter().fold(0, usize::saturating_add)
    }

    /// The most tokens of a batch that fit; `None` where the memory of the device is not known.
    pub fn tokens_that_fit(&self) -> Option<usize> {
        Some(self.available?.saturating_sub(self.constant()) / self.per_token.max(1))
    }

    /// Whether the longest batch fits.
    pub fn fits(&self) -> bool {
        self.tokens_that_fit().is_none_or(|tokens| tokens >= self.tokens)
    }

    fn constant(&self) -> usize {
        [self.weights, self.optimizer(), self.fixed].into_iter().fold(0, usize::saturating_add)
    }
}

/// The memory that the device has left for this process and what the process holds already.
pub(crate) fn available(device: &Device) -> Option<usize> {
    if !device.is_host() {
        return None;
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024;
    let free = free + device.memory_in_use();
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Some(limit.map_or(free, |limit: usize| free.min(limit)))
}

impl Settings {
    /// Estimates the memory of a run with these settings, before any of it is allocated. Weights, gradients and moments
    /// are exact but for the vocabulary, which the text may not fill; what a token adds is within a factor of two.
    ///
    /// # Errors
    /// When the sizes fit no model.
    pub fn memory(&self) -> Result<MemoryEstimate> {
        let mut shapes = ShapeSource::new()?;
        build(&self.architecture.config(self.max_seq_length, 0)?, &mut shapes)?;
        let parameters = shapes.elements;
        let trained = Trained { elements: parameters, optimizer: self.optimizer, dtype: self.dtype };
        let [masters, gradients, moments] = trained.state();
        Ok(MemoryEstimate {
            parameters,
            weights: parameters.saturating_mul(DType::from(self.dtype).size()),
            masters,
            gradients,
            moments,
            fixed: 0,
            per_token: self.bytes_per_token(),
            tokens: self.batch_size.saturating_mul(self.max_seq_length),
            available: None,
            checkpointing: if self.grad_checkpoint { Checkpointing::Layers } else { Checkpointing::None },
        })
    }

    /// The bytes that a token of a batch adds, roughly.
    fn bytes_per_token(&self) -> usize {
        let shape = &self.architecture;
        let product = |sizes: &[usize]| sizes.iter().fold(1, |a: usize, &b| a.saturating_mul(b));
        let sum = |sizes: &[usize]| sizes.iter().fold(0, |a: usize, &b| a.saturating_add(b));
        let keys = product(&[2, shape.linear_num_key_heads, shape.linear_key_head_dim]);
        let values = product(&[shape.linear_num_value_heads, shape.linear_value_head_dim]);
        let states = product(&[values, shape.linear_key_head_dim]) / 64;
        let heads = product(&[sum(&[shape.num_attention_heads, shape.num_key_value_heads]), 2, shape.head_dim]);
        let mixer = product(&[3, sum(&[keys, values, states]).max(heads)]);
        let layer = sum(&[product(&[8, shape.hidden_size]), product(&[4, shape.intermediate_size]), mixer]);
        let layers = match self.grad_checkpoint {
            false => product(&[layer, shape.num_hidden_layers]),
            true => sum(&[layer, product(&[2, shape.hidden_size, shape.num_hidden_layers])]),
        };
        product(&[layers, DType::from(self.dtype).size()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Preset;

    #[test]
    fn the_parameters_of_presets_are_those_of_their_names() {
        for (preset, range) in [
            (Preset::Tiny, 500_000..2_000_000),
            (Preset::Small, 3_000_000..8_000_000),
            (Preset::Base, 70_000_000..150_000_000),
        ] {
            let memory = Settings::of(preset).memory().unwrap();
            assert!(range.contains(&memory.parameters), "{preset}: {}", memory.parameters);
            assert_eq!(memory.weights + memory.gradients + memory.moments, 16 * memory.parameters);
            assert_eq!(memory.masters, 0);
        }
    }

    #[test]
    fn bf16_halves_activations_and_adds_two_bytes_a_parameter() {
        let mut settings = Settings::of(Preset::Small);
        let wide = settings.memory().unwrap();
        settings.dtype = TrainDtype::Bf16;
        let half = settings.memory().unwrap();
        assert_eq!(2 * half.activations(), wide.activations());
        let rest = |memory: MemoryEstimate| memory.total() - memory.activations();
        assert_eq!(rest(half), rest(wide) + 2 * wide.parameters);
    }

    #[test]
    fn a_model_beyond_all_memory_is_counted_and_not_made() {
        let mut settings = Settings::of(Preset::Base);
        settings.architecture.hidden_size = 1 << 14;
        settings.architecture.intermediate_size = 1 << 16;
        settings.architecture.num_hidden_layers = 64;
        assert!(settings.memory().unwrap().total() > 1 << 40);
    }
}
