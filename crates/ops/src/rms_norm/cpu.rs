//! RMSNorm on the CPU: rows go to threads, and a row stays in cache between its two passes.

use super::Grad;
use crate::common::rows::{self, RowBlock};
use crate::common::stored::by_storage;
use crate::common::writer::{Target, WriteBlock};
use alluvium_core::cpu::{Cpu, prefetch};
use alluvium_core::{DType, Dims, Result, Tensor};

pub(crate) fn forward(cpu: &Cpu, x: &Tensor, w: &Tensor, eps: f32, dims: &Dims) -> Result<(Tensor, Tensor)> {
    let (rows, width, isa, ws) = (dims['R'], dims['D'], cpu.isa(), cpu.read(w)?);
    let mut rstd = cpu.buffer(rows)?;
    let y = by_storage!(x.dtype(), T => {
        let mut y = cpu.buffer::<T>(x.elements())?;
        rows::map(cpu, width, x.slice::<T>()?, (Target::new(&mut y), &mut rstd), |x, rstd, y| {
            rows::scales(isa, x, 1.0 / width as f32, eps, rstd);
            for RowBlock { columns, elements } in rows::pieces(width, x.len()) {
                y.write(elements.len(), |y| normalize(isa, &x[elements], &ws[columns], (rstd, x.len()), y));
            }
        });
        cpu.wrap(y, x.shape())?
    });
    Ok((y, cpu.tensor(rstd, [rows], DType::F32)?))
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { x, w, rstd, .. } = saved;
    let (ws, rs, isa) = (cpu.read(w)?, cpu.read(rstd)?, cpu.isa());
    let width = ws.len();
    if !need[0] {
        let dw = by_storage!(x.dtype(), T => {
            let from = [x.slice::<T>()?, dy.slice::<T>()?];
            rows::sum(cpu, width, from, &rs, |[x, dy], rstd, dw| {
                for RowBlock { columns, elements } in rows::pieces(width, x.len()) {
                    let (x, dy, w) = (&x[elements.clone()], &dy[elements], &mut dw[columns]);
                    dw_only(isa, [x, dy, rstd], w);
                }
            })?
        });
        return Ok([None, Some(cpu.tensor(dw, w.shape(), saved.dw_dtype)?)]);
    }
    let sums = if need[1] { width } else { 0 };
    let (dx, dw) = by_storage!(x.dtype(), T => {
        let mut dx = cpu.buffer::<T>(x.elements())?;
        let from = [x.slice::<T>()?, dy.slice::<T>()?];
        let dw = rows::map_and_sum(cpu, [width, sums], from, (&rs, Target::new(&mut dx)), |[x, dy], rstd, dx, dw| {
            let mut shrink = [0.0; rows::MOST];
            let ahead = x.len();
            dots(isa, [x, dy, &ws], rstd, &mut shrink);
            for RowBlock { columns, elements } in rows::pieces(width, x.len()) {
                let (x, dy, w) = (&x[elements.clone()], &dy[elements.clone()], &ws[columns.clone()]);
                let from = NormRows { x, dy, w, rstd, shrink: &shrink, ahead };
                if need[1] {
                    dx.write(elements.len(), |dx| dx_and_dw(isa, from, dx, &mut dw[columns]));
                } else {
                    dx.write(elements.len(), |dx| dx_only(isa, from, dx));
                }
            }
        })?;
        (cpu.wrap(dx, x.shape())?, dw)
    });
    let dw = need[1].then(|| cpu.tensor(dw, w.shape(), saved.dw_dtype)).transpose()?;
    Ok([Some(dx), dw])
}

/// Rows of a block for the backward pass.
struct NormRows<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    w: &'a [f32],
    rstd: &'a [f32],
    /// `r² · mean(dy·w·x)` of each row.
    shrink: &'a [f32],
    /// Prefetch distance: the next rows.
    ahead: usize,
}

