//! Threads over rows; each row is read once from memory and stays in cache for its second pass.

use super::Grad;
use crate::common::partial_sums;
use alluvium_core::cpu::Cpu;
use alluvium_core::{DType, Dims, Result, Tensor};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, x: &Tensor, w: &Tensor, eps: f32, dims: &Dims) -> Result<(Tensor, Tensor)> {
    let (rows, width, level) = (dims['R'], dims['D'], cpu.level());
    let (xs, ws) = (cpu.read(x)?, cpu.read(w)?);
    let (mut y, mut rstd) = (cpu.buffer(xs.len())?, cpu.buffer(rows)?);
    let grain = cpu.grain(rows, width);
    cpu.run(|| {
        y.par_chunks_mut(grain * width)
            .zip(xs.par_chunks(grain * width))
            .zip(rstd.par_chunks_mut(grain))
            .for_each(|((y, x), rstd)| normalise(level, x, &ws, eps, y, rstd));
    });
    Ok((cpu.tensor(y, x.shape(), x.dtype())?, cpu.tensor(rstd, [rows], DType::F32)?))
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor, _need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { x, w, rstd } = saved;
    let (xs, ws, rs, dys) = (cpu.read(x)?, cpu.read(w)?, cpu.read(rstd)?, cpu.read(dy)?);
    let (level, width) = (cpu.level(), ws.len());
    let mut dx = cpu.buffer(xs.len())?;
    let dw = partial_sums(cpu, rs.len(), width, [&mut dx], |rows, [dx], dw| {
        let span = rows.start * width..rows.end * width;
        let from = Rows { x: &xs[span.clone()], w: &ws, rstd: &rs[rows], dy: &dys[span] };
        gradient(level, from, dx, dw);
    })?;
    Ok([Some(cpu.tensor(dx, x.shape(), x.dtype())?), Some(cpu.tensor(dw, w.shape(), w.dtype())?)])
}

struct Rows<'a> {
    x: &'a [f32],
    w: &'a [f32],
    rstd: &'a [f32],
    dy: &'a [f32],
}

alluvium_core::simd! {
    fn normalise<S>(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
        let width = w.len();
        let whole = width - width % S::LANES;
        for ((x, y), rstd) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(rstd) {
            let tail = S::load_head(&x[whole..]);
            let mut squares = tail * tail;
            for x in x[..whole].chunks_exact(S::LANES) {
                let x = S::load(x);
                squares = x.mul_add(x, squares);
            }
            let r = (squares.sum() / width as f32 + eps).sqrt().recip();
            let scale = S::splat(r);
            for i in (0..whole).step_by(S::LANES) {
                (S::load(&x[i..]) * scale * S::load(&w[i..])).store(&mut y[i..]);
            }
            (tail * scale * S::load_head(&w[whole..])).store_head(&mut y[whole..]);
            *rstd = r;
        }
    }

    /// Rows of `dx`, and what they add to `dw`.
    fn gradient<S>(from: Rows<'_>, dx: &mut [f32], dw: &mut [f32]) {
        let width = from.w.len();
        let whole = width - width % S::LANES;
        let rows = from.x.chunks_exact(width).zip(from.dy.chunks_exact(width)).zip(from.rstd);
        for (((x, dy), &r), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let (x_tail, dy_tail, w_tail) =
                (S::load_head(&x[whole..]), S::load_head(&dy[whole..]), S::load_head(&from.w[whole..]));
            let mut dot = x_tail * dy_tail * w_tail;
            for i in (0..whole).step_by(S::LANES) {
                dot = (S::load(&dy[i..]) * S::load(&from.w[i..])).mul_add(S::load(&x[i..]), dot);
            }
            let (r, shrink) = (S::splat(r), S::splat(dot.sum() / width as f32 * r * r));
            for i in (0..whole).step_by(S::LANES) {
                let (x, dy, w) = (S::load(&x[i..]), S::load(&dy[i..]), S::load(&from.w[i..]));
                (r * (dy * w - x * shrink)).store(&mut dx[i..]);
                (dy * x).mul_add(r, S::load(&dw[i..])).store(&mut dw[i..]);
            }
            (r * (dy_tail * w_tail - x_tail * shrink)).store_head(&mut dx[whole..]);
            (dy_tail * x_tail).mul_add(r, S::load_head(&dw[whole..])).store_head(&mut dw[whole..]);
        }
    }
}
