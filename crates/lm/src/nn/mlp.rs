//! The feed-forward half of a layer.

use super::Linear;
use super::linear::Bias;
use crate::init::VarBuilder;
use crate::params;
use alluvium_core::{Result, Tensor};
use alluvium_ops::swiglu;

/// SwiGLU: `down(silu(gate(x)) · up(x))`.
///
/// Source: Shazeer 2020, arXiv:2002.05202.
#[derive(Clone, Debug)]
pub struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

params!(Mlp { gate_proj, up_proj, down_proj });

/// The sizes of an [`Mlp`] and how it starts.
#[derive(Clone, Copy, Debug)]
pub struct MlpSizes {
    /// The model's width.
    pub width: usize,
    /// The width between the projections.
    pub hidden: usize,
    /// Of the three projections.
    pub bias: Bias,
    /// The standard deviation of new weights.
    pub deviation: f64,
    /// That of the projection that adds to the residual stream.
    pub output_deviation: f64,
}

impl Mlp {
    /// From its place in a source.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`](crate::init::WeightSource::tensor).
    pub fn build(mut b: VarBuilder, sizes: &MlpSizes) -> Result<Self> {
        let MlpSizes { width, hidden, bias, deviation, output_deviation } = *sizes;
        Ok(Mlp {
            gate_proj: Linear::biased(b.pp("gate_proj"), [hidden, width], deviation, bias)?,
            up_proj: Linear::biased(b.pp("up_proj"), [hidden, width], deviation, bias)?,
            down_proj: Linear::biased(b.pp("down_proj"), [width, hidden], output_deviation, bias)?,
        })
    }

    /// Of the shape of `x`, `[.., D]`.
    ///
    /// # Errors
    /// As the operations.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = {
            let [gate, up] = Linear::forward_all([&self.gate_proj, &self.up_proj], x)?;
            // the two go before the third comes
            swiglu(&gate, &up)?
        };
        self.down_proj.forward(&hidden)
    }
}
