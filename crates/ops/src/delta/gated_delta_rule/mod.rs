//! The gated delta rule over whole sequences, in chunks.

mod cpu;
mod entry;
mod gpu;
mod hopper;
pub(crate) mod reference;

pub(crate) use entry::OP;
pub(crate) use hopper::native_sources;

use crate::common::packed;
use alluvium_core::contract::{F32, FLOATS, IDS, SAME};
use alluvium_core::{Arg, BackwardMany, Contract, Device, Error, Kind, Result, Rule, Tensor, tape};
use std::ops::Range;

/// The contract of `gated_delta_rule`.
static CONTRACT: Contract = Contract {
    op: "gated_delta_rule",
    args: &[
        Arg::new("q", "B T H K", FLOATS),
        Arg::new("k", "B T H K", SAME),
        Arg::new("v", "B T G V", SAME),
        Arg::new("g", "B T G", F32),
        Arg::new("beta", "B T G", F32),
        Arg::new("initial_state", "N G V K", F32).optional(),
        Arg::new("cu_seqlens", "N+1", IDS).optional(),
    ],
    rules: &[Rule::MultipleOfAxis('G', 'H'), Rule::AtMostNumber('K', 256)],
};

/// The states that the forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkStates {
    /// The state at the start of each chunk of 64 tokens: `V · K` values a chunk and head. On Hopper's matrix units none is
    /// kept: there the pass that makes the states again is short.
    Keep,
    /// None: the backward pass recomputes the states, one sequence and head at a time.
    Recompute,
}

/// The arguments of [`gated_delta_rule`].
#[derive(Clone, Copy, Debug)]
pub struct GatedDeltaArgs<'a> {
    /// Queries, `B T H K`.
    pub q: &'a Tensor,
    /// Keys, `B T H K`; of unit length, or the state grows.
    pub k: &'a Tensor,
    /// Values, `B T G V`.
    pub v: &'a Tensor,
    /// The natural logarithm of the decay, `B T G`, at most 0.
    pub g: &'a Tensor,
    /// The step size of the correction, `B T G`, in (0, 1).
    pub beta: &'a Tensor,
    /// The state before the first token, `N G V K`; zeros if `None`.
    pub initial_state: Option<&'a Tensor>,
    /// The `N+1` offsets of packed sequences, from 0 to `T`; `B` is then 1.
    pub cu_seqlens: Option<&'a Tensor>,
    /// The factor of the output, usually `K^-½`.
    pub scale: f32,
    /// The states that are kept for the backward pass.
    pub states: ChunkStates,
}

/// The results of [`gated_delta_rule`] and [`gated_delta_step`](crate::gated_delta_step).
#[derive(Clone, Debug)]
pub struct GatedDeltaOutput {
    /// The outputs, in the shape and dtype of `v`.
    pub o: Tensor,
    /// The state after the last token, `N G V K`.
    pub final_state: Tensor,
}

