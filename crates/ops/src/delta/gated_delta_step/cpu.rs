//! Bound by reading and writing the state: each row of it is touched once, all of a row's work while it is in cache.

use super::{GatedDeltaOutput, GatedDeltaStepArgs};
use alluvium_core::cpu::Cpu;
use alluvium_core::cpu::simd::F32s;
use alluvium_core::{DType, Dims, Result};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, args: GatedDeltaStepArgs<'_>, dims: &Dims) -> Result<GatedDeltaOutput> {
    let GatedDeltaStepArgs { q, k, v, g, beta, mut state, scale } = args;
    let (k_heads, v_heads, width, values) = (dims['H'], dims['G'], dims['K'], dims['V']);
    let (qs, ks, vs, gs, betas) = (cpu.read(q)?, cpu.read(k)?, cpu.read(v)?, cpu.read(g)?, cpu.read(beta)?);
    let mut o = cpu.buffer::<f32>(vs.len())?;
    let isa = cpu.isa();
    let head = |gate: usize| {
        let key = (gate / v_heads * k_heads + gate % v_heads / (v_heads / k_heads)) * width;
        let (q, k) = (&qs[key..key + width], &ks[key..key + width]);
        StepHead { q, k, decay: gs[gate].exp(), beta: betas[gate], scale }
    };
    let grain = cpu.grain(vs.len(), 4 * width).next_multiple_of(TALL);
    if state.slice_mut::<f32>().is_none() {
        let mut copy = cpu.buffer::<f32>(state.elements())?;
        copy.copy_from_slice(state.slice::<f32>()?);
        state = cpu.tensor(copy, state.shape(), DType::F32)?;
    }
    if let Some(rows) = state.slice_mut::<f32>() {
        cpu.run(|| {
            rows.par_chunks_mut(grain * width).zip(o.par_chunks_mut(grain)).enumerate().for_each(
                |(part, (rows, o))| {
                    let (mut at, end) = (part * grain, part * grain + o.len());
                    let (mut rows, mut o) = (rows, o);
                    while at < end {
                        let next = end.min((at / values + 1) * values);
                        let (some, o_some);
                        (some, rows) = rows.split_at_mut((next - at) * width);
                        (o_some, o) = o.split_at_mut(next - at);
                        step(isa, &head(at / values), &vs[at..next], some, o_some);
                        at = next;
                    }
                },
            );
        });
    }
    Ok(GatedDeltaOutput { o: cpu.tensor(o, v.shape(), v.dtype())?, final_state: state })
}

/// What the rows of a head's state have in common.
pub(in crate::delta) struct StepHead<'a> {
    pub(in crate::delta) q: &'a [f32],
    pub(in crate::delta) k: &'a [f32],
    pub(in crate::delta) decay: f32,
    pub(in crate::delta) beta: f32,
    pub(in crate::delta) scale: f32,
}

/// Rows that are updated at once: they share the loads of the key and the query, and their sums do not wait for each
/// other.
const TALL: usize = 4;

alluvium_core::simd! {
    /// Updates rows of a head's state with their values `v`; writes their outputs. The bits of a row do not depend on
    /// the rows beside it.
    pub(in crate::delta) fn step<S>(head: &StepHead<'_>, v: &[f32], state: &mut [f32], out: &mut [f32]) {
        let width = head.k.len();
        assert!(head.q.len() == width && state.len() == v.len() * width && out.len() == v.len());
        let whole = v.len() - v.len() % TALL;
        for at in (0..whole).step_by(TALL) {
            let rows = &mut state[at * width..(at + TALL) * width];
            let sums = update::<S, TALL>(head, &v[at..at + TALL], rows);
            out[at..at + TALL].copy_from_slice(&S::sums(sums));
        }
        for at in whole..v.len() {
            let [sum] = update::<S, 1>(head, &v[at..at + 1], &mut state[at * width..(at + 1) * width]);
            out[at] = sum.sum();
        }
        out.iter_mut().for_each(|out| *out *= head.scale);
    }
}

/// Updates `N` rows; returns the products of the new ones with the query, to be summed.
#[inline(always)]
fn update<S: F32s, const N: usize>(head: &StepHead<'_>, v: &[f32], state: &mut [f32]) -> [S; N] {
    let (width, pair) = (head.k.len(), 2 * S::LANES);
    let (whole, decay) = (width - width % pair, S::splat(head.decay));
    assert!(v.len() == N && state.len() == N * width && head.q.len() == width);
    let mut sums = [[S::splat(0.0); 2]; N];
    for i in (0..whole).step_by(pair) {
        for half in 0..2 {
            let at = i + half * S::LANES;
            // SAFETY: a pair of registers from `i` on lies inside the key and inside each of the `N` rows.
            let k = unsafe { S::load_ptr(head.k.as_ptr().add(at)) };
            for (n, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as for the key.
                let s = unsafe { S::load_ptr(state.as_ptr().add(n * width + at)) };
                sums[half] = (s * decay).mul_add(k, sums[half]);
            }
        }
    }
    for (half, at) in (whole..width).step_by(S::LANES).enumerate() {
        let end = width.min(at + S::LANES);
        let k = S::load_partial(&head.k[at..end]);
        for (n, sums) in sums.iter_mut().enumerate() {
            sums[half] = (S::load_partial(&state[n * width + at..n * width + end]) * decay).mul_add(k, sums[half]);
        }
    }
    let mut writes = [S::splat(0.0); N];
    for ((write, sums), v) in writes.iter_mut().zip(&sums).zip(v) {
        *write = S::splat(head.beta * (v - (sums[0] + sums[1]).sum()));
    }
    let mut sums = [[S::splat(0.0); 2]; N];
    for i in (0..whole).step_by(pair) {
        for half in 0..2 {
            let at = i + half * S::LANES;
            // SAFETY: as above.
            let (k, q) = unsafe { (S::load_ptr(head.k.as_ptr().add(at)), S::load_ptr(head.q.as_ptr().add(at))) };
            for (n, (sums, write)) in sums.iter_mut().zip(&writes).enumerate() {
                // SAFETY: as above, and the slice is borrowed for writing.
                unsafe {
                    let to = state.as_mut_ptr().add(n * width + at);
                    let new = k.mul_add(*write, S::load_ptr(to) * decay);
                    new.store_ptr(to);
                    sums[half] = new.mul_add(q, sums[half]);
                }
            }
        }
    }
    for (half, at) in (whole..width).step_by(S::LANES).enumerate() {
        let end = width.min(at + S::LANES);
        let (k, q) = (S::load_partial(&head.k[at..end]), S::load_partial(&head.q[at..end]));
        for (n, (sums, write)) in sums.iter_mut().zip(&writes).enumerate() {
            let s = &mut state[n * width + at..n * width + end];
            let new = k.mul_add(*write, S::load_partial(s) * decay);
            new.store_partial(s);
            sums[half] = new.mul_add(q, sums[half]);
        }
    }
    let mut totals = [S::splat(0.0); N];
    for (total, sums) in totals.iter_mut().zip(sums) {
        *total = sums[0] + sums[1];
    }
    totals
}
