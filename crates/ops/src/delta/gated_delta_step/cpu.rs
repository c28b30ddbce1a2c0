//! Bound by reading and writing the state: each row of it is touched once, all of a row's work while it is in cache.

use super::{GatedDeltaOutput, GatedDeltaStepArgs};
use alluvium_core::cpu::Cpu;
use alluvium_core::{DType, Dims, Result};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, args: GatedDeltaStepArgs<'_>, dims: &Dims) -> Result<GatedDeltaOutput> {
    let GatedDeltaStepArgs { q, k, v, g, beta, mut state, scale } = args;
    let (k_heads, v_heads, width, values) = (dims['H'], dims['G'], dims['K'], dims['V']);
    let (qs, ks, vs, gs, betas) = (cpu.read(q)?, cpu.read(k)?, cpu.read(v)?, cpu.read(g)?, cpu.read(beta)?);
    let mut o = cpu.buffer::<f32>(vs.len())?;
    let isa = cpu.isa();
    let row = |i: usize| {
        let gate = i / values;
        let key = (gate / v_heads * k_heads + gate % v_heads / (v_heads / k_heads)) * width;
        let (q, k) = (&qs[key..key + width], &ks[key..key + width]);
        StepRow { q, k, v: vs[i], decay: gs[gate].exp(), beta: betas[gate], scale }
    };
    let grain = cpu.grain(vs.len(), 4 * width);
    if state.slice_mut::<f32>().is_none() {
        let mut copy = cpu.buffer::<f32>(state.elements())?;
        copy.copy_from_slice(state.slice::<f32>()?);
        state = cpu.tensor(copy, state.shape(), DType::F32)?;
    }
    if let Some(rows) = state.slice_mut::<f32>() {
        cpu.run(|| {
            rows.par_chunks_mut(grain * width).zip(o.par_chunks_mut(grain)).enumerate().for_each(
                |(part, (rows, o))| {
                    for (i, (state, o)) in rows.chunks_exact_mut(width).zip(o).enumerate() {
                        *o = step(isa, &row(part * grain + i), state);
                    }
                },
            );
        });
    }
    Ok(GatedDeltaOutput { o: cpu.tensor(o, v.shape(), v.dtype())?, final_state: state })
}

/// The inputs of one row of a state.
pub(in crate::delta) struct StepRow<'a> {
    pub(in crate::delta) q: &'a [f32],
    pub(in crate::delta) k: &'a [f32],
    pub(in crate::delta) v: f32,
    pub(in crate::delta) decay: f32,
    pub(in crate::delta) beta: f32,
    pub(in crate::delta) scale: f32,
}

alluvium_core::simd! {
    /// Updates a row of the state; returns its output.
    pub(in crate::delta) fn step<S>(row: &StepRow<'_>, state: &mut [f32]) -> f32 {
        let decay = S::splat(row.decay);
        let mut sums = [S::splat(0.0); 2];
        for (i, (s, k)) in state.chunks(S::LANES).zip(row.k.chunks(S::LANES)).enumerate() {
            sums[i % 2] = (S::load_partial(s) * decay).mul_add(S::load_partial(k), sums[i % 2]);
        }
        let write = S::splat(row.beta * (row.v - (sums[0] + sums[1]).sum()));
        let mut sums = [S::splat(0.0); 2];
        let keys = row.k.chunks(S::LANES).zip(row.q.chunks(S::LANES));
        for (i, (s, (k, q))) in state.chunks_mut(S::LANES).zip(keys).enumerate() {
            let new = S::load_partial(k).mul_add(write, S::load_partial(s) * decay);
            new.store_partial(s);
            sums[i % 2] = new.mul_add(S::load_partial(q), sums[i % 2]);
        }
        row.scale * (sums[0] + sums[1]).sum()
    }
}
