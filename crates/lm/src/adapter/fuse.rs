//! Adapters made a part of the model's own matrices.

use super::Adapter;
use super::low_rank::{LowRank, Update, widened};
use crate::model::LanguageModel;
use crate::parameters::{ModuleKind, Parameter, Role, join};
use crate::weight::Weight;
use alluvium_core::{DType, Error, Result, Tensor};
use alluvium_ops::{cast, quantize};

/// The form of the matrices after [`fuse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    /// Quantized matrices are quantized again in their own format.
    Requantize,
    /// All quantized matrices become plain.
    Dequantize,
}

/// Adds each update to its matrix, as mlx-lm's `fuse` does, and returns the number of matrices that had one. The model
/// computes the same without adapters, up to rounding and quantization.
///
/// # Errors
/// When memory runs out.
pub fn fuse(model: &mut dyn LanguageModel, form: Fuse) -> Result<usize> {
    let (mut count, mut result) = (0, Ok(()));
    model.weights_mut("", &mut |name, _, weight| {
        if result.is_ok() {
            result = fuse_one(weight, form)
                .map(|fused| count += fused)
                .map_err(|error| Error::value("fuse", format!("`{name}`: {error}")));
        }
    });
    result.map(|()| count)
}

/// What an adapter has for one module or tensor.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // one lives at a time
pub(crate) enum AdaptedTensor {
    Update(Update),
    Replaced(Tensor),
    /// Scales and biases of codes that stay.
    Rescaled {
        scales: Tensor,
        biases: Option<Tensor>,
    },
}

impl Adapter {
    /// The part for a module, or for a tensor that is no matrix.
    pub(crate) fn part(&self, name: &str) -> Option<AdaptedTensor> {
        let name = self.names.of(name);
        if let Some(update) = self.updates.get(name) {
            return Some(AdaptedTensor::Update(update.clone()));
        }
        if let Some(scales) = self.replaced.get(&join(name, "scales")) {
            let biases = self.replaced.get(&join(name, "biases")).cloned();
            return Some(AdaptedTensor::Rescaled { scales: scales.clone(), biases });
        }
        let replaced = self.replaced.get(name).or_else(|| self.replaced.get(&join(name, "weight")));
        replaced.map(|tensor| AdaptedTensor::Replaced(tensor.clone()))
    }

    /// Errs unless the parts that were found are all that the adapter has.
    pub(crate) fn check_all_placed<'a>(&self, parts: impl Iterator<Item = &'a AdaptedTensor>) -> Result<()> {
        let count: usize = parts.map(AdaptedTensor::tensors).sum();
        if count == self.len() {
            return Ok(());
        }
        let why = format!("of its {} modules the model has {count}: it was made for another model", self.len());
        Err(self.error(why))
    }
}

impl AdaptedTensor {
    /// The updates and replaced tensors that it is made of.
    fn tensors(&self) -> usize {
        match self {
            AdaptedTensor::Rescaled { biases: Some(_), .. } => 2,
            _ => 1,
        }
    }

    /// The matrix of a module with this part.
    pub(crate) fn fuse(&self, name: &str, base: Weight, form: Fuse) -> Result<Weight> {
        let named = |error: Error| Error::value("fuse", format!("`{name}`: {error}"));
        let kind = match base.shape().rank() {
            3 => ModuleKind::Experts,
            _ if name.ends_with("embed_tokens") => ModuleKind::Embedding,
            _ => ModuleKind::Linear,
        };
        match self {
            AdaptedTensor::Update(update) => {
                let adapted = LowRank::new(base, kind, update.clone()).map_err(named)?;
                let mut weight = Weight::Adapted(Box::new(adapted));
                fuse_one(&mut weight, form).map_err(named)?;
                Ok(weight)
            }
            AdaptedTensor::Replaced(_) => Ok(Weight::Dense(self.replace(name, base.dense()?)?.into())),
            AdaptedTensor::Rescaled { scales, biases } => {
                let Weight::Quantized { w, scales: old, biases: old_biases, packing } = base else {
                    return Err(Error::value("fuse", format!("`{name}` is not quantized, but has new scales")));
                };
                let frozen = |new: &Tensor, old: &Tensor| {
                    let new = AdaptedTensor::Replaced(new.clone()).replace(name, old)?;
                    Ok::<_, Error>(Parameter::new(new, Role::Frozen))
                };
                let biases = match (biases, &old_biases) {
                    (Some(new), Some(old)) => Some(frozen(new, old)?),
                    _ => old_biases,
                };
                let mut weight = Weight::Quantized { w, scales: frozen(scales, &old)?, biases, packing };
                fuse_one(&mut weight, form).map_err(named)?;
                Ok(weight)
            }
        }
    }

    /// The tensor that replaces a stored one, in its dtype.
    pub(crate) fn replace(&self, name: &str, stored: &Tensor) -> Result<Tensor> {
        match self {
            AdaptedTensor::Replaced(new) if new.shape() == stored.shape() && new.dtype() == stored.dtype() => {
                Ok(new.clone())
            }
            AdaptedTensor::Replaced(new) if new.shape() == stored.shape() => cast(new, stored.dtype()),
            _ => Err(Error::value("fuse", format!("`{name}` is {}, the adapter has another shape", stored.shape()))),
        }
    }
}

fn fuse_one(weight: &mut Weight, form: Fuse) -> Result<usize> {
    let Weight::Adapted(adapted) = weight else {
        if form == Fuse::Dequantize && weight.quantized().is_some() {
            *weight = Weight::Dense(widened(weight, stored_dtype(weight))?.into());
        }
        return Ok(0);
    };
    let base = adapted.base();
    let fused = adapted.fused(stored_dtype(base))?;
    *weight = match (base, form) {
        (Weight::Quantized { packing, .. }, Fuse::Requantize) => {
            let packed = quantize(&fused, *packing)?;
            Weight::Quantized {
                w: packed.w.into(),
                scales: Parameter::new(packed.scales, Role::Frozen),
                biases: packed.biases.map(|biases| Parameter::new(biases, Role::Frozen)),
                packing: *packing,
            }
        }
        _ => Weight::Dense(fused.into()),
    };
    Ok(1)
}

/// The dtype of a matrix when it is plain: its own, that of its scales, or bf16 as in MLX.
fn stored_dtype(weight: &Weight) -> DType {
    match weight {
        Weight::Dense(w) => w.dtype(),
        Weight::Quantized { scales, .. } if scales.dtype().is_float() => scales.dtype(),
        _ => DType::BF16,
    }
}
