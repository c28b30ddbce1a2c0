//! A matrix of a model, as it is stored.

use crate::adapter::LowRank;
use crate::parameters::{ModuleKind, Parameter, Parameters, Role, join};
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_ops::{
    Packing, Quantized, cast, concat, embedding, grouped_matmul, linear, quantized_embedding, quantized_grouped_matmul,
    quantized_matmul,
};
use std::ops::Deref;

/// A matrix `[O, I]`, or one for each expert `[E, O, I]`, as the file has it. It is never copied to another dtype:
/// operations widen it as they read.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a model has a few hundred at most
pub enum Weight {
    /// A matrix of f32, f16 or bf16.
    Dense(Parameter),
    /// A quantized matrix, packed as MLX packs it.
    Quantized {
        /// The codes, u32, `[.., O, I · bits / 32]`.
        w: Parameter,
        /// A scale for each group, `[.., O, I / group]`.
        scales: Parameter,
        /// A bias for each group, where the packing has them.
        biases: Option<Parameter>,
        /// The format of the codes.
        packing: Packing,
    },
    /// A matrix with a low-rank update, which is trained in its place.
    Adapted(Box<LowRank>),
}

impl Weight {
    /// The quantized matrix, borrowed; `None` where it is dense.
    pub fn quantized(&self) -> Option<Quantized<'_>> {
        match self {
            Weight::Dense(_) | Weight::Adapted(_) => None,
            Weight::Quantized { w, scales, biases, packing } => {
                Some(Quantized { w, scales, biases: biases.as_deref(), packing: *packing })
            }
        }
    }

    /// `x · wᵀ`: `[.., I]` to `[.., O]`, in the dtype of `x`.
    ///
    /// # Errors
    /// As [`linear`] and [`quantized_matmul`].
    pub fn linear(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Weight::Dense(w) => linear(x, w),
            Weight::Quantized { w, scales, biases, packing } => {
                let q = Quantized { w, scales, biases: biases.as_deref(), packing: *packing };
                quantized_matmul(x, &q)
            }
            Weight::Adapted(adapted) => adapted.linear(x),
        }
    }

    /// For each row of `x` the products with the experts that it chose, `experts [N, K]`: `[N, K, O]`. `x` is `[N, I]`,
    /// or `[N, K, I]` with a row for each choice.
    ///
    /// # Errors
    /// As [`grouped_matmul`] and [`quantized_grouped_matmul`].
    pub fn grouped(&self, x: &Tensor, experts: &Tensor) -> Result<Tensor> {
        match self {
            Weight::Dense(w) => grouped_matmul(x, w, experts),
            Weight::Quantized { w, scales, biases, packing } => {
                let q = Quantized { w, scales, biases: biases.as_deref(), packing: *packing };
                quantized_grouped_matmul(x, &q, experts)
            }
            Weight::Adapted(adapted) => adapted.grouped(x, experts),
        }
    }

    /// The rows that `ids` name, `[.., I]`, in `dtype`.
    ///
    /// # Errors
    /// As [`embedding`] and [`quantized_embedding`].
    pub fn embedding(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        match self {
            Weight::Dense(w) => cast(&embedding(w, ids)?, dtype),
            Weight::Quantized { w, scales, biases, packing } => {
                let q = Quantized { w, scales, biases: biases.as_deref(), packing: *packing };
                quantized_embedding(&q, ids, dtype)
            }
            Weight::Adapted(adapted) => adapted.embedding(ids, dtype),
        }
    }

    /// Matrices of one format whose rows lie one after the other in memory, as one; `None` where they do not.
    pub(crate) fn joined(weights: &[&Weight]) -> Option<Weight> {
        let first = weights.first()?;
        if !weights.iter().all(|weight| weight.packing() == first.packing()) {
            return None;
        }
        let part = |index: usize| {
            let parts = || weights.iter().map(|weight| weight.tensors()[index].map(Deref::deref));
            let all = parts().all(|part| part.is_some());
            all.then(|| Tensor::joined(parts().flatten())).flatten().map(Parameter::from)
        };
        match first {
            Weight::Dense(_) => Some(Weight::Dense(part(0)?)),
            Weight::Quantized { biases, packing, .. } => {
                let biases = if biases.is_some() { Some(part(2)?) } else { None };
                Some(Weight::Quantized { w: part(0)?, scales: part(1)?, biases, packing: *packing })
            }
            Weight::Adapted(_) => None,
        }
    }

    /// Moves matrices `[O, I]` of one format into one piece of memory, one after the other, where a binding of the GPU
    /// holds it. Others stay where they are.
    ///
    /// # Errors
    /// When memory runs out.
    pub(crate) fn join(weights: &mut [&mut Weight]) -> Result<()> {
        let Some(packing) = weights.first().map(|first| first.packing()) else { return Ok(()) };
        if weights.len() < 2 || !weights.iter().all(|weight| weight.packing() == packing) {
            return Ok(());
        }
        for index in 0..3 {
            join_rows(weights.iter_mut().filter_map(|weight| weight.tensors_mut()[index].take()).collect())?;
        }
        Ok(())
    }

    /// The format of the codes; `None` where there are none.
    fn packing(&self) -> Option<Packing> {
        self.quantized().map(|quantized| quantized.packing)
    }

    /// The tensors of a matrix without an adapter: values or codes, scales, biases.
    fn tensors(&self) -> [Option<&Parameter>; 3] {
        match self {
            Weight::Dense(w) => [Some(w), None, None],
            Weight::Quantized { w, scales, biases, .. } => [Some(w), Some(scales), biases.as_ref()],
            Weight::Adapted(_) => [None; 3],
        }
    }

    fn tensors_mut(&mut self) -> [Option<&mut Parameter>; 3] {
        match self {
            Weight::Dense(w) => [Some(w), None, None],
            Weight::Quantized { w, scales, biases, .. } => [Some(w), Some(scales), biases.as_mut()],
            Weight::Adapted(_) => [None, None, None],
        }
    }

    /// Whether a tape records what is done with it.
    pub(crate) fn is_traced(&self) -> bool {
        match self {
            Weight::Dense(w) => w.is_traced(),
            Weight::Quantized { scales, biases, .. } => {
                scales.is_traced() || biases.as_ref().is_some_and(|biases| biases.is_traced())
            }
            Weight::Adapted(adapted) => adapted.is_traced(),
        }
    }

    /// The dense matrix, which training needs.
    ///
    /// # Errors
    /// When the weight is quantized or has an adapter.
    pub fn dense(&self) -> Result<&Tensor> {
        match self {
            Weight::Dense(w) => Ok(w),
            Weight::Quantized { packing, .. } => {
                let why =
                    format!("a plain weight is needed, this one is {packing:?}; convert the model with --dequantize");
                Err(Error::value("weight", why))
            }
            Weight::Adapted(_) => {
                Err(Error::value("weight", "a plain weight is needed, this one has an adapter; fuse the adapter"))
            }
        }
    }

    /// The shape of the matrix, whatever packs it.
    pub fn shape(&self) -> Shape {
        match self {
            Weight::Dense(w) => w.shape(),
            Weight::Quantized { w, packing, .. } => {
                let shape = w.shape();
                shape.with(shape.rank().saturating_sub(1), shape.last() * 32 / packing.bits().max(1))
            }
            Weight::Adapted(adapted) => adapted.base().shape(),
        }
    }

    /// The device of the matrix.
    pub fn device(&self) -> &Device {
        match self {
            Weight::Dense(w) | Weight::Quantized { w, .. } => w.device(),
            Weight::Adapted(adapted) => adapted.base().device(),
        }
    }
}

