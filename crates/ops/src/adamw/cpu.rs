//! One pass: four elements are read for each weight and three are written.

use super::{AdamW, AdamWState};
use alluvium_core::cpu::simd::F32s;
use alluvium_core::cpu::{Cpu, Floats};
use alluvium_core::{DType, Error, Result, Tensor};
use rayon::prelude::*;

pub(super) fn step(cpu: &Cpu, state: AdamWState, grad: &Tensor, settings: &AdamW) -> Result<AdamWState> {
    let stored = state.p.dtype();
    let (mut p, mut m, mut v) = (unshared(cpu, state.p)?, unshared(cpu, state.m)?, unshared(cpu, state.v)?);
    let grads = cpu.read(grad)?;
    let (isa, factors) = (cpu.isa(), Factors::new(settings));
    let (ps, ms, vs) = (floats(&mut p)?, floats(&mut m)?, floats(&mut v)?);
    let grain = cpu.grain(grads.len(), 1);
    cpu.run(|| {
        ps.par_chunks_mut(grain)
            .zip(ms.par_chunks_mut(grain))
            .zip(vs.par_chunks_mut(grain))
            .zip(grads.par_chunks(grain))
            .for_each(|(((p, m), v), g)| update(isa, &factors, g, Slices { p, m, v }));
    });
    if stored != DType::F32 {
        let mut wide = cpu.buffer(p.elements())?;
        wide.copy_from_slice(p.slice()?);
        p = cpu.tensor(wide, p.shape(), stored)?;
    }
    Ok(AdamWState { p, m, v })
}

/// The tensor in f32 memory that is not shared: the tensor itself, or a copy.
fn unshared(cpu: &Cpu, mut x: Tensor) -> Result<Tensor> {
    if x.slice_mut::<f32>().is_some() {
        return Ok(x);
    }
    let copy = match cpu.read(&x)? {
        Floats::Widened(wide) => wide,
        Floats::Own(shared) => {
            let mut copy = cpu.buffer(shared.len())?;
            copy.copy_from_slice(shared);
            copy
        }
    };
    cpu.tensor(copy, x.shape(), DType::F32)
}

fn floats(x: &mut Tensor) -> Result<&mut [f32]> {
    x.slice_mut().ok_or_else(|| Error::value(super::CONTRACT.op, "memory that was just made is shared"))
}

/// The factors of a step, rounded once from f64.
pub(super) struct Factors {
    /// β₁ and β₂.
    pub(super) beta: [f32; 2],
    /// 1 − β₁ and 1 − β₂.
    pub(super) gradient_share: [f32; 2],
    /// 1 − lr·decay.
    pub(super) weight_factor: f32,
    /// lr / (1 − β₁ᵗ).
    pub(super) step_size: f32,
    /// 1 / √(1 − β₂ᵗ).
    pub(super) root_factor: f32,
    pub(super) eps: f32,
}

impl Factors {
    pub(super) fn new(settings: &AdamW) -> Self {
        let AdamW { learning_rate, beta1, beta2, eps, weight_decay, .. } = *settings;
        let [lr, decay, beta1, beta2] = [learning_rate, weight_decay, beta1, beta2].map(f64::from);
        let unbiased = |beta| settings.bias(beta);
        Factors {
            beta: [beta1 as f32, beta2 as f32],
            gradient_share: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
            weight_factor: (1.0 - lr * decay) as f32,
            step_size: (lr / unbiased(beta1)) as f32,
            root_factor: unbiased(beta2).sqrt().recip() as f32,
            eps,
        }
    }
}

struct Slices<'a> {
    p: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

#[inline(always)]
fn updated<S: F32s>(by: &Factors, g: S, [p, m, v]: [S; 3]) -> [S; 3] {
    let m = S::splat(by.beta[0]).mul_add(m, S::splat(by.gradient_share[0]) * g);
    let v = S::splat(by.beta[1]).mul_add(v, S::splat(by.gradient_share[1]) * g * g);
    let denominator = v.sqrt().mul_add(S::splat(by.root_factor), S::splat(by.eps));
    [p * S::splat(by.weight_factor) - S::splat(by.step_size) * m / denominator, m, v]
}

alluvium_core::simd! {
    fn update<S>(by: &Factors, grad: &[f32], state: Slices<'_>) {
        let Slices { p, m, v } = state;
        let whole = grad.len() - grad.len() % S::LANES;
        let chunks = p[..whole].chunks_exact_mut(S::LANES).zip(m[..whole].chunks_exact_mut(S::LANES));
        let chunks = chunks.zip(v[..whole].chunks_exact_mut(S::LANES)).zip(grad[..whole].chunks_exact(S::LANES));
        for (((p, m), v), g) in chunks {
            let [new_p, new_m, new_v] = updated(by, S::load(g), [S::load(p), S::load(m), S::load(v)]);
            new_p.store(p);
            new_m.store(m);
            new_v.store(v);
        }
        let (g, p, m, v) = (&grad[whole..], &mut p[whole..], &mut m[whole..], &mut v[whole..]);
        let state = [S::load_partial(p), S::load_partial(m), S::load_partial(v)];
        let [new_p, new_m, new_v] = updated(by, S::load_partial(g), state);
        new_p.store_partial(p);
        new_m.store_partial(m);
        new_v.store_partial(v);
    }
}
