//! The dtype of a model's activations.
//!
//! A model computes in the dtype of its vectors: norms, filters and biases. Matrices may be stored in another one, and the
//! gates' parameters, states, statistics, router logits and output logits are f32 in every model.

use crate::parameters::Parameters;
use alluvium_core::{DType, Error, Result, Tensor};
use alluvium_ops::cast;
use std::collections::BTreeSet;

/// The last parts of the names of parameters that are f32 in a model of any dtype: exponents of the decay, whose rounding
/// would grow with the length of a sequence.
pub const KEEP_IN_F32: [&str; 2] = ["A_log", "dt_bias"];

/// Whether the parameter called `name` is f32 in a model of any dtype.
pub fn is_kept_in_f32(name: &str) -> bool {
    KEEP_IN_F32.contains(&name.rsplit_once('.').map_or(name, |(_, last)| last))
}

/// Makes a model compute in `dtype`: casts its vectors, except [`KEEP_IN_F32`]. Matrices and adapters stay as they are
/// stored.
///
/// # Errors
/// When `dtype` is no floating type, or memory runs out.
pub fn set_dtype<M: Parameters + ?Sized>(model: &mut M, dtype: DType) -> Result<()> {
    if !dtype.is_float() {
        return Err(Error::value("set_dtype", format!("a model cannot compute in {dtype}, expected f32, f16 or bf16")));
    }
    let mut matrices = BTreeSet::new();
    model.weights_mut("", &mut |module, _, weight| {
        weight.visit(module, &mut |name, _| {
            matrices.insert(name);
        });
    });
    let mut result = Ok(());
    model.visit_mut("", &mut |name, tensor| {
        let is_vector = tensor.dtype().is_float() && !matrices.contains(&name) && !is_kept_in_f32(&name);
        if is_vector && result.is_ok() {
            result = cast(&tensor.detach(), dtype).map(|cast| *tensor = cast);
        }
    });
    result
}

/// A tensor of ones in the dtype and on the device of `like`.
pub(crate) fn ones<const N: usize>(shape: [usize; N], like: &Tensor) -> Result<Tensor> {
    cast(&Tensor::full(shape, 1.0, like.device())?, like.dtype())
}
