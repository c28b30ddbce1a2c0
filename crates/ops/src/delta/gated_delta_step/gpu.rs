//! Bound by reading and writing the state: 32 invocations have a row of it.

use super::{GatedDeltaOutput, GatedDeltaStepArgs};
use crate::common::gpu::MATH;
use crate::common::gpu::to_u32;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Dims, Result};

static KERNEL: Kernel = crate::common::gpu::kernel("gated_delta_step", &[MATH, include_str!("kernel.wgsl")]);

/// Rows of a workgroup.
const ROWS: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    values: u32,
    keys: u32,
    v_heads: u32,
    share: u32,
    scale: f32,
}

pub(super) fn forward(gpu: &Gpu, args: GatedDeltaStepArgs<'_>, dims: &Dims) -> Result<GatedDeltaOutput> {
    let GatedDeltaStepArgs { q, k, v, g, beta, mut state, scale } = args;
    if !state.is_unique() {
        state = gpu.copied(&state)?;
    }
    let (q, k, x) = (gpu.widen(q)?, gpu.widen(k)?, gpu.widen(v)?);
    let o = gpu.empty(v.shape(), DType::F32)?;
    let rows = v.elements();
    let params = Params {
        rows: to_u32(rows)?,
        values: to_u32(dims['V'])?,
        keys: to_u32(dims['K'])?,
        v_heads: to_u32(dims['G'])?,
        share: to_u32(dims['G'] / dims['H'])?,
        scale,
    };
    gpu.launch(&Launch {
        kernel: &KERNEL,
        entry: "main",
        // values of a row that an invocation has
        constants: &[("EACH", dims['K'].div_ceil(32) as u32)],
        stored: &[],
        binds: &[&q, &k, &x, g, beta, &state, &o].map(Bind::All),
        params: bytemuck::bytes_of(&params),
        groups: Groups::Line(rows.div_ceil(ROWS)),
    })?;
    Ok(GatedDeltaOutput { o: gpu.convert(&o, v.dtype())?, final_state: state })
}
