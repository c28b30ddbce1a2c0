//! One launch for a few rows, the operations one after the other for more.

use super::cpu;
use crate::linalg::gpu::few_rows;
use crate::quantized::gpu::{Path, path, stretches, swiglu_dots};
use crate::quantized::{PackedLayout, Quantized};
use alluvium_core::gpu::Gpu;
use alluvium_core::{Result, Tensor};

pub(super) fn forward(gpu: &Gpu, x: &Tensor, q: &Quantized<'_>, layout: PackedLayout) -> Result<Tensor> {
    let (rows, outer) = (x.elements() / layout.inner, q.w.elements() / layout.words);
    let half = outer / 2;
    let is_whole = half.is_multiple_of(4) && stretches(gpu, layout, outer).count() == 1;
    match path(rows, few_rows(gpu), half, layout.inner) {
        Path::Dots(few) if is_whole => {
            let y = gpu.empty(x.shape().with(x.shape().rank() - 1, half), x.dtype())?;
            swiglu_dots(gpu, (q, layout), few, x, &y)?;
            Ok(y)
        }
        _ => cpu::forward(x, q),
    }
}
