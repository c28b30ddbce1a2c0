//! Causal softmax attention with grouped queries.

mod cpu;
mod cuda;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

/// The texts of the CUDA kernels, by name.
pub(crate) fn native_sources() -> impl Iterator<Item = (String, String)> {
    cuda::sources()
}

use crate::common::packed;
use alluvium_core::contract::{FLOATS, IDS, SAME};
use alluvium_core::{Arg, Backward, Contract, Device, Dims, Error, Result, Rule, Tensor, tape};
use std::ops::Range;

/// The contract of `attention`: `A` query heads share `G` heads of keys and values.
static CONTRACT: Contract = Contract {
    op: "attention",
    args: &[
        Arg::new("q", "B T A D", FLOATS),
        Arg::new("k", "B S G D", SAME),
        Arg::new("v", "B S G D", SAME),
        Arg::new("cu_seqlens", "N+1", IDS).optional(),
    ],
    rules: &[Rule::MultipleOfAxis('A', 'G'), Rule::AtMostAxis('T', 'S')],
};

/// The arguments of [`attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// Queries, `[B, T, A, D]`: the last `T` of the `S` positions.
    pub q: &'a Tensor,
    /// Keys, `[B, S, G, D]`.
    pub k: &'a Tensor,
    /// Values, `[B, S, G, D]`.
    pub v: &'a Tensor,
    /// Where packed sequences begin and end, `[N+1]`, u32: no token sees another sequence.
    pub cu_seqlens: Option<&'a Tensor>,
    /// The factor of the scores, usually `1/√D`.
    pub scale: f32,
}

/// Causal attention: each query takes the mean of the values before it, weighted by `softmax(scale · q·k)`.
///
/// `o[t] = Σ_s p[t,s]·v[s]` with `p[t,·] = softmax_s(scale · q[t]·k[s])` over `s ≤ t + S − T`, within its own sequence.
/// Query head `a` uses the keys and values of head `a / (A/G)`.
///
/// | tensor       | shape     | dtype          | gradient |
/// |--------------|-----------|----------------|----------|
/// | `q`          | `B T A D` | f32, f16, bf16 | yes      |
/// | `k`          | `B S G D` | that of `q`    | yes      |
/// | `v`          | `B S G D` | that of `q`    | yes      |
/// | `cu_seqlens` | `N+1`     | u32            | no       |
/// | result       | `B T A D` | that of `q`    |          |
///
/// The softmax is computed while keys stream past, so nothing of size `T × S` exists. The backward pass keeps the
/// arguments, the result and one f32 for each query and head, and computes the weights again.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when
/// `cu_seqlens` does not rise from 0 to `T`, comes with more than one row or with `T` below `S`, or when `scale` is not
/// finite.
///
/// # Source
/// Milakov and Gimelshein 2018, arXiv:1805.02867, for the streaming softmax; Dao 2023, arXiv:2307.08691, for the
/// backward pass. Same values as `mlx.fast.scaled_dot_product_attention(mask="causal")`.
pub fn attention(args: AttentionArgs<'_>) -> Result<Tensor> {
    let AttentionArgs { q, k, v, cu_seqlens, scale } = args;
    let dims = CONTRACT.check(&[Some(q), Some(k), Some(v), cu_seqlens])?;
    if !scale.is_finite() {
        return Err(Error::value(CONTRACT.op, format!("scale is {scale}, expected a finite number")));
    }
    let mask = Mask::new(cu_seqlens, &dims)?;
    let (o, lse) = match q.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, &args, &mask, &dims)?,
        Device::Gpu(gpu) => gpu::forward(gpu, &args, &mask, &dims)?,
    };
    let [q_, k_, v_, o_] = [q, k, v, &o].map(Tensor::detach);
    tape::record([q, k, v], o, || Grad { q: q_, k: k_, v: v_, o: o_, lse, mask, scale, dims })
}

/// Which keys a query sees.
struct Mask {
    /// All tokens.
    all: Range<usize>,
    /// The tokens of each packed sequence.
    sequences: Vec<Range<usize>>,
    is_packed: bool,
    /// Keys before the first query.
    past: usize,
}

/// Queries of one sequence that are computed together. No tile has keys of two sequences: what one of them holds, NaN
/// too, costs the other nothing.
#[derive(Clone, Debug)]
struct QueryBlock {
    queries: Range<usize>,
    sequence: Range<usize>,
}

impl Mask {
    fn new(cu_seqlens: Option<&Tensor>, dims: &Dims) -> Result<Self> {
        let past = dims['S'] - dims['T'];
        let all = 0..dims['T'];
        let Some(offsets) = cu_seqlens else {
            return Ok(Mask { all, sequences: Vec::new(), is_packed: false, past });
        };
        if past != 0 {
            let why = format!("packed sequences have all their keys, but T = {} and S = {}", dims['T'], dims['S']);
            return Err(Error::value(CONTRACT.op, why));
        }
        Ok(Mask { all, sequences: packed(CONTRACT.op, offsets, dims['B'], dims['T'])?, is_packed: true, past })
    }

