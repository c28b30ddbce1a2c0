//! Rows shared by the invocations of a workgroup.

use super::Grad;
use crate::common::gpu::form::{QUADS, SINGLES};
use crate::common::gpu::norm::{self, NORM, Norm};
use crate::common::gpu::rows::ROWS;
use alluvium_core::gpu::{Gpu, Kernel};
use alluvium_core::{DType, Result, Tensor};

const TEXT: &str = include_str!("kernel.wgsl");

static KERNELS: [Kernel; 2] = [
    crate::common::gpu::kernel("l2_norm", &[QUADS, ROWS, NORM, TEXT]).reducing(),
    crate::common::gpu::kernel("l2_norm, scalar", &[SINGLES, ROWS, NORM, TEXT]).reducing(),
];

fn norm(x: &Tensor) -> Norm<'_> {
    Norm { kernels: &KERNELS, x, w: None, z: None, share: 1.0 }
}

pub(super) fn forward(gpu: &Gpu, x: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    norm::forward(gpu, norm(x), eps)
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dy: &Tensor) -> Result<Option<Tensor>> {
    Ok(norm::backward(gpu, norm(&saved.x), &saved.scale, dy, [true, false, false], DType::F32)?.dx)
}
