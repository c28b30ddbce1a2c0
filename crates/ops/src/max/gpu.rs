//! The place of the largest number of each row, and the number there.

use crate::common::gpu::reduce::largest;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Shape, Tensor};

static KERNEL: Kernel = crate::common::gpu::kernel("max", &[include_str!("kernel.wgsl")]);

fn launch(gpu: &Gpu, entry: &'static str, width: usize, [at, x, y]: [&Tensor; 3]) -> Result<()> {
    gpu.launch(&Launch {
        kernel: &KERNEL,
        entry,
        constants: &[],
        stored: &[],
        binds: &[Bind::All(at), Bind::All(x), Bind::All(y)],
        params: bytemuck::bytes_of(&[y.elements() as u32, width as u32]),
        groups: Groups::Line(y.elements().div_ceil(256)),
    })
}

pub(super) fn forward(gpu: &Gpu, x: &Tensor, width: usize, shape: Shape) -> Result<(Tensor, Tensor)> {
    let from = gpu.widen(x)?;
    let (at, y) = (largest(gpu, &from, width, shape)?, gpu.empty(shape, DType::F32)?);
    launch(gpu, "forward", width, [&at, &from, &y])?;
    Ok((gpu.convert(&y, x.dtype())?, at))
}

pub(super) fn backward(gpu: &Gpu, dy: &Tensor, at: &Tensor, width: usize, shape: Shape) -> Result<Tensor> {
    let (from, dx) = (gpu.widen(dy)?, gpu.empty(shape, DType::F32)?);
    launch(gpu, "backward", width, [at, &from, &dx])?;
    gpu.convert(&dx, dy.dtype())
}
