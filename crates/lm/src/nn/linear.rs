//! Projections and tables.

use crate::init::{Init, VarBuilder};
use crate::parameters::Parameter;
use crate::params;
use crate::weight::Weight;
use alluvium_core::{Device, Result, Tensor};
use alluvium_ops::{add, linear};
use rayon::prelude::*;
use std::array::from_fn;

/// Rows up to which projections of one input are done side by side.
const FEW_ROWS: usize = 8;

/// Whether a projection adds a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// It does not.
    None,
    /// It adds `bias`.
    Added,
}

/// A projection: `y = x · weightᵀ + bias`, `weight [O, I]`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Weight,
    bias: Option<Parameter>,
}

params!(Linear { weight: "", bias });

impl Linear {
    /// A projection of `[output, input]` sizes without bias; `deviation` is that of its random start.
    ///
    /// # Errors
    /// As [`WeightSource::weight`](crate::init::WeightSource::weight).
    pub fn build(b: VarBuilder, sizes: [usize; 2], deviation: f64) -> Result<Self> {
        Self::biased(b, sizes, deviation, Bias::None)
    }

    /// As [`Linear::build`], perhaps with a bias.
    ///
    /// # Errors
    /// As [`WeightSource::weight`](crate::init::WeightSource::weight).
    pub fn biased(mut b: VarBuilder, [output, input]: [usize; 2], deviation: f64, bias: Bias) -> Result<Self> {
        let weight = b.weight([output, input], Init::Normal(deviation))?;
        let bias = match bias {
            Bias::None => None,
            Bias::Added => Some(b.parameter("bias", [output], Init::Zeros)?),
        };
        Ok(Linear { weight, bias })
    }

    /// `[.., I]` to `[.., O]`.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.linear(x)?;
        let Some(bias) = &self.bias else { return Ok(y) };
        // a column of ones times a row: the bias for every row of `y`, with its gradient
        let ones = Tensor::full(x.shape().with(x.shape().rank() - 1, 1), 1.0, x.device())?;
        add(&y, &linear(&ones, &bias.reshape([bias.elements(), 1])?)?)
    }

    /// Several projections of one input, in order. Where a token is read the threads meet once for all of them, not for each:
    /// none is long enough to be worth it.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward_all<const N: usize>(projections: [&Linear; N], x: &Tensor) -> Result<[Tensor; N]> {
        let mut all = from_fn(|_| x.clone());
        let project = |(y, projection): (&mut Tensor, &Linear)| projection.forward(x).map(|new| *y = new);
        // a tape has an order, and many rows keep all threads busy by themselves
        let traced = x.is_traced() || projections.iter().any(|p| p.is_traced());
        if traced || matches!(x.device(), Device::Gpu(_)) || x.elements() > FEW_ROWS * x.shape().last() {
            all.iter_mut().zip(projections).try_for_each(project)?;
        } else {
            x.device().run(|| all.par_iter_mut().zip(projections).try_for_each(project))?;
        }
        Ok(all)
    }

    fn is_traced(&self) -> bool {
        self.weight.is_traced() || self.bias.as_ref().is_some_and(|bias| bias.is_traced())
    }

    /// The matrix, `[O, I]`.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }
}

/// A row for each word: `weight [V, D]`.
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Weight,
}

params!(Embedding { weight: "" });

impl Embedding {
    /// A table of `[words, width]`.
    ///
    /// # Errors
    /// As [`WeightSource::weight`](crate::init::WeightSource::weight).
    pub fn build(mut b: VarBuilder, [words, width]: [usize; 2], deviation: f64) -> Result<Self> {
        Ok(Embedding { weight: b.weight([words, width], Init::Normal(deviation))? })
    }

    /// The rows of `ids [..]`: `[.., D]`, f32.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.weight.embedding(ids)
    }

    /// The table, `[V, D]`: the output projection of models that tie the two.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }
}
