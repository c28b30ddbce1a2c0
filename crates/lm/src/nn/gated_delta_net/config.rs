//! The sizes of a Gated DeltaNet layer.

/// The sizes of a [`GatedDeltaNet`] and how it starts.
#[derive(Clone, Copy, Debug)]
pub struct GatedDeltaNetConfig {
    /// The model's width.
    pub width: usize,
    /// Key heads.
    pub key_heads: usize,
    /// Value heads, a multiple of the key heads.
    pub value_heads: usize,
    /// The width of a key.
    pub key: usize,
    /// The width of a value.
    pub value: usize,
    /// Taps of the convolution.
    pub taps: usize,
    /// Added to the mean square in the norm.
    pub eps: f32,
    /// The standard deviation of new weights.
    pub deviation: f64,
    /// That of the projection that adds to the residual stream.
    pub output_deviation: f64,
    /// How files hold the projections of the input.
    pub layout: Layout,
}

impl GatedDeltaNetConfig {
    /// A layer of this width with one key and value head of 64 for every 64 columns, as Qwen3.5 has them, and a
    /// convolution of 4 tokens.
    pub fn new(width: usize) -> Self {
        let heads = (width / 64).max(1);
        GatedDeltaNetConfig {
            width,
            key_heads: heads,
            value_heads: heads,
            key: 64,
            value: 64,
            taps: 4,
            eps: 1e-6,
            deviation: 0.02,
            output_deviation: 0.02,
            layout: Layout::Separate,
        }
    }

    /// Channels of all queries; of all keys, too.
    pub fn keys(&self) -> usize {
        self.key_heads * self.key
    }

    /// Channels of all values.
    pub fn values(&self) -> usize {
        self.value_heads * self.value
    }

    /// Channels that are convolved.
    pub fn channels(&self) -> usize {
        2 * self.keys() + self.values()
    }
}

/// How a file holds the projections of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `in_proj_qkv` (all queries, all keys, all values), `in_proj_z`, `in_proj_b`, `in_proj_a`: qwen3_5.
    Separate,
    /// `in_proj_qkvz` and `in_proj_ba`, whose rows are grouped by key head: its query, its key, the values of its value
    /// heads, their `z`; and their `b`, their `a`: qwen3_next.
    Merged,
}
