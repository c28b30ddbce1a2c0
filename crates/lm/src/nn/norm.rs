//! RMSNorm.

use crate::init::{Init, VarBuilder};
use crate::parameters::Parameter;
use crate::params;
use alluvium_core::{DType, Result, Tensor};
use alluvium_ops::{AddRmsNorm, add, add_rms_norm, gated_rms_norm, rms_norm};

/// RMSNorm: scales rows to unit root-mean-square, then by `weight [D]`.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Parameter,
    eps: f32,
}

params!(RmsNorm { weight });

impl RmsNorm {
    /// A norm of rows of `size` elements.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`](crate::init::WeightSource::tensor).
    pub fn build(mut b: VarBuilder, size: usize, eps: f32) -> Result<Self> {
        Ok(RmsNorm { weight: b.parameter("weight", [size], Init::Ones)?, eps })
    }

    /// The weight, `[D]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The epsilon, added to the mean square.
    pub fn eps(&self) -> f32 {
        self.eps
    }

    /// The dtype of the rows that it takes.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// The norm of `x`, in its shape.
    ///
    /// # Errors
    /// As [`rms_norm`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.eps)
    }

    /// The sum of `x` and `r`, and its norm.
    ///
    /// # Errors
    /// As [`add_rms_norm`].
    pub fn of_sum(&self, x: &Tensor, r: &Tensor) -> Result<AddRmsNorm> {
        if [x, r, &self.weight].iter().any(|x| x.is_traced()) {
            let sum = add(x, r)?;
            return Ok(AddRmsNorm { y: self.forward(&sum)?, sum });
        }
        add_rms_norm(x, r, &self.weight, self.eps)
    }

    /// The norm of `x`, times `silu(z)`.
    ///
    /// # Errors
    /// As [`gated_rms_norm`].
    pub fn gated(&self, x: &Tensor, z: &Tensor) -> Result<Tensor> {
        gated_rms_norm(x, z, &self.weight, self.eps)
    }
}
