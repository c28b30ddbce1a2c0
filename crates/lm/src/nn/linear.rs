//! A matrix.

use super::build::{Builder, Init};
use crate::params;
use alluvium_core::{Result, Tensor};
use alluvium_ops::linear;

/// A projection without bias: `y = x · weightᵀ`, `weight [O, I]`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
}

params!(Linear { weight });

impl Linear {
    /// A projection of `[output, input]` sizes; `deviation` is that of its random start.
    ///
    /// # Errors
    /// As [`Source::tensor`](super::Source::tensor).
    pub fn build(mut b: Builder, [output, input]: [usize; 2], deviation: f64) -> Result<Self> {
        Ok(Linear { weight: b.tensor("weight", [output, input], Init::Normal(deviation))? })
    }

    /// `[.., I]` to `[.., O]`.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight)
    }

    /// The matrix, `[O, I]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}
