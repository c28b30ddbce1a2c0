//! The cache of a linear layer.

use alluvium_core::Tensor;

/// The last inputs of the convolution and the state of the delta rule; none before the first token.
#[derive(Clone, Debug, Default)]
pub struct DeltaCache {
    /// `[B, K-1, C]`.
    pub conv_state: Option<Tensor>,
    /// `[B, G, V, K]`, f32.
    pub recurrent_state: Option<Tensor>,
}
