//! One pass: four elements are read for each weight and three are written.

use super::cpu::Factors;
use super::{AdamW, AdamWState};
use crate::common::gpu::copy::duplicate;
use crate::common::gpu::to_u32;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{Result, Tensor};

static KERNEL: Kernel = crate::common::gpu::kernel("adamw", &[include_str!("kernel.wgsl")]);

/// Invocations of a workgroup; each takes four weights.
const WORKGROUP: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    quads: u32,
    beta: [f32; 2],
    gradient_share: [f32; 2],
    weight_factor: f32,
    step_size: f32,
    root_factor: f32,
    eps: f32,
}

pub(super) fn step(gpu: &Gpu, state: AdamWState, grad: &Tensor, settings: &AdamW) -> Result<AdamWState> {
    let own = |mut x: Tensor| if x.is_unique() { Ok(x) } else { duplicate(gpu, &x) };
    let (p, m, v) = (own(state.p)?, own(state.m)?, own(state.v)?);
    let Factors { beta, gradient_share, weight_factor, step_size, root_factor, eps } = Factors::new(settings);
    for part in gpu.segments(p.elements().div_ceil(4), 16) {
        let bind = |x: &'_ Tensor| {
            let quad = 4 * x.dtype().size();
            part.start * quad..(part.end * quad).min(x.elements() * x.dtype().size())
        };
        let params =
            Params { quads: to_u32(part.len())?, beta, gradient_share, weight_factor, step_size, root_factor, eps };
        gpu.launch(&Launch {
            kernel: &KERNEL,
            entry: "main",
            constants: &[],
            stored: &[("P", p.dtype()), ("G", grad.dtype())],
            binds: &[
                Bind::Part(&p, bind(&p)),
                Bind::Part(&m, bind(&m)),
                Bind::Part(&v, bind(&v)),
                Bind::Part(grad, bind(grad)),
            ],
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(part.len().div_ceil(WORKGROUP)),
        })?;
    }
    Ok(AdamWState { p, m, v })
}