    /// All queries, at most `longest` in a block.
    fn blocks(&self, longest: usize) -> impl Iterator<Item = QueryBlock> {
        // a vector of one sequence would be an allocation a token
        let sequences = if self.is_packed { &self.sequences[..] } else { std::slice::from_ref(&self.all) };
        sequences.iter().flat_map(move |sequence| {
            sequence.clone().step_by(longest).map(move |first| QueryBlock {
                queries: first..sequence.end.min(first + longest),
                sequence: sequence.clone(),
            })
        })
    }

    /// One past the last key that a query sees.
    fn end(&self, query: usize) -> usize {
        self.past + query + 1
    }
}

/// With `p = exp(scale·q·k − lse)`, `dp = do·v` and `δ = do·o` for each query and head:
/// `dv = Σ_t p·do`, `ds = p·(dp − δ)`, `dq = scale·Σ_s ds·k`, `dk = scale·Σ_t ds·q`; heads that share keys add up.
struct Grad {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    mask: Mask,
    scale: f32,
    dims: Dims,
}

impl Backward<3> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        match self.q.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, &dy, need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, &dy, need),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::cpu::Cpu;
    use alluvium_core::{Shape, Tape};

    fn wave(shape: impl Into<Shape>, seed: f32, device: &Device) -> Tensor {
        let shape = shape.into();
        let data: Vec<f32> = (0..shape.elements()).map(|i| (i as f32 * 0.61 + seed).sin()).collect();
        Tensor::from_slice(&data, shape, device).unwrap()
    }

    fn plain<'a>(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> AttentionArgs<'a> {
        AttentionArgs { q, k, v, cu_seqlens: None, scale: 0.5 }
    }

    #[test]
    fn decoding_token_by_token_gives_the_rows_of_the_whole() {
        let device = Device::cpu();
        let [q, k, v] = [(4, 0.0), (2, 1.0), (2, 2.0)].map(|(heads, seed)| wave([1, 300, heads, 8], seed, &device));
        let whole = attention(plain(&q, &k, &v)).unwrap().to_vec::<f32>().unwrap();
        for t in [0, 1, 63, 64, 255, 256, 299] {
            let upto = |x: &Tensor, from: usize| {
                let rows = x.reshape([300, x.elements() / 300]).unwrap().rows(from, t + 1 - from).unwrap();
                rows.reshape([1, t + 1 - from, x.shape()[2], 8]).unwrap()
            };
            let one = attention(plain(&upto(&q, t), &upto(&k, 0), &upto(&v, 0))).unwrap().to_vec::<f32>().unwrap();
            for (a, b) in one.iter().zip(&whole[t * 32..]) {
                assert!((a - b).abs() < 1e-5, "token {t}: {a} and {b}");
            }
        }
    }

    #[test]
    fn memory_grows_with_the_tokens_and_not_with_their_square() {
        let peak = |tokens: usize| {
            let device: Device = Cpu::builder().threads(1).open().unwrap().into();
            let tape = Tape::new();
            let [q, k, v] = [0.0, 1.0, 2.0].map(|seed| tape.watch(&wave([1, tokens, 2, 8], seed, &device)));
            let o = attention(plain(&q, &k, &v)).unwrap();
            tape.backward(&[(&o, &wave(o.shape(), 3.0, &device))]).unwrap();
            q.device().peak_memory()
        };
        assert!(peak(2_000) < 5 * peak(500));
    }

    #[test]
    fn scores_far_apart_and_scores_that_are_equal_stay_finite() {
        let device = Device::cpu();
        let tape = Tape::new();
        for size in [0.0, 1e4] {
            let q = tape.watch(&Tensor::full([1, 70, 1, 2], size, &device).unwrap());
            let k = tape.watch(&wave([1, 70, 1, 2], 0.0, &device));
            let v = tape.watch(&wave([1, 70, 1, 2], 1.0, &device));
            let o = attention(plain(&q, &k, &v)).unwrap();
            let grads = tape.backward(&[(&o, &wave(o.shape(), 3.0, &device))]).unwrap();
            for x in [&o, grads.get(&q).unwrap(), grads.get(&k).unwrap(), grads.get(&v).unwrap()] {
                assert!(x.to_vec::<f32>().unwrap().iter().all(|x| x.is_finite()));
            }
        }
    }

    #[test]
    fn packed_sequences_with_a_past_and_offsets_that_fall_are_refused() {
        let device = Device::cpu();
        let [q, k, v] = [(4, 0.0), (5, 1.0), (5, 2.0)].map(|(tokens, seed)| wave([1, tokens, 1, 2], seed, &device));
        let offsets = |at: &[u32]| Tensor::from_slice(at, [at.len()], &device).unwrap();
        let error = |q: &Tensor, cu: &[u32]| {
            let cu = offsets(cu);
            attention(AttentionArgs { cu_seqlens: Some(&cu), ..plain(q, &k, &v) }).unwrap_err().to_string()
        };
        assert_eq!(error(&q, &[0, 4]), "attention: packed sequences have all their keys, but T = 4 and S = 5");
        assert_eq!(error(&k, &[0, 3, 2, 5]), "attention: `cu_seqlens` goes from 3 to 2 at 2, expected it to rise");
    }
}
