//! The dense feed-forward network of a layer.

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

/// The sizes of an [`Mlp`] and its initialization.
#[derive(Clone, Copy, Debug)]
pub struct MlpConfig {
    /// The size of the model's hidden states.
    pub hidden_size: usize,
    /// The size between the projections.
    pub intermediate_size: usize,
    /// The bias of the three projections.
    pub bias: Bias,
    /// The standard deviation of random weights.
    pub init_std: f64,
    /// The standard deviation of the random weights of `down_proj`.
    pub residual_init_std: f64,
}

impl Mlp {
    /// Builds the network from its place in a source.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`](crate::init::WeightSource::tensor).
    pub fn build(mut b: VarBuilder, config: &MlpConfig) -> Result<Self> {
        let MlpConfig { hidden_size, intermediate_size, bias, init_std, residual_init_std } = *config;
        let inputs = [("gate_proj", intermediate_size), ("up_proj", intermediate_size)];
        let [gate_proj, up_proj] = Linear::build_all(&mut b, inputs, hidden_size, init_std, bias)?;
        Ok(Mlp {
            gate_proj,
            up_proj,
            down_proj: Linear::biased(b.pp("down_proj"), [hidden_size, intermediate_size], residual_init_std, bias)?,
        })
    }

    /// `[.., D]` to `[.., D]`.
    ///
    /// # Errors
    /// As the operations.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = if let Some(h) = Linear::forward_swiglu(&self.gate_proj, &self.up_proj, x)? {
            h
        } else {
            let [gate, up] = Linear::forward_all([&self.gate_proj, &self.up_proj], x)?;
            // both are freed before the result of `down_proj` is allocated
            swiglu(&gate, &up)?
        };
        self.down_proj.forward(&h)
    }
}