alluvium_core::simd! {
    /// `y = x · rstd · w`
    fn normalize<S>(x: &[f32], w: &[f32], rows: (&[f32], usize), y: WriteBlock<'_>) {
        // `ahead` is the prefetch distance: the next rows
        let ((rstd, ahead), WriteBlock { to: y, stores, .. }) = (rows, y);
        let width = w.len();
        let whole = width - width % S::LANES;
        for ((x, y), &r) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(rstd) {
            let r = S::splat(r);
            for i in (0..whole).step_by(S::LANES) {
                prefetch(&x[i..], ahead);
                (S::load(&x[i..]) * r * S::load(&w[i..])).put(&mut y[i..], stores);
            }
            (S::load_partial(&x[whole..]) * r * S::load_partial(&w[whole..])).store_partial(&mut y[whole..]);
        }
    }

    /// `r² · mean(dy·w·x)` of each row.
    fn dots<S>(from: [&[f32]; 3], rstd: &[f32], shrink: &mut [f32]) {
        let [x, dy, w] = from;
        let width = w.len();
        let whole = width - width % S::LANES;
        for (((x, dy), &r), shrink) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(rstd).zip(shrink) {
            let mut dot = S::load_partial(&x[whole..]) * S::load_partial(&dy[whole..]) * S::load_partial(&w[whole..]);
            for i in (0..whole).step_by(S::LANES) {
                dot = (S::load(&dy[i..]) * S::load(&w[i..])).mul_add(S::load(&x[i..]), dot);
            }
            *shrink = dot.sum() / width as f32 * r * r;
        }
    }

    /// Adds the contribution of these rows to `dw`.
    fn dw_only<S>(from: [&[f32]; 3], dw: &mut [f32]) {
        let ([x, dy, rstd], width) = (from, dw.len());
        let whole = width - width % S::LANES;
        for ((x, dy), &r) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(rstd) {
            let r = S::splat(r);
            for i in (0..whole).step_by(S::LANES) {
                (S::load(&dy[i..]) * S::load(&x[i..])).mul_add(r, S::load(&dw[i..])).store(&mut dw[i..]);
            }
            let (x, dy) = (S::load_partial(&x[whole..]), S::load_partial(&dy[whole..]));
            (dy * x).mul_add(r, S::load_partial(&dw[whole..])).store_partial(&mut dw[whole..]);
        }
    }

    /// Writes `dx` of these rows.
    fn dx_only<S>(from: NormRows<'_>, dx: WriteBlock<'_>) {
        let WriteBlock { to: dx, stores, .. } = dx;
        let width = from.w.len();
        let whole = width - width % S::LANES;
        let rows = from.x.chunks_exact(width).zip(from.dy.chunks_exact(width)).zip(from.rstd.iter().zip(from.shrink));
        for (((x, dy), (&r, &shrink)), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let (r, shrink) = (S::splat(r), S::splat(shrink));
            for i in (0..whole).step_by(S::LANES) {
                prefetch(&x[i..], from.ahead);
                prefetch(&dy[i..], from.ahead);
                let (x, dy, w) = (S::load(&x[i..]), S::load(&dy[i..]), S::load(&from.w[i..]));
                (r * (dy * w - x * shrink)).put(&mut dx[i..], stores);
            }
            let (x, dy) = (S::load_partial(&x[whole..]), S::load_partial(&dy[whole..]));
            let w = S::load_partial(&from.w[whole..]);
            (r * (dy * w - x * shrink)).store_partial(&mut dx[whole..]);
        }
    }

    /// Writes `dx` of these rows and adds their contribution to `dw`.
    fn dx_and_dw<S>(from: NormRows<'_>, dx: WriteBlock<'_>, dw: &mut [f32]) {
        let WriteBlock { to: dx, stores, .. } = dx;
        let width = from.w.len();
        let whole = width - width % S::LANES;
        let rows = from.x.chunks_exact(width).zip(from.dy.chunks_exact(width)).zip(from.rstd.iter().zip(from.shrink));
        for (((x, dy), (&r, &shrink)), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let (r, shrink) = (S::splat(r), S::splat(shrink));
            for i in (0..whole).step_by(S::LANES) {
                prefetch(&x[i..], from.ahead);
                prefetch(&dy[i..], from.ahead);
                let (x, dy, w) = (S::load(&x[i..]), S::load(&dy[i..]), S::load(&from.w[i..]));
                (r * (dy * w - x * shrink)).put(&mut dx[i..], stores);
                (dy * x).mul_add(r, S::load(&dw[i..])).store(&mut dw[i..]);
            }
            let (x, dy) = (S::load_partial(&x[whole..]), S::load_partial(&dy[whole..]));
            let w = S::load_partial(&from.w[whole..]);
            (r * (dy * w - x * shrink)).store_partial(&mut dx[whole..]);
            (dy * x).mul_add(r, S::load_partial(&dw[whole..])).store_partial(&mut dw[whole..]);
        }
    }
}
