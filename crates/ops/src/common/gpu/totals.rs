//! The second stage of sums over rows: what a fixed number of workgroups left is added in order.

use crate::common::gpu::to_u32s;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Shape, Tensor};

static KERNEL: Kernel = crate::common::gpu::kernel("totals", &[include_str!("totals.wgsl")]);

/// The number of workgroups that sums over rows are left by: enough to fill a large GPU, whatever the adapter.
pub(crate) const PARTS: usize = 512;

/// The sums over the first axis of `parts` `[P, W]`, f32 with `W` a multiple of 4; the first values that `shape` holds.
pub(crate) fn totals(gpu: &Gpu, parts: &Tensor, shape: Shape) -> Result<Tensor> {
    let (rows, quads) = (parts.shape()[0], parts.shape()[1] / 4);
    let y = gpu.empty(shape, DType::F32)?;
    gpu.launch(&Launch {
        kernel: &KERNEL,
        entry: "main",
        constants: &[],
        stored: &[],
        binds: &[Bind::All(parts), Bind::All(&y)],
        params: bytemuck::bytes_of(&to_u32s([rows, quads])?),
        groups: Groups::Line(quads.div_ceil(8)),
    })?;
    Ok(y)
}
