//! Threads over tokens: bound by reading what the experts gave once.

use super::Grad;
use alluvium_core::cpu::Cpu;
use alluvium_core::{Dims, Result, Tensor};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, y: &Tensor, weights: &Tensor, dims: &Dims) -> Result<Tensor> {
    let (choices, width, isa) = (dims['K'], dims['D'], cpu.isa());
    let (ys, ws) = (cpu.read(y)?, cpu.read(weights)?);
    let mut z = cpu.buffer(dims['N'] * width)?;
    let grain = cpu.grain(dims['N'], choices * width);
    cpu.run(|| {
        let rows = ys.par_chunks(choices * width).zip(ws.par_chunks(choices));
        z.par_chunks_mut(width).zip(rows).with_min_len(grain).for_each(|(z, (y, w))| {
            z.fill(0.0);
            for (y, &w) in y.chunks_exact(width).zip(w) {
                add(isa, w, y, z);
            }
        });
    });
    cpu.tensor(z, dims.shape("N D")?, y.dtype())
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dz: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { y, weights } = saved;
    let (choices, width, isa) = (y.shape()[1], y.shape()[2], cpu.isa());
    let (ys, ws, dzs) = (cpu.read(y)?, cpu.read(weights)?, cpu.read(dz)?);
    let grain = cpu.grain(dzs.len() / width, choices * width);
    let [mut dy, mut dw] = [None, None];
    if need[0] {
        let mut to = cpu.buffer(ys.len())?;
        cpu.run(|| {
            let rows = ws.par_chunks(choices).zip(dzs.par_chunks(width));
            to.par_chunks_mut(choices * width).zip(rows).with_min_len(grain).for_each(|(dy, (w, dz))| {
                for (dy, &w) in dy.chunks_exact_mut(width).zip(w) {
                    dy.iter_mut().zip(dz).for_each(|(dy, dz)| *dy = w * dz);
                }
            });
        });
        dy = Some(cpu.tensor(to, y.shape(), y.dtype())?);
    }
    if need[1] {
        let mut to = cpu.buffer(ws.len())?;
        cpu.run(|| {
            let rows = ys.par_chunks(choices * width).zip(dzs.par_chunks(width));
            to.par_chunks_mut(choices).zip(rows).with_min_len(grain).for_each(|(dw, (y, dz))| {
                for (dw, y) in dw.iter_mut().zip(y.chunks_exact(width)) {
                    *dw = dot(isa, y, dz);
                }
            });
        });
        dw = Some(cpu.wrap(to, weights.shape())?);
    }
    Ok([dy, dw])
}

alluvium_core::simd! {
    /// `z += w · y`.
    fn add<S>(w: f32, y: &[f32], z: &mut [f32]) {
        let w = S::splat(w);
        for (y, z) in y.chunks(S::LANES).zip(z.chunks_mut(S::LANES)) {
            S::load_partial(y).mul_add(w, S::load_partial(z)).store_partial(z);
        }
    }

    /// `Σ a · b`, in a fixed order.
    fn dot<S>(a: &[f32], b: &[f32]) -> f32 {
        let mut sums = [S::splat(0.0); 4];
        for (a, b) in a.chunks(4 * S::LANES).zip(b.chunks(4 * S::LANES)) {
            for ((a, b), sum) in a.chunks(S::LANES).zip(b.chunks(S::LANES)).zip(&mut sums) {
                *sum = S::load_partial(a).mul_add(S::load_partial(b), *sum);
            }
        }
        ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum()
    }
}
