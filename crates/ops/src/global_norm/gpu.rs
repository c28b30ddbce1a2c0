//! Each workgroup leaves one sum of squares; one workgroup adds them in order.

use crate::common::gpu::to_u32;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Tensor};

static KERNEL: Kernel = crate::common::gpu::kernel("global_norm", &[include_str!("kernel.wgsl")]).reducing();

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;
/// Quads that an invocation takes at least, and workgroups of a tensor at most.
const QUADS: usize = 8;
const MOST: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    n: u32,
    first: u32,
    groups: u32,
}

pub(super) fn norm(gpu: &Gpu, tensors: &[&Tensor]) -> Result<Tensor> {
    let mut runs = Vec::new();
    let mut count = 0;
    for &x in tensors {
        for part in gpu.segments(x.elements().div_ceil(4), 4 * x.dtype().size()) {
            let groups = part.len().div_ceil(QUADS * WORKGROUP).min(MOST);
            runs.push((x, part, count, groups));
            count += groups;
        }
    }
    let sums = gpu.empty([count, 4], DType::F32)?;
    for (x, part, first, groups) in runs {
        let size = x.dtype().size();
        let end = (4 * part.end).min(x.elements());
        let n = end - 4 * part.start;
        gpu.launch(&Launch {
            kernel: &KERNEL,
            entry: "squares",
            constants: &[("WG", WORKGROUP as u32)],
            stored: &[("X", x.dtype())],
            binds: &[Bind::All(&sums), Bind::Part(x, 4 * part.start * size..end * size)],
            params: bytemuck::bytes_of(&Params { n: to_u32(n)?, first: to_u32(first)?, groups: to_u32(groups)? }),
            groups: Groups::Line(groups),
        })?;
    }
    let norm = gpu.empty([], DType::F32)?;
    gpu.launch(&Launch {
        kernel: &KERNEL,
        entry: "root",
        constants: &[("WG", WORKGROUP as u32)],
        stored: &[("X", DType::F32)],
        binds: &[Bind::All(&sums), Bind::All(&norm)],
        params: bytemuck::bytes_of(&Params { n: to_u32(count)?, first: 0, groups: 1 }),
        groups: Groups::Line(1),
    })?;
    Ok(norm)
}
