//! A workgroup for each row, or part of a long one.

use crate::common::gpu::reduce::largest;
use alluvium_core::gpu::Gpu;
use alluvium_core::{Dims, Result, Tensor};

pub(super) fn forward(gpu: &Gpu, x: &Tensor, dims: &Dims) -> Result<Tensor> {
    largest(gpu, &gpu.widen(x)?, dims['D'], dims.leading())
}