/// The gated delta rule: linear attention whose state decays and is corrected by each token. The mixer of Gated
/// DeltaNet.
///
/// For each sequence and value head, with a state `S` of `V × K`:
/// `S_t = e^{g_t} S_{t-1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ`, `o_t = scale · S_t q_t`.
/// Value head `i` reads queries and keys of head `i / (G/H)`. It is computed in chunks of 64 tokens, in f32.
///
/// | tensor          | shape     | dtype          | gradient |
/// |-----------------|-----------|----------------|----------|
/// | `q`, `k`        | `B T H K` | f32, f16, bf16 | yes      |
/// | `v`             | `B T G V` | that of `q`    | yes      |
/// | `g`, `beta`     | `B T G`   | f32            | yes      |
/// | `initial_state` | `N G V K` | f32            | yes      |
/// | `cu_seqlens`    | `N+1`     | u32            | no       |
/// | `o`             | `B T G V` | that of `q`    |          |
/// | `final_state`   | `N G V K` | f32            |          |
///
/// `N` is `B`, or the number of packed sequences. The backward pass keeps the arguments and, with
/// [`ChunkStates::Keep`], one state a chunk; never one a token.
///
/// # Errors
/// [`Kind::Shape`], `Dtype` or `Device` where the table does not hold, `G` is no multiple of `H` or `K` is above 256;
/// `Value` when `cu_seqlens` does not rise from 0 to `T` or `scale` is not finite.
///
/// # Source
/// Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464; the chunked form of Yang et al. 2024, arXiv:2406.06484.
pub fn gated_delta_rule(args: GatedDeltaArgs<'_>) -> Result<GatedDeltaOutput> {
    let GatedDeltaArgs { q, k, v, g, beta, initial_state, cu_seqlens, scale, states } = args;
    let dims = CONTRACT.check(&[Some(q), Some(k), Some(v), Some(g), Some(beta), initial_state, cu_seqlens])?;
    if !scale.is_finite() {
        return Err(Error::value(CONTRACT.op, format!("scale is {scale}, expected a finite number")));
    }
    let sequences = sequences(&args, dims['B'], dims['T'])?;
    let mut saved = Grad {
        q: q.detach(),
        k: k.detach(),
        v: v.detach(),
        g: g.detach(),
        beta: beta.detach(),
        initial_state: initial_state.map(Tensor::detach),
        sequences,
        scale,
        states: None,
    };
    let traced = [q, k, v, g, beta].into_iter().chain(initial_state).any(Tensor::is_traced);
    let keep = if traced { states } else { ChunkStates::Recompute };
    let (delta, states) = match q.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, &saved, keep)?,
        Device::Gpu(gpu) => gpu::forward(gpu, &saved, keep)?,
    };
    saved.states = states;
    let inputs = [Some(q), Some(k), Some(v), Some(g), Some(beta), initial_state];
    let [o, final_state] = tape::record_many(inputs, [delta.o, delta.final_state], || saved)?;
    Ok(GatedDeltaOutput { o, final_state })
}

/// The tokens of each sequence among the `B · T` tokens.
fn sequences(args: &GatedDeltaArgs<'_>, batch: usize, tokens: usize) -> Result<Vec<Range<usize>>> {
    let sequences = match args.cu_seqlens {
        Some(offsets) => packed(CONTRACT.op, offsets, batch, tokens)?,
        None => (0..batch).map(|b| b * tokens..(b + 1) * tokens).collect(),
    };
    match args.initial_state.map(Tensor::shape) {
        Some(got) if got[0] != sequences.len() => {
            let want = format!("[N, G, V, K] with N = {}, the number of sequences", sequences.len());
            Err(Kind::Shape { op: CONTRACT.op, arg: "initial_state", got, want }.into())
        }
        _ => Ok(sequences),
    }
}

/// The arguments, and the states at the starts of the chunks where they are kept.
///
/// With `Γ_ij = e^{g_{j+1} + … + g_i}`, `A0 = (I + diag(β) K Kᵀ)⁻¹` (strictly lower product), `A = Γ ⊙ A0 diag(β)`,
/// `P = s Γ ⊙ Q Kᵀ` (lower), `W = V − Γ_start K S` and `N = A W`, a chunk gives `O = s Γ_start Q S + P N` and
/// `S' = Γ_all S + Kᵀ Γ_end N`. Backwards, from `dS'` and `dO`: `dN = Γ_end K dS' + Pᵀ dO`, `dV = dW = Aᵀ dN`,
/// `dA = dN Wᵀ`, `dP = dO Nᵀ`; then every factor of those lines gets its share, the inverse
/// `−A0ᵀ (Γ ⊙ dA diag(β)) A0ᵀ`, and `dg_t` sums the gradients of the exponents that `g_t` is in, and of no others.
struct Grad {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Option<Tensor>,
    sequences: Vec<Range<usize>>,
    scale: f32,
    /// As the device lays them out.
    states: Option<Tensor>,
}

impl BackwardMany<6, 2> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, [o, last]: [Option<Tensor>; 2], need: [bool; 6]) -> Result<[Option<Tensor>; 6]> {
        match self.q.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, [o.as_ref(), last.as_ref()], need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, [o, last], need),
        }
    }
}
