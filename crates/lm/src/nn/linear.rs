//! Linear projections and embeddings.

use crate::init::{Init, VarBuilder};
use crate::parameters::{ModuleKind, Parameter, Parameters, Role};
use crate::params;
use crate::precision::ones;
use crate::weight::Weight;
use alluvium_core::{DType, Device, Error, Result, Tensor};
use alluvium_ops::{add, linear, quantized_matmul_swiglu, split_in};
use rayon::prelude::*;
use std::array::from_fn;

/// The maximum number of rows for which the projections of one input run in parallel.
const FEW_ROWS: usize = 8;

/// The maximum number of rows that joined projections multiply at once: a row has the same sums in any number of them.
const JOINED_ROWS: usize = 32;

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

    /// Projections of one input, by name and output size. Their matrices are laid one after the other in memory where the
    /// source asks for it.
    ///
    /// # Errors
    /// As [`WeightSource::weight`](crate::init::WeightSource::weight).
    pub fn build_all<const N: usize>(
        b: &mut VarBuilder,
        projections: [(&str, usize); N],
        input: usize,
        init_std: f64,
        bias: Bias,
    ) -> Result<[Self; N]> {
        let all = projections.map(|(name, output)| Linear::biased(b.pp(name), [output, input], init_std, bias));
        let mut all = all.into_iter().collect::<Result<Vec<_>>>()?;
        if b.joins_projections() {
            Weight::join(&mut all.iter_mut().map(|linear| &mut linear.weight).collect::<Vec<_>>())?;
        }
        all.try_into().map_err(|_| Error::value("linear", "a projection is missing"))
    }

    /// `[.., I]` to `[.., O]`.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.linear(x)?;
        let Some(bias) = &self.bias else { return Ok(y) };
        // a column of ones times a row: the bias for every row of `y`, with its gradient
        let ones = ones([y.elements() / bias.elements(), 1], x)?;
        add(&y, &linear(&ones, &bias.reshape([bias.elements(), 1])?)?.reshape(y.shape())?)
    }

    /// Several projections of one input, in order. With few rows they run in parallel, so that the threads synchronize
    /// once for all of them.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward_all<const N: usize>(projections: [&Linear; N], x: &Tensor) -> Result<[Tensor; N]> {
        if x.elements() <= JOINED_ROWS * x.shape().last()
            && let Some(rows) = Linear::forward_joined(projections, x)?
        {
            return parts_of_rows(projections, &rows);
        }
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

    /// Several projections of one input side by side, `[.., O + O' + ..]`, by one product; `None` where their matrices do
    /// not lie one after the other in memory, or have biases.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn forward_joined<const N: usize>(projections: [&Linear; N], x: &Tensor) -> Result<Option<Tensor>> {
        Self::joined(projections, x).map(|all| all.linear(x)).transpose()
    }

    /// `silu(gate(x)) · up(x)` for a few rows, by one product; `None` as [`Linear::forward_joined`], for more rows and for
    /// matrices that are not quantized.
    ///
    /// # Errors
    /// As [`quantized_matmul_swiglu`].
    pub fn forward_swiglu(gate: &Linear, up: &Linear, x: &Tensor) -> Result<Option<Tensor>> {
        if x.elements() > JOINED_ROWS * x.shape().last() || gate.output_size() != up.output_size() {
            return Ok(None);
        }
        let both = Self::joined([gate, up], x);
        both.as_ref().and_then(Weight::quantized).map(|both| quantized_matmul_swiglu(x, &both)).transpose()
    }

    /// The matrices of projections without biases as one, where they lie one after the other in memory.
    fn joined<const N: usize>(projections: [&Linear; N], x: &Tensor) -> Option<Weight> {
        if x.is_traced() || projections.iter().any(|p| p.bias.is_some()) {
            return None;
        }
        Weight::joined(&projections.map(|p| &p.weight))
    }

    /// The number of elements that it gives for each row.
    pub fn output_size(&self) -> usize {
        self.weight.shape().first().copied().unwrap_or(0)
    }

    fn is_traced(&self) -> bool {
        self.weight.is_traced() || self.bias.as_ref().is_some_and(|bias| bias.is_traced())
    }

    /// The matrix, `[O, I]`.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }
}

/// Cuts rows of several projections: one row into views.
fn parts_of_rows<const N: usize>(projections: [&Linear; N], rows: &Tensor) -> Result<[Tensor; N]> {
    let (shape, sizes) = (rows.shape(), projections.map(Linear::output_size));
    let axis = shape.rank() - 1;
    if rows.elements() != shape.last() {
        return split_in(rows, sizes, axis);
    }
    let column = rows.reshape([rows.elements()])?;
    let mut parts = from_fn(|_| rows.clone());
    let mut first = 0;
    for (part, size) in parts.iter_mut().zip(sizes) {
        *part = column.rows(first, size)?.reshape(shape.with(axis, size))?;
        first += size;
    }
    Ok(parts)
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

    /// The rows of `ids [..]`: `[.., D]` in `dtype`.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn forward(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        self.weight.embedding(ids, dtype)
    }

    /// The matrix, `[V, D]`: the output projection, too, of models that tie the two.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }
}
