//! Rows shared by the invocations of a workgroup; the gradient to `w` in two stages.

use super::Grad;
use crate::common::gpu::MATH;
use crate::common::gpu::form::{QUADS, QUADS_MATH, SINGLES, SINGLES_MATH};
use crate::common::gpu::norm::{self, NORM, NORM_GRADIENT, Norm, NormGradients};
use crate::common::gpu::rows::ROWS;
use alluvium_core::gpu::{Gpu, Kernel};
use alluvium_core::{Result, Tensor};

const TEXT: &str = include_str!("kernel.wgsl");

static KERNELS: [Kernel; 2] = [
    crate::common::gpu::kernel("gated_rms_norm", &[MATH, QUADS, QUADS_MATH, ROWS, NORM, NORM_GRADIENT, TEXT])
        .reducing(),
    crate::common::gpu::kernel(
        "gated_rms_norm, scalar",
        &[MATH, SINGLES, SINGLES_MATH, ROWS, NORM, NORM_GRADIENT, TEXT],
    )
    .reducing(),
];

fn norm<'a>([x, z, w]: [&'a Tensor; 3]) -> Norm<'a> {
    Norm { kernels: &KERNELS, x, w: Some(w), z: Some(z), share: 1.0 / w.elements() as f32 }
}

pub(super) fn forward(gpu: &Gpu, args: [&Tensor; 3], eps: f32) -> Result<(Tensor, Tensor)> {
    norm::forward(gpu, norm(args), eps)
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dy: &Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    let args = [&saved.x, &saved.z, &saved.w];
    let need = [need[0], need[2], need[1]];
    let NormGradients { dx, dw, dz } = norm::backward(gpu, norm(args), &saved.rstd, dy, need, saved.dw_dtype)?;
    Ok([dx, dz, dw])
}
