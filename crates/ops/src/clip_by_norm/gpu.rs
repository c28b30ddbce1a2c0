//! One pass, in place if the memory is not shared.

use crate::common::gpu::to_u32;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{Result, Tensor};

static KERNEL: Kernel = crate::common::gpu::kernel("clip_by_norm", &[include_str!("kernel.wgsl")]);

/// Invocations of a workgroup; each takes four elements.
const WORKGROUP: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    quads: u32,
    most: f32,
}

pub(super) fn clip(gpu: &Gpu, mut x: Tensor, norm: &Tensor, most: f32) -> Result<Tensor> {
    if !x.is_unique() {
        x = gpu.copied(&x)?;
    }
    let quad = 4 * x.dtype().size();
    for part in gpu.segments(x.elements().div_ceil(4), quad) {
        let bytes = part.start * quad..(part.end * quad).min(x.elements() * x.dtype().size());
        let params = Params { quads: to_u32(part.len())?, most };
        gpu.launch(&Launch {
            kernel: &KERNEL,
            entry: "main",
            constants: &[],
            stored: &[("X", x.dtype())],
            binds: &[Bind::Part(&x, bytes), Bind::All(norm)],
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(part.len().div_ceil(WORKGROUP)),
        })?;
    }
    Ok(x)
}
