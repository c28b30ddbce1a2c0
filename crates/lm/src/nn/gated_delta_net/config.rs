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
    /// The names and the layout of the layer's tensors in a checkpoint.
    pub layout: Layout,
    /// Whether β is in (0, 2) instead of (0, 1): a state's eigenvalue along a key, 1 − β, may then be negative.
    ///
    /// Source: Grazzi et al. 2024, arXiv:2411.12537; `linear_allow_neg_eigval` of OLMo-Hybrid.
    pub allow_neg_eigval: bool,
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
            allow_neg_eigval: false,
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

/// The names and the layout of the layer's tensors in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `in_proj_qkv` (all queries, all keys, all values), `in_proj_z`, `in_proj_b`, `in_proj_a`: qwen3_5.
    Separate,
    /// `in_proj_qkvz` and `in_proj_ba`, whose rows are grouped by key head: its query, its key, the values of its value
    /// heads, their `z`; and their `b`, their `a`: qwen3_next.
    Merged,
    /// `q_proj`, `k_proj`, `v_proj`, `g_proj` (z), `b_proj`, `a_proj`, a convolution each for queries, keys and values
    /// (`q_conv1d`, `k_conv1d`, `v_conv1d`), `o_norm` and `o_proj`: olmo_hybrid.
    Split,
}
