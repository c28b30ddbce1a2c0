//! The definition: the recurrence, token by token in f64, and its gradient by hand. Nothing here knows of chunks.

use crate::op::{Array, Given};
use std::ops::Range;

/// The sizes and the tokens of each sequence.
struct RuleSizes {
    sequences: Vec<Range<usize>>,
    k_heads: usize,
    v_heads: usize,
    k: usize,
    v: usize,
}

impl RuleSizes {
    fn of(t: &Given<Array>) -> Self {
        let (q, v) = (&t["q"], &t["v"]);
        let tokens = q.shape[1];
        let sequences = match t.get("cu_seqlens") {
            Some(cu) => (1..cu.data.len()).map(|i| cu.index(i - 1)..cu.index(i)).collect(),
            None => (0..q.shape[0]).map(|b| b * tokens..(b + 1) * tokens).collect(),
        };
        RuleSizes { sequences, k_heads: q.shape[2], v_heads: v.shape[2], k: q.shape[3], v: v.shape[3] }
    }

    fn start(&self, t: &Given<Array>, state: usize) -> Vec<f64> {
        let size = self.v * self.k;
        t.get("initial_state").map_or(vec![0.0; size], |s| s.data[state * size..][..size].to_vec())
    }

    /// Where a token's query and key, value, and gate of value head `head` lie.
    fn at(&self, token: usize, head: usize) -> (Range<usize>, Range<usize>, usize) {
        let key = (token * self.k_heads + head / (self.v_heads / self.k_heads)) * self.k;
        let gate = token * self.v_heads + head;
        (key..key + self.k, gate * self.v..(gate + 1) * self.v, gate)
    }
}

/// One token's values.
struct TokenInputs<'a> {
    q: &'a [f64],
    k: &'a [f64],
    v: &'a [f64],
    g: f64,
    beta: f64,
    scale: f64,
}

impl<'a> TokenInputs<'a> {
    fn of(t: &'a Given<Array>, scale: f64, (key, value, gate): (Range<usize>, Range<usize>, usize)) -> Self {
        let (q, k, v) = (&t["q"].data[key.clone()], &t["k"].data[key], &t["v"].data[value]);
        TokenInputs { q, k, v, g: t["g"].data[gate], beta: t["beta"].data[gate], scale }
    }

    /// The residual of the decayed state, `v − S k`: one element per row of the state.
    fn residual(&self, decayed: &[f64]) -> Vec<f64> {
        decayed.chunks_exact(self.k.len()).zip(self.v).map(|(row, v)| v - dot(row, self.k)).collect()
    }

    /// Moves the state over this token; returns the output.
    fn step(&self, state: &mut [f64]) -> Vec<f64> {
        state.iter_mut().for_each(|s| *s *= self.g.exp());
        let residual = self.residual(state);
        let mut o = Vec::with_capacity(residual.len());
        for (row, residual) in state.chunks_exact_mut(self.k.len()).zip(residual) {
            row.iter_mut().zip(self.k).for_each(|(s, k)| *s += self.beta * residual * k);
            o.push(self.scale * dot(row, self.q));
        }
        o
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `o` and the final states.
pub(crate) fn forward(t: &Given<Array>, scale: f64) -> Vec<Array> {
    let layout = RuleSizes::of(t);
    let mut o = Array::zeros(t["v"].shape.clone());
    let mut last = Array::zeros([layout.sequences.len(), layout.v_heads, layout.v, layout.k]);
    let size = layout.v * layout.k;
    for (n, tokens) in layout.sequences.iter().enumerate() {
        for head in 0..layout.v_heads {
            let index = n * layout.v_heads + head;
            let mut state = layout.start(t, index);
            for token in tokens.clone() {
                let at = layout.at(token, head);
                let value = at.1.clone();
                o.data[value].copy_from_slice(&TokenInputs::of(t, scale, at).step(&mut state));
            }
            last.data[index * size..][..size].copy_from_slice(&state);
        }
    }
    vec![o, last]
}

/// Gradients to q, k, v, g, beta and the initial state, in the order of the contract.
///
/// With `S̃ = e^g S`, `m = v − S̃ k`, `S' = S̃ + β m kᵀ`, `o = s S' q`, and `dS'` complete:
/// `dm = β dS' k`, `dS̃ = dS' − dm kᵀ`, `dk = β dS'ᵀ m − S̃ᵀ dm`, `dβ = m · dS' k`, `dg = Σ dS̃ ⊙ S̃`, `dS = e^g dS̃`.
pub(crate) fn gradient(t: &Given<Array>, scale: f64, dy: &[Array]) -> Vec<Option<Array>> {
    let layout = RuleSizes::of(t);
    let zeros = |name: &str| Array::zeros(t[name].shape.clone());
    let [mut dq, mut dk, mut dv, mut dg, mut dbeta] = ["q", "k", "v", "g", "beta"].map(zeros);
    let mut dstart = t.get("initial_state").map(|s| Array::zeros(s.shape.clone()));
    let (width, size) = (layout.k, layout.v * layout.k);
    for (n, tokens) in layout.sequences.iter().enumerate() {
        for head in 0..layout.v_heads {
            let index = n * layout.v_heads + head;
            let mut states = vec![layout.start(t, index)];
            for token in tokens.clone() {
                let mut state = states[states.len() - 1].clone();
                TokenInputs::of(t, scale, layout.at(token, head)).step(&mut state);
                states.push(state);
            }
            let mut ds = dy[1].data[index * size..][..size].to_vec();
            for (i, token) in tokens.clone().enumerate().rev() {
                let at = layout.at(token, head);
                let (key, value, gate) = at.clone();
                let x = TokenInputs::of(t, scale, at);
                let decayed: Vec<f64> = states[i].iter().map(|s| s * x.g.exp()).collect();
                let (residual, o) = (x.residual(&decayed), &dy[0].data[value.clone()]);
                let (dq, dk) = (&mut dq.data[key.clone()], &mut dk.data[key]);
                for row in 0..layout.v {
                    let span = row * width..(row + 1) * width;
                    let ds = &mut ds[span.clone()];
                    for j in 0..width {
                        ds[j] += scale * o[row] * x.q[j];
                        dq[j] += scale * o[row] * states[i + 1][span.start + j];
                    }
                    let along = dot(ds, x.k);
                    let dm = x.beta * along;
                    dbeta.data[gate] += residual[row] * along;
                    dv.data[value.start + row] = dm;
                    for j in 0..width {
                        let s = decayed[span.start + j];
                        dk[j] += x.beta * residual[row] * ds[j] - s * dm;
                        ds[j] -= dm * x.k[j];
                        dg.data[gate] += ds[j] * s;
                        ds[j] *= x.g.exp();
                    }
                }
            }
            if let Some(dstart) = &mut dstart {
                dstart.data[index * size..][..size].copy_from_slice(&ds);
            }
        }
    }
    vec![Some(dq), Some(dk), Some(dv), Some(dg), Some(dbeta), dstart, None]
}
