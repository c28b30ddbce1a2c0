//! Linear projections and embeddings.

use crate::init::{Init, VarBuilder};
use crate::parameters::{ModuleKind, Parameter, Parameters, Role};
use crate::params;
use crate::weight::Weight;
use alluvium_core::{Device, Result, Tensor};
use alluvium_ops::{add, linear};
use rayon::prelude::*;
use std::array::from_fn;

/// The maximum number of rows for which the projections of one input run in parallel.
const FEW_ROWS: usize = 8;

/// Whether a projection has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// No bias.
    None,
    /// The tensor `bias` is added.
    Added,
}

/// A linear projection: `y = x · weightᵀ + bias`, `weight [O, I]`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Weight,
    bias: Option<Parameter>,
}

params!(Linear { weight: "", bias });

impl Linear {
    /// A projection of `[output, input]` sizes without bias. `init_std` is the standard deviation of random weights.
    ///
    /// # Errors
    /// As [`WeightSource::weight`](crate::init::WeightSource::weight).
    pub fn build(b: VarBuilder, sizes: [usize; 2], init_std: f64) -> Result<Self> {
        Self::biased(b, sizes, init_std, Bias::None)
    }

    /// As [`Linear::build`], with an optional bias.
    ///
    /// # Errors
    /// As [`WeightSource::weight`](crate::init::WeightSource::weight).
    pub fn biased(mut b: VarBuilder, [output, input]: [usize; 2], init_std: f64, bias: Bias) -> Result<Self> {
        let weight = b.weight([output, input], Init::Normal(init_std))?;
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

    /// Several projections of one input, in order. With few rows they run in parallel, so that the threads synchronize
    /// once for all of them.
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

/// An embedding: a row for each token, `weight [V, D]`.
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Weight,
}

impl Parameters for Embedding {
    fn parameters<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor, Role)) {
        self.weight.parameters(prefix, f);
    }

    fn parameters_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor, &mut Role)) {
        self.weight.parameters_mut(prefix, f);
    }

    fn weights_mut(&mut self, prefix: &str, f: &mut dyn FnMut(&str, ModuleKind, &mut Weight)) {
        f(prefix, ModuleKind::Embedding, &mut self.weight);
    }
}

impl Embedding {
    /// An embedding of sizes `[vocab_size, hidden_size]`.
    ///
    /// # Errors
    /// As [`WeightSource::weight`](crate::init::WeightSource::weight).
    pub fn build(mut b: VarBuilder, [vocab_size, hidden_size]: [usize; 2], init_std: f64) -> Result<Self> {
        Ok(Embedding { weight: b.weight([vocab_size, hidden_size], Init::Normal(init_std))? })
    }

    /// The rows of `ids [..]`: `[.., D]`, f32.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.weight.embedding(ids)
    }

    /// The matrix, `[V, D]`: the output projection, too, of models that tie the two.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }
}
