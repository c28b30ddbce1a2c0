//! The configuration of a model from its shape.

use super::Architecture;
use alluvium_core::Result;
use alluvium_lm::Config;
use alluvium_lm::models::qwen3_5::{MixtureKeys, RopeParameters, Sizes};

impl Architecture {
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
            layer_types: None,
            attention_bias: false,
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
