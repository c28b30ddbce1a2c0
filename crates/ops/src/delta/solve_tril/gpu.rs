//! A column an invocation.

use super::Grad;
use crate::delta::chunk::HeadLayout;
use crate::delta::gpu::Chunks;
use alluvium_core::gpu::Gpu;
use alluvium_core::{Result, Tensor};

pub(super) fn forward(gpu: &Gpu, l: &Tensor, layout: HeadLayout) -> Result<Tensor> {
    Chunks::of(gpu, layout)?.solve(l)?.reshape(l.shape())
}

pub(super) fn backward(gpu: &Gpu, args: &Grad, da: &Tensor) -> Result<[Option<Tensor>; 1]> {
    let dl = Chunks::of(gpu, args.layout)?.solve_gradient(&args.a, da, None)?;
    Ok([Some(dl.reshape(da.shape())?)])
}
