//! Adapters made a part of the model's own matrices.

use super::low_rank::dense;
use crate::model::LanguageModel;
use crate::parameters::{Parameter, Role};
use crate::weight::Weight;
use alluvium_core::{DType, Error, Result};
use alluvium_ops::quantize;

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

fn fuse_one(weight: &mut Weight, form: Fuse) -> Result<usize> {
    let Weight::Adapted(adapted) = weight else {
        if form == Fuse::Dequantize && weight.quantized().is_some() {
            *weight = Weight::Dense(dense(weight, stored_dtype(weight))?.into());
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
