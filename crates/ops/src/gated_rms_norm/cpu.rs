//! Threads over rows; each row is read once from memory and stays in cache for its second pass.

use super::Grad;
use crate::common::partial_sums;
use alluvium_core::cpu::Cpu;
use alluvium_core::cpu::simd::math;
use alluvium_core::{DType, Dims, Result, Tensor};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, [x, z, w]: [&Tensor; 3], eps: f32, dims: &Dims) -> Result<(Tensor, Tensor)> {
    let (rows, width, isa) = (dims['R'], dims['D'], cpu.isa());
    let (xs, zs, ws) = (cpu.read(x)?, cpu.read(z)?, cpu.read(w)?);
    let (mut y, mut rstd) = (cpu.buffer(xs.len())?, cpu.buffer(rows)?);
    let grain = cpu.grain(rows, 4 * width);
    cpu.run(|| {
        y.par_chunks_mut(grain * width)
            .zip(xs.par_chunks(grain * width))
            .zip(zs.par_chunks(grain * width))
            .zip(rstd.par_chunks_mut(grain))
            .for_each(|(((y, x), z), rstd)| normalize(isa, [x, z, &ws], eps, y, rstd));
    });
    Ok((cpu.tensor(y, x.shape(), x.dtype())?, cpu.tensor(rstd, [rows], DType::F32)?))
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    let Grad { x, z, w, rstd, dw_dtype } = saved;
    let (xs, zs, ws, rs, dys) = (cpu.read(x)?, cpu.read(z)?, cpu.read(w)?, cpu.read(rstd)?, cpu.read(dy)?);
    let (isa, width) = (cpu.isa(), ws.len());
    let room = |i: usize| cpu.buffer(if need[i] { xs.len() } else { 0 });
    let (mut dx, mut dz) = (room(0)?, room(1)?);
    let sums = if need[2] { width } else { 0 };
    let dw = partial_sums(cpu, rs.len(), sums, [&mut dx[..], &mut dz[..]], |rows, [dx, dz], dw| {
        let span = rows.start * width..rows.end * width;
        let from = GatedRows { x: &xs[span.clone()], z: &zs[span.clone()], w: &ws, rstd: &rs[rows], dy: &dys[span] };
        let to = [dx, dz, dw];
        match need {
            [true, true, true] => gradient(isa, Need::<true, true, true>, from, to),
            [true, true, false] => gradient(isa, Need::<true, true, false>, from, to),
            [true, false, true] => gradient(isa, Need::<true, false, true>, from, to),
            [true, false, false] => gradient(isa, Need::<true, false, false>, from, to),
            [false, true, true] => gradient(isa, Need::<false, true, true>, from, to),
            [false, true, false] => gradient(isa, Need::<false, true, false>, from, to),
            [false, false, _] => gradient(isa, Need::<false, false, true>, from, to),
        }
    })?;
    let like = |need: bool, d, x: &Tensor, dtype| need.then(|| cpu.tensor(d, x.shape(), dtype)).transpose();
    Ok([like(need[0], dx, x, x.dtype())?, like(need[1], dz, z, z.dtype())?, like(need[2], dw, w, *dw_dtype)?])
}

struct GatedRows<'a> {
    x: &'a [f32],
    z: &'a [f32],
    w: &'a [f32],
    rstd: &'a [f32],
    dy: &'a [f32],
}

/// Which of the gradients to `x`, `z` and `w` a kernel computes.
trait Needed: Copy {
    const X: bool;
    const Z: bool;
    const W: bool;
}

#[derive(Clone, Copy)]
struct Need<const X: bool, const Z: bool, const W: bool>;

impl<const X: bool, const Z: bool, const W: bool> Needed for Need<X, Z, W> {
    const X: bool = X;
    const Z: bool = Z;
    const W: bool = W;
}

alluvium_core::simd! {
    fn normalize<S>(from: [&[f32]; 3], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
        let [x, z, w] = from;
        let width = w.len();
        let whole = width - width % S::LANES;
        for (((x, z), y), rstd) in
            x.chunks_exact(width).zip(z.chunks_exact(width)).zip(y.chunks_exact_mut(width)).zip(rstd)
        {
            let tail = S::load_partial(&x[whole..]);
            let mut squares = tail * tail;
            for x in x[..whole].chunks_exact(S::LANES) {
                let x = S::load(x);
                squares = x.mul_add(x, squares);
            }
            *rstd = (squares.sum() / width as f32 + eps).sqrt().recip();
            let r = S::splat(*rstd);
            for i in (0..whole).step_by(S::LANES) {
                (S::load(&x[i..]) * r * S::load(&w[i..]) * math::silu(S::load(&z[i..]))).store(&mut y[i..]);
            }
            if whole < width {
                let gate = math::silu(S::load_partial(&z[whole..]));
                (tail * r * S::load_partial(&w[whole..]) * gate).store_partial(&mut y[whole..]);
            }
        }
    }

    /// Rows of `dx` and `dz`, and what they add to `dw`: those that are needed.
    fn gradient<S, N: Needed>(_need: N, from: GatedRows<'_>, to: [&mut [f32]; 3]) {
        let [dx, dz, dw] = to;
        let width = from.w.len();
        let whole = width - width % S::LANES;
        let one = S::splat(1.0);
        let (x, z, dy) = (from.x.chunks_exact(width), from.z.chunks_exact(width), from.dy.chunks_exact(width));
        for (row, (((x, z), dy), &r)) in x.zip(z).zip(dy).zip(from.rstd).enumerate() {
            // a gradient that is not needed has no memory
            let span = row * width..(row + 1) * width;
            let dx = if N::X { &mut dx[span.clone()] } else { &mut [][..] };
            let dz = if N::Z { &mut dz[span] } else { &mut [][..] };
            let (mut dot, r) = (S::splat(0.0), S::splat(r));
            // the first pass leaves u in dx
            macro_rules! gate {
                ($i:ident, $load:ident, $store:ident) => {{
                    let i = $i..;
                    let (x, z, dy) = (S::$load(&x[i.clone()]), S::$load(&z[i.clone()]), S::$load(&dy[i.clone()]));
                    let w = S::$load(&from.w[i.clone()]);
                    // the bounds keep infinities from meeting zeros
                    let z = S::splat(1e30).min(S::splat(-200.0).max(z));
                    let s = math::sigmoid(z);
                    let gated = dy * z * s;
                    let xr = x * r;
                    if N::Z {
                        let derivative = s * (z * (one - s) + one);
                        (dy * xr * w * derivative).$store(&mut dz[i.clone()]);
                    }
                    if N::W {
                        gated.mul_add(xr, S::$load(&dw[i.clone()])).$store(&mut dw[i.clone()]);
                    }
                    if N::X {
                        let u = gated * w;
                        dot = u.mul_add(x, dot);
                        u.$store(&mut dx[i]);
                    }
                }};
            }
            for i in (0..whole).step_by(S::LANES) {
                gate!(i, load, store);
            }
            if whole < width {
                gate!(whole, load_partial, store_partial);
            }
            if !N::X {
                continue;
            }
            let shrink = S::splat(-dot.sum() / width as f32) * r * r;
            for (x, dx) in x[..whole].chunks_exact(S::LANES).zip(dx.chunks_exact_mut(S::LANES)) {
                (S::load(x).mul_add(shrink, S::load(dx)) * r).store(dx);
            }
            let (x, part) = (S::load_partial(&x[whole..]), S::load_partial(&dx[whole..]));
            (x.mul_add(shrink, part) * r).store_partial(&mut dx[whole..]);
        }
    }
}
