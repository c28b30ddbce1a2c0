//! An invocation takes eight elements, both ways.

use super::Grad;
use crate::quantized::Quantized;
use crate::quantized::gpu::{expand, fold};
use alluvium_core::gpu::Gpu;
use alluvium_core::{DType, Result, Shape, Tensor};

pub(super) fn forward(gpu: &Gpu, q: &Quantized<'_>, like: (Shape, DType)) -> Result<Tensor> {
    let y = gpu.empty(like.0, like.1)?;
    expand(gpu, q, &y)?;
    Ok(y)
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let empty = || gpu.empty(saved.q.scales.shape(), DType::F32);
    let grads = [empty()?, empty()?];
    fold(gpu, &saved.q.quantized(), dy, [&grads[0], &grads[1]])?;
    saved.q.stored_as(gpu, grads, need)
}