/// Moves the rows of tensors into one, of which they become views.
fn join_rows(mut parts: Vec<&mut Parameter>) -> Result<()> {
    let Some(first) = parts.first() else { return Ok(()) };
    let (dtype, width, row) = (first.dtype(), first.shape().with(0, 1), first.elements() / first.shape()[0]);
    let alike = |part: &&mut Parameter| part.dtype() == dtype && part.shape().with(0, 1) == width && !part.is_traced();
    let bytes: usize = parts.iter().map(|part| part.elements() * dtype.size()).sum();
    let limits = match first.device() {
        Device::Cpu(_) => None,
        Device::Gpu(gpu) => Some(gpu.limits()),
    };
    // a view that no binding may start at would be copied by every launch
    let fits = limits.is_none_or(|limits| {
        bytes <= limits.binding && parts.iter().all(|p| (p.elements() * dtype.size()).is_multiple_of(limits.alignment))
    });
    if !fits || row == 0 || !parts.iter().all(alike) {
        return Ok(());
    }
    let tensors: Vec<&Tensor> = parts.iter().map(|part| &***part).collect();
    let all = concat(&tensors, 0)?;
    let mut first = 0;
    for part in &mut parts {
        let rows = part.shape()[0];
        **part = Parameter::new(all.rows(first, rows)?, part.role());
        first += rows;
    }
    Ok(())
}

impl Parameters for Weight {
    fn parameters<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor, Role)) {
        match self {
            Weight::Dense(w) => w.parameters(&join(prefix, "weight"), f),
            Weight::Quantized { w, scales, biases, .. } => {
                w.parameters(&join(prefix, "weight"), f);
                scales.parameters(&join(prefix, "scales"), f);
                biases.parameters(&join(prefix, "biases"), f);
            }
            Weight::Adapted(adapted) => adapted.parameters(prefix, f),
        }
    }

    fn parameters_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor, &mut Role)) {
        match self {
            Weight::Dense(w) => w.parameters_mut(&join(prefix, "weight"), f),
            Weight::Quantized { w, scales, biases, .. } => {
                w.parameters_mut(&join(prefix, "weight"), f);
                scales.parameters_mut(&join(prefix, "scales"), f);
                biases.parameters_mut(&join(prefix, "biases"), f);
            }
            Weight::Adapted(adapted) => adapted.parameters_mut(prefix, f),
        }
    }

    fn weights_mut(&mut self, prefix: &str, f: &mut dyn FnMut(&str, ModuleKind, &mut Weight)) {
        let kind = if self.shape().rank() == 3 { ModuleKind::Experts } else { ModuleKind::Linear };
        f(prefix, kind, self);
    }
}
