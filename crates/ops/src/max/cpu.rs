//! One pass that finds the largest, and a second, in cache, that finds its place.

use crate::common::reduce::largest;
use alluvium_core::cpu::Cpu;
use alluvium_core::{Result, Shape, Tensor};

pub(super) fn forward(cpu: &Cpu, x: &Tensor, width: usize, shape: Shape) -> Result<(Tensor, Tensor)> {
    let xs = cpu.read(x)?;
    let at = largest(cpu, &xs, width)?;
    let mut y = cpu.buffer::<f32>(at.len())?;
    for ((y, row), &at) in y.iter_mut().zip(xs.chunks_exact(width)).zip(at.iter()) {
        *y = row[at as usize];
    }
    Ok((cpu.tensor(y, shape, x.dtype())?, cpu.wrap(at, shape)?))
}

pub(super) fn backward(cpu: &Cpu, dy: &Tensor, at: &Tensor, width: usize, shape: Shape) -> Result<Tensor> {
    let dys = cpu.read(dy)?;
    let mut dx = cpu.zeros::<f32>(shape.elements())?;
    for ((dx, dy), &at) in dx.chunks_exact_mut(width).zip(dys.iter()).zip(at.slice::<u32>()?) {
        dx[at as usize] = *dy;
    }
    cpu.tensor(dx, shape, dy.dtype())
}
