//! Four gates an invocation; the gradients of the heads' parameters in two stages.

use super::{Gates, Grad};
use crate::common::gpu::MATH;
use crate::common::gpu::to_u32;
use crate::common::gpu::totals::{PARTS, totals};
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Tensor};

static KERNEL: Kernel = crate::common::gpu::kernel("gdn_gate", &[MATH, include_str!("kernel.wgsl")]);

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    n: u32,
    heads: u32,
    rows: u32,
    each: u32,
    stride: u32,
}

/// The sizes of a launch.
struct GateLaunch {
    n: usize,
    heads: usize,
    each: usize,
    /// Whether the gradients to `a` and `b` are written.
    need: [bool; 2],
}

impl GateLaunch {
    fn of(a: &Tensor) -> Self {
        let (n, heads) = (a.elements(), a.shape().last());
        // several rows for each of the workgroup's slots
        let slots = WORKGROUP / heads.min(WORKGROUP);
        GateLaunch { n, heads, each: (n / heads).div_ceil(PARTS).max(4 * slots), need: [true; 2] }
    }

    fn parts(&self) -> usize {
        (self.n / self.heads).div_ceil(self.each)
    }

    fn stride(&self) -> usize {
        self.heads.next_multiple_of(4)
    }

    fn launch(&self, gpu: &Gpu, entry: &'static str, groups: usize, a: &Tensor, more: &[&Tensor]) -> Result<()> {
        let params = Params {
            n: to_u32(self.n.div_ceil(4))?,
            heads: to_u32(self.heads)?,
            rows: to_u32(self.n / self.heads)?,
            each: to_u32(self.each)?,
            stride: to_u32(self.stride())?,
        };
        let binds: Vec<Bind<'_>> = [a].iter().chain(more).map(|x| Bind::All(x)).collect();
        gpu.launch(&Launch {
            kernel: &KERNEL,
            entry,
            constants: &[
                ("COLUMNS", self.heads.min(WORKGROUP) as u32),
                ("DA", u32::from(self.need[0])),
                ("DB", u32::from(self.need[1])),
            ],
            stored: &[("X", a.dtype())],
            binds: &binds,
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(groups),
        })
    }
}

pub(super) fn forward(gpu: &Gpu, [a, b, a_log, dt_bias]: [&Tensor; 4]) -> Result<Gates> {
    let (g, beta) = (gpu.empty(a.shape(), DType::F32)?, gpu.empty(a.shape(), DType::F32)?);
    let sizes = GateLaunch::of(a);
    sizes.launch(gpu, "forward", sizes.n.div_ceil(4 * WORKGROUP), a, &[a_log, dt_bias, &beta, &g, b])?;
    Ok(Gates { g, beta })
}

pub(super) fn backward(
    gpu: &Gpu,
    saved: &Grad,
    dy: [Option<&Tensor>; 2],
    need: [bool; 4],
) -> Result<[Option<Tensor>; 4]> {
    let Grad { a, a_log, dt_bias, g, b } = saved;
    let given = |dy: Option<&Tensor>| dy.map_or_else(|| gpu.zeros(a.shape(), DType::F32), |dy| Ok(dy.clone()));
    let [dg, dbeta] = [given(dy[0])?, given(dy[1])?];
    let sizes = GateLaunch { need: [need[0], need[1]], ..GateLaunch::of(a) };
    // a gradient that is not needed is bound, but not written
    let room = |need: bool| if need { gpu.empty(a.shape(), a.dtype()) } else { gpu.empty([4], DType::F32) };
    let (da, db) = (room(need[0])?, room(need[1])?);
    if need[0] || need[1] {
        let more = [a_log, dt_bias, b, &dg, &dbeta, &da, &db];
        sizes.launch(gpu, "backward", sizes.n.div_ceil(4 * WORKGROUP), a, &more)?;
    }
    let [da, db] = [need[0].then_some(da), need[1].then_some(db)];
    if !need[2] && !need[3] {
        return Ok([da, db, None, None]);
    }
    let parts = || gpu.empty([sizes.parts(), sizes.stride()], DType::F32);
    let (of_log, of_bias) = (parts()?, parts()?);
    let groups = sizes.parts() * sizes.heads.div_ceil(WORKGROUP);
    sizes.launch(gpu, "sums", groups, a, &[a_log, dt_bias, g, &dg, &of_log, &of_bias])?;
    let total = |need: bool, sums, like: &Tensor| need.then(|| totals(gpu, sums, like.shape())).transpose();
    Ok([da, db, total(need[2], &of_log, a_log)?, total(need[3], &of_bias, dt_bias)?])
}
