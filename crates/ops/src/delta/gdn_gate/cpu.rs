//! Threads over rows. A layer has few heads, so this is small beside everything else it does.

use super::{Gates, Grad};
use crate::common::partial_sums;
use alluvium_core::cpu::Cpu;
use alluvium_core::{DType, Result, Tensor};
use rayon::prelude::*;

/// `ln(1 + eˣ)`, without overflow.
pub(in crate::delta) fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn forward(cpu: &Cpu, [a, b, a_log, dt_bias]: [&Tensor; 4], rows: usize) -> Result<Gates> {
    let (xs, bs, rates, bias) = (cpu.read(a)?, cpu.read(b)?, cpu.read(a_log)?, cpu.read(dt_bias)?);
    let (mut g, mut beta) = (cpu.buffer::<f32>(xs.len())?, cpu.buffer::<f32>(xs.len())?);
    let heads = rates.len();
    let grain = cpu.grain(rows, 32 * heads) * heads;
    cpu.run(|| {
        let from = xs.par_chunks(grain).zip(bs.par_chunks(grain));
        g.par_chunks_mut(grain).zip(beta.par_chunks_mut(grain)).zip(from).for_each(|((g, beta), (a, b))| {
            for (i, (g, a)) in g.iter_mut().zip(a).enumerate() {
                *g = -rates[i % heads].exp() * softplus(a + bias[i % heads]);
            }
            beta.iter_mut().zip(b).for_each(|(beta, &b)| *beta = sigmoid(b));
        });
    });
    Ok(Gates { g: cpu.tensor(g, a.shape(), DType::F32)?, beta: cpu.tensor(beta, a.shape(), DType::F32)? })
}

pub(super) fn backward(
    cpu: &Cpu,
    saved: &Grad,
    [dg, dbeta]: [Option<&Tensor>; 2],
    need: [bool; 4],
) -> Result<[Option<Tensor>; 4]> {
    let Grad { a, a_log, dt_bias, g, b } = saved;
    let (xs, rates, bias) = (cpu.read(a)?, cpu.read(a_log)?, cpu.read(dt_bias)?);
    let (gs, bs, heads) = (cpu.read(g)?, cpu.read(b)?, rates.len());
    let seeds = |x: Option<&Tensor>| -> Result<Vec<f32>> {
        x.map_or_else(|| Ok(vec![0.0; xs.len()]), |x| Ok(cpu.read(x)?.to_vec()))
    };
    let (dg, dbeta) = (seeds(dg)?, seeds(dbeta)?);
    let room = |need: bool| cpu.buffer::<f32>(if need { xs.len() } else { 0 });
    let (mut da, mut db) = (room(need[0])?, room(need[1])?);
    let width = if need[2] || need[3] { 2 * heads } else { 0 };
    let sums = partial_sums(cpu, xs.len() / heads, width, [&mut da[..], &mut db[..]], |rows, [da, db], sums| {
        let (d_log, d_bias) = sums.split_at_mut(width / 2);
        for (at, i) in (rows.start * heads..rows.end * heads).enumerate() {
            let head = i % heads;
            if need[0] || need[3] {
                let d = -rates[head].exp() * sigmoid(xs[i] + bias[head]) * dg[i];
                if need[0] {
                    da[at] = d;
                }
                if need[3] {
                    d_bias[head] += d;
                }
            }
            if need[1] {
                // σ(−b) is 1 − β without the cancellation
                db[at] = sigmoid(bs[i]) * sigmoid(-bs[i]) * dbeta[i];
            }
            if need[2] {
                d_log[head] += gs[i] * dg[i];
            }
        }
    })?;
    let half = |need: bool, from: usize| {
        need.then(|| Tensor::from_slice(&sums[from..from + heads], [heads], a.device())).transpose()
    };
    let (d_log, d_bias) = (half(need[2], 0)?, half(need[3], heads)?);
    let like = |need: bool, d, x: &Tensor| need.then(|| cpu.tensor(d, x.shape(), x.dtype())).transpose();
    Ok([like(need[0], da, a)?, like(need[1], db, a)?, d_log, d_bias])
}
