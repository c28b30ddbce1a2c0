//! An invocation takes eight numbers of a row that an id names. Backward the places of each id are gathered by the
//! processor, and invocations add them up in order.

use super::{CONTRACT, Grad};
use crate::common::gpu::quantized::{fold_named, gather};
use crate::common::ids::{known_below, places};
use crate::common::quantized::{Layout, Quantized};
use alluvium_core::wgpu::Gpu;
use alluvium_core::{DType, Result, Shape, Tensor};

/// Ids that the processor knows are checked; a row whose id a GPU made is NaN where it is not in the table.
pub(super) fn forward(
    gpu: &Gpu,
    q: &Quantized<'_>,
    layout: Layout,
    ids: &Tensor,
    like: (Shape, DType),
) -> Result<Tensor> {
    known_below(CONTRACT.op, "ids", ids, ('V', q.w.shape()[0]))?;
    let y = gpu.empty(like.0, like.1)?;
    gather(gpu, q, layout, ids, &y)?;
    Ok(y)
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    // ids that a GPU made are waited for: sorting them takes the processor
    let (table, ids) = places(&saved.ids.ids()?, saved.q.w.shape()[0]);
    let table = Tensor::from_slice(&table, [table.len()], &gpu.clone().into())?;
    let zeros = || gpu.zeros(saved.q.scales.shape(), DType::F32);
    let grads = [zeros()?, zeros()?];
    fold_named(gpu, (&saved.q.quantized(), saved.layout), (&table, ids), dy, [&grads[0], &grads[1]])?;
    saved.q.stored_as(gpu, grads, need)
}
