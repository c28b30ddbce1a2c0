//! The configuration of a Gated DeltaNet layer.

/// The sizes of a [`GatedDeltaNet`](super::GatedDeltaNet) and its initialization.
#[derive(Clone, Copy, Debug)]
pub struct GatedDeltaNetConfig {
    /// The size of the model's hidden states.
    pub hidden_size: usize,
    /// The number of key heads.
    pub key_heads: usize,
    /// The number of value heads, a multiple of the key heads.
    pub value_heads: usize,
    /// The size of a key.
    pub key_dim: usize,
    /// The size of a value.
    pub value_dim: usize,
    /// The kernel size of the convolution.
    pub kernel_size: usize,
    /// The epsilon of the norm, added to the mean square.
    pub eps: f32,
    /// The standard deviation of random weights.
    pub init_std: f64,
    /// The standard deviation of the random weights of the projection that adds to the residual stream.
    pub residual_init_std: f64,
    /// The layout of the input projections in a checkpoint.
    pub layout: Layout,
}

impl GatedDeltaNetConfig {
    /// A layer with heads of size 64, one for every 64 elements of a hidden state, and a convolution of 4 tokens, as in
    /// Qwen3.5.
    pub fn new(hidden_size: usize) -> Self {
        let heads = (hidden_size / 64).max(1);
        GatedDeltaNetConfig {
            hidden_size,
            key_heads: heads,
            value_heads: heads,
            key_dim: 64,
            value_dim: 64,
            kernel_size: 4,
            eps: 1e-6,
            init_std: 0.02,
            residual_init_std: 0.02,
            layout: Layout::Separate,
        }
    }

    /// The channels of all queries, which are as many as those of all keys.
    pub fn key_channels(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// The channels of all values.
    pub fn value_channels(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// The channels of the convolution: queries, keys and values.
    pub fn channels(&self) -> usize {
        2 * self.key_channels() + self.value_channels()
    }
}

/// The layout of the input projections in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `in_proj_qkv` (all queries, all keys, all values), `in_proj_z`, `in_proj_b`, `in_proj_a`: qwen3_5.
    Separate,
    /// `in_proj_qkvz` and `in_proj_ba`, whose rows are grouped by key head: its query, its key, the values of its value
    /// heads, their `z`; and their `b`, their `a`: qwen3_next.
    Merged,
}
