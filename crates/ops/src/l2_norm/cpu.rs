//! Threads over rows; each row is read once from memory and stays in cache for its second pass.

use super::Grad;
use alluvium_core::cpu::Cpu;
use alluvium_core::{DType, Dims, Result, Tensor};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, x: &Tensor, eps: f32, dims: &Dims) -> Result<(Tensor, Tensor)> {
    let (rows, width, isa) = (dims['R'], dims['D'], cpu.isa());
    let xs = cpu.read(x)?;
    let (mut y, mut scale) = (cpu.buffer(xs.len())?, cpu.buffer(rows)?);
    let grain = cpu.grain(rows, width);
    cpu.run(|| {
        y.par_chunks_mut(grain * width)
            .zip(xs.par_chunks(grain * width))
            .zip(scale.par_chunks_mut(grain))
            .for_each(|((y, x), scale)| normalize(isa, x, eps, y, scale));
    });
    Ok((cpu.tensor(y, x.shape(), x.dtype())?, cpu.tensor(scale, [rows], DType::F32)?))
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor) -> Result<Tensor> {
    let Grad { x, scale } = saved;
    let (xs, dys, scales) = (cpu.read(x)?, cpu.read(dy)?, cpu.read(scale)?);
    let (width, isa) = (x.shape().last(), cpu.isa());
    let mut dx = cpu.buffer(xs.len())?;
    let grain = cpu.grain(scales.len(), width);
    cpu.run(|| {
        dx.par_chunks_mut(grain * width)
            .zip(xs.par_chunks(grain * width))
            .zip(dys.par_chunks(grain * width))
            .zip(scales.par_chunks(grain))
            .for_each(|(((dx, x), dy), scale)| gradient(isa, x, dy, scale, dx));
    });
    cpu.tensor(dx, x.shape(), x.dtype())
}

alluvium_core::simd! {
    fn normalize<S>(x: &[f32], eps: f32, y: &mut [f32], scale: &mut [f32]) {
        let width = x.len() / scale.len();
        let whole = width - width % S::LANES;
        for ((x, y), scale) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(scale) {
            let tail = S::load_partial(&x[whole..]);
            let mut squares = tail * tail;
            for x in x[..whole].chunks_exact(S::LANES) {
                let x = S::load(x);
                squares = x.mul_add(x, squares);
            }
            *scale = (squares.sum() + eps).sqrt().recip();
            let r = S::splat(*scale);
            for (x, y) in x[..whole].chunks_exact(S::LANES).zip(y.chunks_exact_mut(S::LANES)) {
                (S::load(x) * r).store(y);
            }
            (tail * r).store_partial(&mut y[whole..]);
        }
    }

    fn gradient<S>(x: &[f32], dy: &[f32], scale: &[f32], dx: &mut [f32]) {
        let width = x.len() / scale.len();
        let whole = width - width % S::LANES;
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(scale);
        for (((x, dy), &scale), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let (x_tail, dy_tail) = (S::load_partial(&x[whole..]), S::load_partial(&dy[whole..]));
            let mut dot = x_tail * dy_tail;
            for (x, dy) in x[..whole].chunks_exact(S::LANES).zip(dy.chunks_exact(S::LANES)) {
                dot = S::load(x).mul_add(S::load(dy), dot);
            }
            let (r, shrink) = (S::splat(scale), S::splat(-dot.sum() * scale * scale));
            for i in (0..whole).step_by(S::LANES) {
                (S::load(&x[i..]).mul_add(shrink, S::load(&dy[i..])) * r).store(&mut dx[i..]);
            }
            (x_tail.mul_add(shrink, dy_tail) * r).store_partial(&mut dx[whole..]);
        }
    }
}
