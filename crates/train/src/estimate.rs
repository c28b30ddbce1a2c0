//! The memory of a run, before any of it is allocated.

use crate::{OptimizerKind, Settings};
use alluvium_core::Result;
use alluvium_lm::{ShapeSource, build};

/// An estimate of the memory that a run takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The number of parameters.
    pub parameters: usize,
    /// Weights in f32.
    pub weights: usize,
    /// One gradient per weight.
    pub gradients: usize,
    /// The optimizer's moments.
    pub moments: usize,
    /// What the forward pass of a batch keeps for the backward pass, roughly.
    pub activations: usize,
}

impl MemoryEstimate {
    /// The sum.
    pub fn total(&self) -> usize {
        [self.weights, self.gradients, self.moments, self.activations].into_iter().fold(0, usize::saturating_add)
    }
}

impl Settings {
    /// Estimates the memory of a run with these settings. Weights, gradients and moments are exact but for the
    /// vocabulary, which the text may not fill; activations are within a factor of two.
    ///
    /// # Errors
    /// When the sizes fit no model.
    pub fn memory(&self) -> Result<MemoryEstimate> {
        let mut shapes = ShapeSource::new()?;
        build(&self.architecture.config(self.max_seq_length, 0)?, &mut shapes)?;
        let weights = shapes.elements.saturating_mul(size_of::<f32>());
        let moments = match self.optimizer {
            OptimizerKind::AdamW | OptimizerKind::Adam => weights.saturating_mul(2),
            OptimizerKind::Sgd => 0,
            OptimizerKind::Muon => weights,
        };
        let activations = self.activations();
        Ok(MemoryEstimate { parameters: shapes.elements, weights, gradients: weights, moments, activations })
    }

    fn activations(&self) -> usize {
        let shape = &self.architecture;
        let product = |sizes: &[usize]| sizes.iter().fold(1, |a: usize, &b| a.saturating_mul(b));
        let sum = |sizes: &[usize]| sizes.iter().fold(0, |a: usize, &b| a.saturating_add(b));
        let tokens = product(&[self.batch_size, self.max_seq_length]);
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
        product(&[tokens, layers, size_of::<f32>()])
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
        }
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
