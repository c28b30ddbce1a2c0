//! One product forward, two back.

use super::Grad;
use crate::linalg::weights::{multiply, multiply_back};
use crate::quantized::cpu::{Codes, scale_gradients};
use crate::quantized::{PackedLayout, Quantized};
use alluvium_core::cpu::Cpu;
use alluvium_core::{Dims, Result, Tensor};

pub(super) fn forward(cpu: &Cpu, x: &Tensor, q: &Quantized<'_>, layout: PackedLayout, dims: &Dims) -> Result<Tensor> {
    let (rows, outer) = (dims['R'], dims['O']);
    let mut y = cpu.buffer(rows * outer)?;
    multiply(cpu, &Codes::new(q, layout)?, 0..outer, &cpu.read(x)?, &mut y)?;
    cpu.tensor(y, dims.shape("R.. O")?, x.dtype())
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    let Grad { x, q, layout } = saved;
    let (codes, dys) = (Codes::new(&q.quantized(), *layout)?, cpu.read(dy)?);
    let outer = q.w.shape()[0];
    let mut dx = None;
    if need[0] {
        let mut to = cpu.buffer(x.elements())?;
        multiply_back(cpu, &codes, 0..outer, &dys, &mut to)?;
        dx = Some(cpu.tensor(to, x.shape(), x.dtype())?);
    }
    if !need[1] && !need[2] {
        return Ok([dx, None, None]);
    }
    let [mut dscales, mut dbiases] = [cpu.zeros(outer * layout.groups)?, cpu.zeros(outer * layout.groups)?];
    scale_gradients(cpu, &codes, 0..outer, [&dys, &cpu.read(x)?], [&mut dscales, &mut dbiases])?;
    let [dscales, dbiases] = q.gradients(cpu, [dscales, dbiases], [need[1], need[2]])?;
    Ok([dx, dscales, dbiases])
}
