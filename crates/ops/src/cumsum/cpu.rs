//! Threads over rows; a row is one chain of additions.

use alluvium_core::cpu::Cpu;
use alluvium_core::{Result, Tensor};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, x: &Tensor) -> Result<Tensor> {
    rows(cpu, x, |x, y| running(x.iter().zip(y)))
}

pub(super) fn backward(cpu: &Cpu, dy: &Tensor) -> Result<Tensor> {
    rows(cpu, dy, |dy, dx| running(dy.iter().zip(dx).rev()))
}

fn running<'a>(pairs: impl Iterator<Item = (&'a f32, &'a mut f32)>) {
    let mut sum = 0.0;
    for (x, y) in pairs {
        sum += f64::from(*x);
        *y = sum as f32;
    }
}

fn rows(cpu: &Cpu, x: &Tensor, row: impl Fn(&[f32], &mut [f32]) + Sync) -> Result<Tensor> {
    let (xs, width) = (cpu.read(x)?, x.shape().last());
    let mut y = cpu.buffer::<f32>(xs.len())?;
    let grain = cpu.grain(xs.len() / width, width) * width;
    cpu.run(|| {
        y.par_chunks_mut(grain).zip(xs.par_chunks(grain)).for_each(|(y, x)| {
            y.chunks_exact_mut(width).zip(x.chunks_exact(width)).for_each(|(y, x)| row(x, y));
        });
    });
    cpu.tensor(y, x.shape(), x.dtype())
}
