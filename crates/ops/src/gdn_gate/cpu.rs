//! Threads over rows. A layer has few heads, so this is small beside everything else it does.

use super::{Gates, Grad};
use crate::common::partial_sums;
use alluvium_core::cpu::Cpu;
use alluvium_core::{DType, Result, Tensor};
use rayon::prelude::*;

fn softplus(x: f32) -> f32 {
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

pub(super) fn backward(cpu: &Cpu, saved: &Grad, [dg, dbeta]: [Option<&Tensor>; 2]) -> Result<[Option<Tensor>; 4]> {
    let Grad { a, a_log, dt_bias, g, beta } = saved;
    let (xs, rates, bias) = (cpu.read(a)?, cpu.read(a_log)?, cpu.read(dt_bias)?);
    let (gs, betas, heads) = (cpu.read(g)?, cpu.read(beta)?, rates.len());
    let seeds = |x: Option<&Tensor>| -> Result<Vec<f32>> {
        x.map_or_else(|| Ok(vec![0.0; xs.len()]), |x| Ok(cpu.read(x)?.to_vec()))
    };
    let (dg, dbeta) = (seeds(dg)?, seeds(dbeta)?);
    let (mut da, mut db) = (cpu.buffer::<f32>(xs.len())?, cpu.buffer::<f32>(xs.len())?);
    let sums = partial_sums(cpu, xs.len() / heads, 2 * heads, [&mut da[..], &mut db[..]], |rows, [da, db], sums| {
        let (d_log, d_bias) = sums.split_at_mut(heads);
        for (at, i) in (rows.start * heads..rows.end * heads).enumerate() {
            let head = i % heads;
            da[at] = -rates[head].exp() * sigmoid(xs[i] + bias[head]) * dg[i];
            db[at] = betas[i] * (1.0 - betas[i]) * dbeta[i];
            d_log[head] += gs[i] * dg[i];
            d_bias[head] += da[at];
        }
    })?;
    let half = |from: usize| Tensor::from_slice(&sums[from..from + heads], [heads], a.device());
    let (d_log, d_bias) = (half(0)?, half(heads)?);
    let like = |data, x: &Tensor| cpu.tensor(data, x.shape(), x.dtype()).map(Some);
    Ok([like(da, a)?, like(db, a)?, Some(d_log), Some(d_bias)])
}
