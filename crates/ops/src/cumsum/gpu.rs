//! A workgroup for each row.

use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Tensor};

static KERNEL: Kernel = crate::common::gpu::kernel("cumsum", &[include_str!("kernel.wgsl")]);

/// Which end a sum begins at.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum From {
    Start,
    End,
}

pub(super) fn sums(gpu: &Gpu, x: &Tensor, from: From) -> Result<Tensor> {
    let (rows, width) = (x.elements() / x.shape().last(), x.shape().last());
    let (wide, y) = (gpu.widen(x)?, gpu.empty(x.shape(), DType::F32)?);
    let group = width.div_ceil(4).next_power_of_two().clamp(32, 256);
    for run in gpu.segments(rows, 4 * width) {
        let bytes = 4 * width * run.start..4 * width * run.end;
        gpu.launch(&Launch {
            kernel: &KERNEL,
            entry: "main",
            constants: &[("WG", group as u32), ("BACK", u32::from(from == From::End))],
            stored: &[],
            binds: &[Bind::Part(&wide, bytes.clone()), Bind::Part(&y, bytes)],
            params: bytemuck::bytes_of(&[run.len() as u32, width as u32]),
            groups: Groups::Line(run.len()),
        })?;
    }
    gpu.convert(&y, x.dtype())
}
