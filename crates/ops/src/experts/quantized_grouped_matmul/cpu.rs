//! One product an expert, each way.

use super::{CONTRACT, Grad};
use crate::experts::cpu::{self as product, Choices, sorted_rows};
use crate::quantized::cpu::{Codes, scale_gradients};
use crate::quantized::{PackedLayout, Quantized};
use alluvium_core::cpu::Cpu;
use alluvium_core::{Dims, Result, Tensor};

pub(super) fn forward(
    cpu: &Cpu,
    (x, q, layout): (&Tensor, &Quantized<'_>, PackedLayout),
    experts: &Tensor,
    dims: &Dims,
) -> Result<Tensor> {
    let choices = Choices::new(CONTRACT.op, experts, dims)?;
    let y = product::forward(cpu, &Codes::new(q, layout)?, dims['O'], &choices, &cpu.read(x)?)?;
    cpu.tensor(y, dims.shape("N K O")?, x.dtype())
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    let Grad { x, q, layout, experts, dims } = saved;
    let choices = &Choices::new(CONTRACT.op, experts, dims)?;
    let (codes, dys, outer) = (Codes::new(&q.quantized(), *layout)?, cpu.read(dy)?, dims['O']);
    let mut dx = None;
    if need[0] {
        let to = product::back(cpu, &codes, outer, choices, &dys)?;
        dx = Some(cpu.tensor(to, x.shape(), x.dtype())?);
    }
    if !need[1] && !need[2] {
        return Ok([dx, None, None]);
    }
    let (xs, inner, size) = (cpu.read(x)?, layout.inner, outer * layout.groups);
    let [mut dscales, mut dbiases] = [cpu.zeros(q.scales.elements())?, cpu.zeros(q.scales.elements())?];
    for (expert, places) in choices.jobs() {
        let own = expert * size..(expert + 1) * size;
        let [xs, dys] = sorted_rows(cpu, choices, places, [(&xs, inner), (&dys, outer)])?;
        let to = [&mut dscales[own.clone()], &mut dbiases[own]];
        scale_gradients(cpu, &codes, expert * outer..(expert + 1) * outer, [&dys, &xs], to)?;
    }
    let [dscales, dbiases] = q.gradients(cpu, [dscales, dbiases], [need[1], need[2]])?;
    Ok([dx, dscales, dbiases])
}
