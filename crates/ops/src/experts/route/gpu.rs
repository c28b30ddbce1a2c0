//! One workgroup a token, both ways.

use super::{Grad, RouteOutput, Routing};
use crate::common::gpu::MATH;
use crate::common::gpu::to_u32s;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Tensor};

static KERNEL: Kernel = crate::common::gpu::kernel("route", &[MATH, include_str!("kernel.wgsl")]).reducing();

/// Invocations of a workgroup: few, because each choice waits for all of them.
const WG: u32 = 64;

fn launch(
    gpu: &Gpu,
    entry: &'static str,
    norm_topk_prob: bool,
    binds: &[Bind<'_>],
    [rows, width, top_k]: [usize; 3],
) -> Result<()> {
    gpu.launch(&Launch {
        kernel: &KERNEL,
        entry,
        constants: &[("WG", WG), ("NORMALIZE", u32::from(norm_topk_prob))],
        stored: &[],
        binds,
        params: bytemuck::bytes_of(&to_u32s([rows, width, top_k])?),
        groups: Groups::Line(rows),
    })
}

pub(super) fn forward(gpu: &Gpu, logits: &Tensor, routing: Routing) -> Result<RouteOutput> {
    let Routing { top_k, norm_topk_prob } = routing;
    let (rows, width) = (logits.shape()[0], logits.shape()[1]);
    let logits = gpu.widen(logits)?;
    let weights = gpu.empty([rows, top_k], DType::F32)?;
    let experts = gpu.empty([rows, top_k], DType::U32)?;
    let binds = [&logits, &weights, &experts].map(Bind::All);
    launch(gpu, "forward", norm_topk_prob, &binds, [rows, width, top_k])?;
    Ok(RouteOutput { weights, experts })
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dw: &Tensor) -> Result<Tensor> {
    let Grad { logits, route: RouteOutput { weights, experts }, norm_topk_prob } = saved;
    let (rows, width, top_k) = (logits.shape()[0], logits.shape()[1], dw.shape()[1]);
    let dx = gpu.empty(logits.shape(), DType::F32)?;
    let wide = gpu.widen(logits)?;
    let [x, dw, to, w, chosen] = [&wide, dw, &dx, weights, experts].map(Bind::All);
    let binds = [x, Bind::Unused, Bind::Unused, dw, to, w, chosen];
    launch(gpu, "backward", *norm_topk_prob, &binds, [rows, width, top_k])?;
    gpu.convert(&dx, logits.dtype())
}
