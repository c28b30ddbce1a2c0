//! Bound by reading and writing the state. A head is a task: its convolution, norms and gates are computed where its
//! state is updated, so the threads meet once.

use super::sizes::Sizes;
use super::{GatedDeltaNetStep, GatedDeltaNetStepArgs};
use crate::common::InlineVec;
use crate::delta::gated_delta_step::cpu::{StepHead, step};
use crate::delta::gdn_gate::cpu::softplus;
use alluvium_core::cpu::simd::math;
use alluvium_core::cpu::{Cpu, Isa};
use alluvium_core::{DType, Result};
use rayon::prelude::*;

/// Elements of a head's query, key and value that need no memory of the system.
const SCRATCH: usize = 768;

/// What all heads read, in f32.
struct Inputs<'a> {
    x: &'a [f32],
    window: &'a [f32],
    filter: &'a [f32],
    a_log: &'a [f32],
    dt_bias: &'a [f32],
    norm: &'a [f32],
    l2_eps: f32,
    norm_eps: f32,
    beta_scale: f32,
    scale: f32,
    sizes: Sizes,
    isa: Isa,
}

pub(super) fn forward(cpu: &Cpu, args: GatedDeltaNetStepArgs<'_>, sizes: &Sizes) -> Result<GatedDeltaNetStep> {
    let GatedDeltaNetStepArgs { x, conv_state, filter, a_log, dt_bias, norm, mut state, .. } = args;
    let &Sizes { batch, value_heads, k, v, .. } = sizes;
    let (xs, filters, norms) = (cpu.read(x)?, cpu.read(filter)?, cpu.read(norm)?);
    let (rates, biases, old) = (cpu.read(a_log)?, cpu.read(dt_bias)?, cpu.read(conv_state)?);
    let mut new = cpu.buffer::<f32>(old.len())?;
    let each = old.len() / batch;
    for ((new, old), x) in new.chunks_exact_mut(each).zip(old.chunks_exact(each)).zip(xs.chunks_exact(sizes.row)) {
        shift(sizes, x, old, new);
    }
    if state.slice_mut::<f32>().is_none() {
        let mut copy = cpu.buffer::<f32>(state.elements())?;
        copy.copy_from_slice(state.slice::<f32>()?);
        state = cpu.tensor(copy, state.shape(), DType::F32)?;
    }
    let inputs = Inputs {
        x: &xs,
        window: &old,
        filter: &filters,
        a_log: &rates,
        dt_bias: &biases,
        norm: &norms,
        l2_eps: args.l2_eps,
        norm_eps: args.norm_eps,
        beta_scale: args.beta_scale,
        scale: args.scale,
        sizes: *sizes,
        isa: cpu.isa(),
    };
    let mut y = cpu.buffer::<f32>(batch * value_heads * v)?;
    let grain = cpu.grain(batch * value_heads, 8 * k * v);
    if let Some(states) = state.slice_mut::<f32>() {
        cpu.run(|| {
            states.par_chunks_mut(grain * v * k).zip(y.par_chunks_mut(grain * v)).enumerate().for_each(
                |(part, (states, y))| {
                    let mut scratch: InlineVec<f32, SCRATCH> = InlineVec::new(2 * k + v, 0.0);
                    for (i, (state, y)) in states.chunks_exact_mut(v * k).zip(y.chunks_exact_mut(v)).enumerate() {
                        inputs.head(part * grain + i, state, y, &mut scratch);
                    }
                },
            );
        });
    }
    Ok(GatedDeltaNetStep {
        y: cpu.tensor(y, [batch, value_heads, v], x.dtype())?,
        conv_state: cpu.tensor(new, conv_state.shape(), conv_state.dtype())?,
        state,
    })
}

/// The window of a sequence without its first row, and with the token's inputs as its last.
fn shift(sizes: &Sizes, x: &[f32], old: &[f32], new: &mut [f32]) {
    let (kept, last) = new.split_at_mut(old.len() - sizes.channels);
    kept.copy_from_slice(&old[sizes.channels..]);
    for (channel, at, len) in sizes.runs() {
        last[channel..channel + len].copy_from_slice(&x[at..at + len]);
    }
}

