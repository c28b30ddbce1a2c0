//! RMSNorm on a GPU: the invocations of a workgroup share rows; `dw` is summed in two stages.

use super::Grad;
use crate::common::gpu::form::{QUADS, SINGLES};
use crate::common::gpu::norm::{self, NORM, NORM_GRADIENT, Norm, NormGradients};
use crate::common::gpu::rows::ROWS;
use alluvium_core::gpu::{Gpu, Kernel};
use alluvium_core::{Result, Tensor};

const TEXT: &str = include_str!("kernel.wgsl");

static KERNELS: [Kernel; 2] = [
    crate::common::gpu::kernel("rms_norm", &[QUADS, ROWS, NORM, NORM_GRADIENT, TEXT]).reducing(),
    crate::common::gpu::kernel("rms_norm, scalar", &[SINGLES, ROWS, NORM, NORM_GRADIENT, TEXT]).reducing(),
];

fn norm<'a>(x: &'a Tensor, w: &'a Tensor) -> Norm<'a> {
    Norm { kernels: &KERNELS, x, w: Some(w), z: None, share: 1.0 / w.elements() as f32 }
}

pub(super) fn forward(gpu: &Gpu, x: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    norm::forward(gpu, norm(x, w), eps)
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let NormGradients { dx, dw, .. } =
        norm::backward(gpu, norm(&saved.x, &saved.w), &saved.rstd, dy, [need[0], need[1], false], saved.dw_dtype)?;
    Ok([dx, dw])
}
