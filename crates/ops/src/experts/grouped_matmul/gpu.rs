//! The choices are sorted where they are; each expert's product reads them there.

use super::{CONTRACT, Grad};
use crate::experts::gpu::{ExpertWeights, RoutedChoices};
use alluvium_core::gpu::Gpu;
use alluvium_core::{Dims, Result, Tensor};

pub(super) fn forward(gpu: &Gpu, x: &Tensor, w: &Tensor, experts: &Tensor, dims: &Dims) -> Result<Tensor> {
    RoutedChoices::new(CONTRACT.op, experts, dims, dims['I'])?.forward(
        gpu,
        x,
        ExpertWeights::Plain(w),
        dims.shape("N K O")?,
    )
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { x, w, experts, dims, dw_dtype } = saved;
    let choices = RoutedChoices::new(CONTRACT.op, experts, dims, dims['I'])?;
    let sorted = choices.sort(gpu)?;
    let [mut dx, mut dw] = [None, None];
    if need[0] {
        dx = Some(choices.back(gpu, &sorted, (dy, ExpertWeights::Plain(w)), x.shape(), x.dtype())?);
    }
    if need[1] {
        dw = Some(choices.gradient(gpu, (&sorted, 0), [dy, x], w.shape(), *dw_dtype)?);
    }
    Ok([dx, dw])
}