impl Inputs<'_> {
    /// One value head of one sequence: updates its state, writes its output.
    fn head(&self, index: usize, state: &mut [f32], y: &mut [f32], scratch: &mut [f32]) {
        let Sizes { row, channels, taps, key_heads, value_heads, k, v, places, .. } = self.sizes;
        let (b, head, share) = (index / value_heads, index % value_heads, self.sizes.share());
        let (key_head, of_key) = (head / share, head % share);
        let x = &self.x[b * row..(b + 1) * row];
        let window = &self.window[b * (taps - 1) * channels..(b + 1) * (taps - 1) * channels];
        let [keys, values, gates] = places.strides.map(|stride| key_head * stride);
        let all_keys = key_heads * k;
        let (q, rest) = scratch.split_at_mut(k);
        let (key, value) = rest.split_at_mut(k);
        let parts = [
            (&mut *q, places.q + keys, key_head * k),
            (&mut *key, places.key + keys, all_keys + key_head * k),
            (&mut *value, places.value + values + of_key * v, 2 * all_keys + head * v),
        ];
        for (to, at, channel) in parts {
            convolve(self.isa, &x[at..at + to.len()], [window, self.filter], [channel, channels], to);
        }
        for part in [&mut *q, &mut *key] {
            unit(self.isa, self.l2_eps, part);
        }
        let [a, b] = [places.a, places.b].map(|first| x[first + gates + of_key]);
        let decay = (-self.a_log[head].exp() * softplus(a + self.dt_bias[head])).exp();
        let beta = self.beta_scale / (1.0 + (-b).exp());
        step(self.isa, &StepHead { q, k: key, decay, beta, scale: self.scale }, value, state, y);
        let z = places.z + values + of_key * v;
        gated_norm(self.isa, [&x[z..z + v], self.norm], self.norm_eps, y);
    }
}

alluvium_core::simd! {
    /// The convolution of the channels from `first` on, and SiLU.
    fn convolve<S>(x: &[f32], from: [&[f32]; 2], channels: [usize; 2], y: &mut [f32]) {
        let ([window, filter], [first, all]) = (from, channels);
        let taps = window.len() / all + 1;
        let filters = filter[first * taps..].chunks_exact(taps);
        for (i, ((y, x), filter)) in y.iter_mut().zip(x).zip(filters).enumerate() {
            let before = window[first + i..].iter().step_by(all);
            let sum: f32 = before.zip(filter).map(|(x, w)| x * w).sum();
            *y = x.mul_add(filter[taps - 1], sum);
        }
        for y in y.chunks_mut(S::LANES) {
            math::silu(S::load_partial(y)).store_partial(y);
        }
    }

    /// Scales a row to unit length.
    fn unit<S>(eps: f32, x: &mut [f32]) {
        let mut squares = S::splat(0.0);
        for x in x.chunks(S::LANES) {
            let x = S::load_partial(x);
            squares = x.mul_add(x, squares);
        }
        let scale = S::splat((squares.sum() + eps).sqrt().recip());
        for x in x.chunks_mut(S::LANES) {
            (S::load_partial(x) * scale).store_partial(x);
        }
    }

    /// RMSNorm of a row in place, times its weight and its gate.
    fn gated_norm<S>(by: [&[f32]; 2], eps: f32, x: &mut [f32]) {
        let [z, w] = by;
        let mut squares = S::splat(0.0);
        for x in x.chunks(S::LANES) {
            let x = S::load_partial(x);
            squares = x.mul_add(x, squares);
        }
        let scale = S::splat((squares.sum() / w.len() as f32 + eps).sqrt().recip());
        for ((x, z), w) in x.chunks_mut(S::LANES).zip(z.chunks(S::LANES)).zip(w.chunks(S::LANES)) {
            let gate = math::silu(S::load_partial(z));
            (S::load_partial(x) * scale * S::load_partial(w) * gate).store_partial(x);
        }
    }
}
