//! The products take codes apart as they read them; gradients of scales come from those of the elements, some experts
//! at a time.

use super::{CONTRACT, Grad};
use crate::experts::gpu::{ExpertWeights, RoutedChoices, SortedChoices, piece};
use crate::quantized::gpu::fold;
use crate::quantized::{PackedLayout, Quantized};
use alluvium_core::gpu::Gpu;
use alluvium_core::{DType, Dims, Result, Shape, Tensor};

pub(super) fn forward(
    gpu: &Gpu,
    (x, q, layout): (&Tensor, &Quantized<'_>, PackedLayout),
    experts: &Tensor,
    dims: &Dims,
) -> Result<Tensor> {
    let choices = RoutedChoices::new(CONTRACT.op, experts, dims, layout.inner)?;
    choices.forward(gpu, x, ExpertWeights::Packed(q), dims.shape("N K O")?)
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dy: &Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    let Grad { x, q, layout, experts, dims } = saved;
    let choices = RoutedChoices::new(CONTRACT.op, experts, dims, layout.inner)?;
    let sorted = choices.sort(gpu)?;
    let mut dx = None;
    if need[0] {
        dx = Some(choices.back(gpu, &sorted, (dy, ExpertWeights::Packed(&q.quantized())), x.shape(), x.dtype())?);
    }
    if !need[1] && !need[2] {
        return Ok([dx, None, None]);
    }
    let grads = scale_gradients(gpu, saved, dy, (&choices, &sorted))?;
    let [dscales, dbiases] = q.stored_as(gpu, grads, [need[1], need[2]])?;
    Ok([dx, dscales, dbiases])
}

/// The gradients of all scales and biases, f32.
fn scale_gradients(
    gpu: &Gpu,
    saved: &Grad,
    dy: &Tensor,
    (choices, sorted): (&RoutedChoices<'_>, &SortedChoices),
) -> Result<[Tensor; 2]> {
    let Grad { x, q, layout, dims, .. } = saved;
    let (experts, outer) = (dims['E'], dims['O']);
    let each = piece(gpu.limits().binding, experts, outer * layout.inner, outer * layout.groups);
    let empty = || gpu.empty(q.scales.shape(), DType::F32);
    let grads = [empty()?, empty()?];
    for first in (0..experts).step_by(each) {
        let part = first..(first + each).min(experts);
        let shape = Shape::from([part.len(), outer, layout.inner]);
        let dw = choices.gradient(gpu, (sorted, first), [dy, x], shape, DType::F32)?;
        let to = [grads[0].rows(first, part.len())?, grads[1].rows(first, part.len())?];
        fold(gpu, &q.rows(&part)?.quantized(), &dw, [&to[0], &to[1]])?;
    }
    Ok(grads)
}
