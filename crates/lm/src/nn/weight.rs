//! A matrix of a model, as it is stored.

use super::build::{Builder, Init};
use super::params::{Parameters, join};
use alluvium_core::{DType, Device, Result, Shape, Tensor};
use alluvium_ops::{cast, embedding, linear};

/// A matrix `[O, I]`, or one for each expert `[E, O, I]`, in the dtype that the file has. It is never copied to another
/// one: operations widen it as they read.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Plain numbers: f32, f16 or bf16.
    Dense(Tensor),
}

impl Weight {
    /// The weight of the module at this place; `deviation` is that of its random start.
    ///
    /// # Errors
    /// As [`Source::weight`](super::Source::weight).
    pub fn build(b: &mut Builder, shape: impl Into<Shape>, deviation: f64) -> Result<Self> {
        b.weight(shape, Init::Normal(deviation))
    }

    /// `x · wᵀ`: `[.., I]` to `[.., O]`, in the dtype of `x`.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn linear(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Weight::Dense(w) => linear(x, w),
        }
    }

    /// The rows that `ids` name, `[.., I]`, in f32.
    ///
    /// # Errors
    /// As [`embedding`].
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Weight::Dense(w) => match w.dtype() {
                DType::F32 => embedding(w, ids),
                _ => cast(&embedding(w, ids)?, DType::F32),
            },
        }
    }

    /// The plain numbers, which training needs.
    ///
    /// # Errors
    /// When the weight is quantised.
    pub fn dense(&self) -> Result<&Tensor> {
        match self {
            Weight::Dense(w) => Ok(w),
        }
    }

    /// The lengths of the axes, in elements.
    pub fn shape(&self) -> Shape {
        match self {
            Weight::Dense(w) => w.shape(),
        }
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        match self {
            Weight::Dense(w) => w.device(),
        }
    }
}

impl Parameters for Weight {
    fn visit<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor)) {
        match self {
            Weight::Dense(w) => f(join(prefix, "weight"), w),
        }
    }

    fn visit_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor)) {
        match self {
            Weight::Dense(w) => f(join(prefix, "weight"), w),
        }
    }
}
