//! A matrix of a model, as it is stored.

use crate::adapter::LowRank;
use crate::parameters::{ModuleKind, Parameter, Parameters, Role, join};
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_ops::{
    Packing, Quantized, cast, embedding, grouped_matmul, linear, quantized_embedding, quantized_grouped_matmul,
    quantized_matmul,
};

/// A matrix `[O, I]`, or one for each expert `[E, O, I]`, as the file has it. It is never copied to another dtype:
/// operations widen it as they read.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a model has a few hundred at most
pub enum Weight {
    /// Plain numbers: f32, f16 or bf16.
    Dense(Parameter),
    /// Packed numbers, as MLX packs them.
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
    /// The packed numbers, borrowed; none where they are plain.
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

    /// The rows that `ids` name, `[.., I]`, in f32.
    ///
    /// # Errors
    /// As [`embedding`] and [`quantized_embedding`].
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Weight::Dense(w) if w.dtype() == DType::F32 => embedding(w, ids),
            Weight::Dense(w) => cast(&embedding(w, ids)?, DType::F32),
            Weight::Quantized { w, scales, biases, packing } => {
                let q = Quantized { w, scales, biases: biases.as_deref(), packing: *packing };
                quantized_embedding(&q, ids, DType::F32)
            }
            Weight::Adapted(adapted) => adapted.embedding(ids),
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

    /// The plain numbers, which training needs.
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

    /// The lengths of the axes, in numbers.
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
