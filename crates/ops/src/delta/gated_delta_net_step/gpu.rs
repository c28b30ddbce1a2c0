//! Bound by reading and writing the state: a workgroup has a head, whose state it reads into registers before it computes
//! anything else.

use super::sizes::Sizes;
use super::{GatedDeltaNetStep, GatedDeltaNetStepArgs};
use crate::common::gpu::form::{Form, QUADS, SINGLES};
use crate::common::gpu::{MATH, to_u32, to_u32s};
use alluvium_core::Result;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};

const TEXT: &str = include_str!("kernel.wgsl");

static KERNELS: [Kernel; 2] = [
    crate::common::gpu::kernel("gated_delta_net_step", &[MATH, QUADS, include_str!("vec4.wgsl"), TEXT]).reducing(),
    crate::common::gpu::kernel("gated_delta_net_step, scalar", &[MATH, SINGLES, include_str!("scalar.wgsl"), TEXT])
        .reducing(),
];

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;
/// Elements of a state that an invocation keeps in registers at once.
const REGISTERS: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    count: u32,
    row: u32,
    channels: u32,
    heads: u32,
    share: u32,
    all_keys: u32,
    first: [u32; 6],
    strides: [u32; 3],
    l2_eps: f32,
    norm_eps: f32,
    beta_scale: f32,
    scale: f32,
}

pub(super) fn forward(gpu: &Gpu, args: GatedDeltaNetStepArgs<'_>, sizes: &Sizes) -> Result<GatedDeltaNetStep> {
    let GatedDeltaNetStepArgs { x, conv_state, filter, a_log, dt_bias, norm, mut state, .. } = args;
    let &Sizes { batch, value_heads, k, v, places, .. } = sizes;
    if !state.is_unique() {
        state = gpu.copied(&state)?;
    }
    let quads = k.is_multiple_of(4) && v.is_multiple_of(4);
    let form = if quads { Form::Quads(x.dtype()) } else { Form::Singles };
    let read = |x| gpu.convert(x, form.dtype());
    let (x32, old, filter, norm) = (read(x)?, read(conv_state)?, read(filter)?, read(norm)?);
    let new = gpu.empty(conv_state.shape(), form.dtype())?;
    let y = gpu.empty([batch, value_heads, v], form.dtype())?;
    let params = Params {
        count: to_u32(batch * value_heads)?,
        row: to_u32(sizes.row)?,
        channels: to_u32(sizes.channels)?,
        heads: to_u32(value_heads)?,
        share: to_u32(sizes.share())?,
        all_keys: to_u32(sizes.key_heads * k)?,
        first: to_u32s([places.q, places.key, places.value, places.z, places.b, places.a])?,
        strides: to_u32s(places.strides)?,
        l2_eps: args.l2_eps,
        norm_eps: args.norm_eps,
        beta_scale: args.beta_scale,
        scale: args.scale,
    };
    let [lanes, each, sweeps] = shares(k / form.unit(), v, form.unit());
    gpu.launch(&Launch {
        kernel: form.choose(&KERNELS),
        entry: "main",
        constants: &[
            ("WG", WORKGROUP as u32),
            ("KEYS", to_u32(k)?),
            ("VALUES", to_u32(v)?),
            ("TAPS", to_u32(sizes.taps)?),
            ("LANES", to_u32(lanes)?),
            ("EACH", to_u32(each)?),
            ("SWEEPS", to_u32(sweeps)?),
        ],
        stored: &form.stored(),
        binds: &[&x32, &old, &filter, a_log, dt_bias, &norm, &state, &new, &y].map(Bind::All),
        params: bytemuck::bytes_of(&params),
        groups: Groups::Line(batch * value_heads),
    })?;
    Ok(GatedDeltaNetStep { y: gpu.convert(&y, x.dtype())?, conv_state: gpu.convert(&new, conv_state.dtype())?, state })
}

/// Invocations that share a row of the state, units of it that each of them has, and rows that each has at once.
fn shares(units: usize, rows: usize, unit: usize) -> [usize; 3] {
    let lanes = units.next_power_of_two().min(8);
    let each = units.div_ceil(lanes);
    let sweeps = (REGISTERS / (each * unit)).max(1).min(rows.div_ceil(WORKGROUP / lanes));
    [lanes, each, sweeps]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usual_head_is_in_registers_as_a_whole() {
        assert_eq!(shares(32, 128, 4), [8, 4, 4]);
        assert_eq!(shares(16, 64, 4), [8, 2, 2]);
        assert_eq!(shares(1, 1, 1), [1, 1, 1]);
        // longer heads in several turns
        assert_eq!(shares(64, 256, 4), [8, 8, 2]);
        assert_eq!(shares(1_000, 64, 1), [8, 125, 1]);
    }
}
