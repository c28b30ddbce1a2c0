//! An invocation takes eight elements of a row that an id names. Backward the ids are sorted with their places, and
//! invocations add those of each up in order.

use super::{CONTRACT, Grad};
use crate::common::gpu::sort::sort;
use crate::common::ids::known_below;
use crate::quantized::gpu::{fold_named, gather};
use crate::quantized::{PackedLayout, Quantized};
use alluvium_core::gpu::Gpu;
use alluvium_core::{DType, Result, Shape, Tensor};

/// Ids that the CPU knows are checked; a row whose id a GPU made is NaN where it is not in the table.
pub(super) fn forward(
    gpu: &Gpu,
    q: &Quantized<'_>,
    layout: PackedLayout,
    ids: &Tensor,
    like: (Shape, DType),
) -> Result<Tensor> {
    known_below(CONTRACT.op, "ids", ids, ('V', q.w.shape()[0]))?;
    let y = gpu.empty(like.0, like.1)?;
    gather(gpu, q, layout, ids, &y)?;
    Ok(y)
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let ids = sort(gpu, &saved.ids, saved.q.w.shape()[0])?;
    let grad = || gpu.empty(saved.q.scales.shape(), DType::F32);
    let grads = [grad()?, grad()?];
    fold_named(gpu, (&saved.q.quantized(), saved.layout), &ids, dy, [&grads[0], &grads[1]])?;
    saved.q.stored_as(gpu, grads, need)
}
