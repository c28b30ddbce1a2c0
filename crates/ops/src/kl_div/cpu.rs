//! One task a row: a pass for the two maxima, a pass for the sums; the second finds the row in cache.

use super::Grad;
use alluvium_core::cpu::simd::F32s;
use alluvium_core::cpu::simd::math::exp;
use alluvium_core::cpu::{Cpu, Isa};
use alluvium_core::{DType, Dims, Result, Tensor};
use rayon::prelude::*;

/// Words that are summed in f32 before their sum joins an f64 one.
const BLOCK: usize = 4_096;

pub(super) fn forward(cpu: &Cpu, logits: &Tensor, teacher: &Tensor, dims: &Dims) -> Result<(Tensor, Tensor)> {
    let (count, words, isa) = (dims['R'], dims['V'], cpu.isa());
    let (s, t) = (cpu.read(logits)?, cpu.read(teacher)?);
    let mut rows = cpu.buffer::<f32>(3 * count)?;
    let mut losses = vec![0.0f64; count];
    cpu.run(|| {
        let tasks = s.par_chunks_exact(words).zip(t.par_chunks_exact(words));
        tasks.zip(rows.par_chunks_exact_mut(3)).zip(&mut losses).with_min_len(cpu.grain(count, 24 * words)).for_each(
            |(((s, t), row), loss)| {
                let lse;
                (lse, *loss) = divergence(isa, s, t);
                row.copy_from_slice(&[lse[0] as f32, lse[1] as f32, *loss as f32]);
            },
        );
    });
    let loss = Tensor::full([], (losses.iter().sum::<f64>() / count as f64) as f32, logits.device())?;
    Ok((loss, cpu.tensor(rows, [count, 3], DType::F32)?))
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: f32, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { logits, teacher, rows } = saved;
    let (s, t, rows) = (cpu.read(logits)?, cpu.read(teacher)?, cpu.read(rows)?);
    let (isa, words, count) = (cpu.isa(), s.len() / (rows.len() / 3), rows.len() / 3);
    let by = dy / count as f32;
    let gradient = |of: &Tensor, kernel: Kernel| -> Result<Option<Tensor>> {
        let mut out = cpu.buffer::<f32>(s.len())?;
        cpu.run(|| {
            let tasks = out.par_chunks_exact_mut(words).zip(s.par_chunks_exact(words)).zip(t.par_chunks_exact(words));
            tasks.zip(rows.par_chunks_exact(3)).with_min_len(cpu.grain(count, 24 * words)).for_each(
                |(((out, s), t), row)| kernel(isa, KlRow { s, t, lse: [row[0], row[1]], kl: row[2] }, by, out),
            );
        });
        Ok(Some(cpu.tensor(out, of.shape(), of.dtype())?))
    };
    Ok([
        if need[0] { gradient(logits, to_logits)? } else { None },
        if need[1] { gradient(teacher, to_teacher)? } else { None },
    ])
}

type Kernel = fn(Isa, KlRow<'_>, f32, &mut [f32]);

/// A row of both, and what the forward pass found.
struct KlRow<'a> {
    s: &'a [f32],
    t: &'a [f32],
    lse: [f32; 2],
    kl: f32,
}

/// log Σ exp of both rows, and how far they are apart.
fn divergence(isa: Isa, s: &[f32], t: &[f32]) -> ([f64; 2], f64) {
    let max = [largest(isa, s), largest(isa, t)];
    let mut sums = [0.0; 3];
    for (s, t) in s.chunks(BLOCK).zip(t.chunks(BLOCK)) {
        let parts = sums_of(isa, s, t, max);
        sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += f64::from(part));
    }
    let [student, teacher, mixed] = sums;
    let logs = [student.ln(), teacher.ln()];
    let lse = [f64::from(max[0]) + logs[0], f64::from(max[1]) + logs[1]];
    (lse, mixed / teacher - (logs[1] - logs[0]))
}

/// The difference of two logits; a token that neither takes is no difference, where −∞ − −∞ would be NaN.
#[inline(always)]
fn apart<S: F32s>(t: S, s: S) -> S {
    let least = S::splat(f32::MIN);
    t.max(least) - s.max(least)
}

alluvium_core::simd! {
    fn largest<S>(x: &[f32]) -> f32 {
        let whole = x.chunks_exact(S::LANES);
        let rest = whole.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut max = S::splat(rest);
        for x in whole {
            max = S::load(x).max(max);
        }
        max.max_lane()
    }

    /// `Σ exp(s')`, `Σ exp(t')` and `Σ exp(t')·(t' − s')`, where `'` is minus the row's maximum.
    fn sums_of<S>(s: &[f32], t: &[f32], max: [f32; 2]) -> [f32; 3] {
        let mut sums = [S::splat(0.0); 3];
        let max = max.map(S::splat);
        let whole = s.len() - s.len() % S::LANES;
        // lanes past the end are −∞ and weigh nothing
        let mut tails = [[f32::NEG_INFINITY; 16]; 2];
        tails[0][..s.len() - whole].copy_from_slice(&s[whole..]);
        tails[1][..s.len() - whole].copy_from_slice(&t[whole..]);
        let pairs = s[..whole].chunks_exact(S::LANES).zip(t[..whole].chunks_exact(S::LANES));
        for (s, t) in pairs.chain([(&tails[0][..S::LANES], &tails[1][..S::LANES])]) {
            let (s, t) = (S::load(s) - max[0], S::load(t) - max[1]);
            let weight = exp(t);
            sums[0] += exp(s);
            sums[1] += weight;
            sums[2] = weight.mul_add(apart(t, s), sums[2]);
        }
        sums.map(S::sum)
    }

    fn to_logits<S>(row: KlRow<'_>, by: f32, out: &mut [f32]) {
        let (lse, by) = (row.lse.map(S::splat), S::splat(by));
        for ((s, t), out) in row.s.chunks(S::LANES).zip(row.t.chunks(S::LANES)).zip(out.chunks_mut(S::LANES)) {
            let (s, t) = (S::load_partial(s) - lse[0], S::load_partial(t) - lse[1]);
            (by * (exp(s) - exp(t))).store_partial(out);
        }
    }

    fn to_teacher<S>(row: KlRow<'_>, by: f32, out: &mut [f32]) {
        let (lse, by, kl) = (row.lse.map(S::splat), S::splat(by), S::splat(row.kl));
        for ((s, t), out) in row.s.chunks(S::LANES).zip(row.t.chunks(S::LANES)).zip(out.chunks_mut(S::LANES)) {
            let (s, t) = (S::load_partial(s) - lse[0], S::load_partial(t) - lse[1]);
            (by * exp(t) * (apart(t, s) - kl)).store_partial(out);
        }
    }
}
