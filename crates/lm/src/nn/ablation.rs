//! Ablations of Gated DeltaNet layers, to measure the effect of a part.

use alluvium_core::{Error, Result, Tensor};
use alluvium_ops::{
    ChunkOutputArgs, ChunkStateOutput, GatedDeltaArgs, add, cast, chunk_cumsum, chunk_output, chunk_state, linear, mul,
    scale,
};

/// A part that is removed from the Gated DeltaNet layers of a model, for an experiment.
///
/// A checkpoint does not record it: a saved model is complete again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ablation {
    /// The complete layer.
    #[default]
    None,
    /// Without the short convolution; the activation stays.
    Convolution,
    /// Without the correction of the delta rule: `S ← e^g S + β v kᵀ`.
    DeltaTerm,
}

/// A filter `[C, K]` that passes each token as it is. `w` has its shape and gets a gradient of zero.
pub(super) fn identity(w: &Tensor) -> Result<Tensor> {
    let [channels, taps] = [w.shape()[0], w.shape()[1]];
    let last: Vec<f32> = (0..channels * taps).map(|i| if i % taps + 1 == taps { 1.0 } else { 0.0 }).collect();
    add(&scale(w, 0.0)?, &cast(&Tensor::from_slice(&last, w.shape(), w.device())?, w.dtype())?)
}

/// `S_t = e^{g_t} S_{t−1} + β_t v_t k_tᵀ`, `o_t = scale · S_t q_t`: the delta rule without its correction.
///
/// In the chunked form the correction is `w` alone: with `w = 0` and `u = β v` the stages of the rule compute this.
/// Packed sequences must be equally long, and begin with a state of zeros.
pub(super) fn gated_linear_attention(args: &GatedDeltaArgs<'_>) -> Result<Tensor> {
    let GatedDeltaArgs { q, k, v, g, beta, cu_seqlens, scale, .. } = *args;
    let (shape, [h, width]) = (v.shape(), [k.shape()[2], k.shape()[3]]);
    let [groups, value] = [shape[2], shape[3]];
    let [b, t] = match cu_seqlens {
        Some(offsets) => equal_rows(offsets)?,
        None => [shape[0], shape[1]],
    };
    let (q, k) = (q.reshape([b, t, h, width])?, k.reshape([b, t, h, width])?);
    let ones = Tensor::full([value, 1], 1.0, v.device())?;
    let beta = linear(&beta.reshape([b, t, groups, 1])?, &ones)?;
    let u = mul(&v.reshape([b, t, groups, value])?, &cast(&beta, v.dtype())?)?;
    let w = Tensor::zeros([b, t, groups, width], k.dtype(), v.device())?;
    let g_cum = chunk_cumsum(&g.reshape([b, t, groups])?)?;
    let ChunkStateOutput { h, v_new, .. } = chunk_state(&k, &w, &u, &g_cum, None)?;
    chunk_output(ChunkOutputArgs { q: &q, k: &k, v_new: &v_new, h: &h, g_cum: &g_cum, scale })?.reshape(shape)
}

impl std::fmt::Display for Ablation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Ablation::None => "whole",
            Ablation::Convolution => "without the short convolution",
            Ablation::DeltaTerm => "without the delta term",
        })
    }
}

/// The number and the length of packed sequences.
fn equal_rows(cu_seqlens: &Tensor) -> Result<[usize; 2]> {
    let offsets = cu_seqlens.to_vec::<u32>()?;
    let lengths: Vec<u32> = offsets.windows(2).map(|w| w[1].saturating_sub(w[0])).collect();
    match lengths.first() {
        Some(&first) if lengths.iter().all(|&n| n == first) => Ok([lengths.len(), first as usize]),
        _ => Err(Error::value("ablation", "without the delta term packed sequences must be equally long")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Device;
    use alluvium_core::rng::Rng;
    use alluvium_ops::ChunkStates;

    #[test]
    fn without_its_correction_the_rule_is_a_decaying_sum() {
        let (b, t, heads, groups, width, value) = (2, 70, 1, 2, 5, 3);
        let device = Device::cpu();
        let mut rng = Rng::new(3, "plain");
        let mut draw =
            |n: usize, low: f64, high: f64| (0..n).map(|_| rng.between(low, high) as f32).collect::<Vec<_>>();
        let (q, k) = (draw(b * t * heads * width, -1.0, 1.0), draw(b * t * heads * width, -1.0, 1.0));
        let v = draw(b * t * groups * value, -1.0, 1.0);
        let (g, beta) = (draw(b * t * groups, -0.3, 0.0), draw(b * t * groups, 0.0, 1.0));
        let tensor = |data: &[f32], shape: [usize; 4]| Tensor::from_slice(data, shape, &device).unwrap();
        let gates = |data: &[f32]| Tensor::from_slice(data, [1, b * t, groups], &device).unwrap();
        // packed in one row: two sequences, kept apart
        let keys = [1, b * t, heads, width];
        let offsets = Tensor::from_slice(&[0, t as u32, 2 * t as u32], [3], &device).unwrap();
        let o = gated_linear_attention(&GatedDeltaArgs {
            q: &tensor(&q, keys),
            k: &tensor(&k, keys),
            v: &tensor(&v, [1, b * t, groups, value]),
            g: &gates(&g),
            beta: &gates(&beta),
            initial_state: None,
            cu_seqlens: Some(&offsets),
            scale: 0.5,
            states: ChunkStates::Keep,
        });
        let o = o.unwrap().to_vec::<f32>().unwrap();
        for group in 0..groups {
            let mut state = vec![0.0f64; value * width];
            for i in 0..b * t {
                let gate = i * groups + group;
                let decay = if i % t == 0 { 0.0 } else { f64::from(g[gate]).exp() };
                for y in 0..value {
                    for x in 0..width {
                        let write = f64::from(beta[gate] * v[gate * value + y] * k[i * width + x]);
                        state[y * width + x] = decay * state[y * width + x] + write;
                    }
                    let row = &state[y * width..(y + 1) * width];
                    let want: f64 = row.iter().zip(&q[i * width..]).map(|(s, &q)| 0.5 * s * f64::from(q)).sum();
                    let got = f64::from(o[gate * value + y]);
                    assert!((got - want).abs() < 1e-5, "token {i}, head {group}: {got}, expected {want}");
                }
            }
        }
    }

    #[test]
    fn packed_sequences_of_different_lengths_are_refused() {
        let offsets = Tensor::from_slice(&[0u32, 3, 5], [3], &Device::cpu()).unwrap();
        assert!(equal_rows(&offsets).unwrap_err().to_string().contains("equally long"));
    }
}
