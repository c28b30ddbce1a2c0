//! The recurrence over chunks: the states at their starts.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::delta::chunk::HeadLayout;
use alluvium_core::contract::{F32, FLOATS, SAME};
use alluvium_core::{Arg, BackwardMany, Contract, Device, Result, Rule, Tensor, tape};

/// The contract of `chunk_state`.
static CONTRACT: Contract = Contract {
    op: "chunk_state",
    args: &[
        Arg::new("k", "B T H K", FLOATS),
        Arg::new("w", "B T G K", SAME),
        Arg::new("u", "B T G V", SAME),
        Arg::new("g_cum", "B T G", F32),
        Arg::new("initial_state", "B G V K", F32).optional(),
    ],
    rules: &[Rule::MultipleOfAxis('G', 'H')],
};

/// The results of [`chunk_state`].
#[derive(Clone, Debug)]
pub struct ChunkStateOutput {
    /// The state at the start of each chunk, `B N G V K`.
    pub h: Tensor,
    /// The corrected values, `B T G V`: `u − w Sᵀ`.
    pub v_new: Tensor,
    /// The state after the last token, `B G V K`.
    pub final_state: Tensor,
}

/// Runs over the chunks of 64 tokens: `v_new = u − w hᵀ`, `h ← e^{g_last} h + Σ_i e^{g_last − g_i} v_new_i k_iᵀ`.
///
/// | tensor          | shape       | dtype          | gradient |
/// |-----------------|-------------|----------------|----------|
/// | `k`             | `B T H K`   | f32, f16, bf16 | yes      |
/// | `w`             | `B T G K`   | that of `k`    | yes      |
/// | `u`             | `B T G V`   | that of `k`    | yes      |
/// | `g_cum`         | `B T G`     | f32            | yes      |
/// | `initial_state` | `B G V K`   | f32            | yes      |
/// | `h`             | `B N G V K` | f32            |          |
/// | `v_new`         | `B T G V`   | that of `k`    |          |
/// | `final_state`   | `B G V K`   | f32            |          |
///
/// N is the number of chunks, `⌈T / 64⌉`; `g_last` is that of a chunk's last token. Value head `i` reads key head
/// `i / (G/H)`. The backward pass keeps the arguments and all results.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold or `G` is no multiple
/// of `H`.
///
/// # Source
/// Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464.
pub fn chunk_state(
    k: &Tensor,
    w: &Tensor,
    u: &Tensor,
    g_cum: &Tensor,
    initial_state: Option<&Tensor>,
) -> Result<ChunkStateOutput> {
    let dims = CONTRACT.check(&[Some(k), Some(w), Some(u), Some(g_cum), initial_state])?;
    let layout = HeadLayout { batch: dims['B'], tokens: dims['T'], k_heads: dims['H'], v_heads: dims['G'] };
    let mut saved = Grad {
        k: k.detach(),
        w: w.detach(),
        u: u.detach(),
        g_cum: g_cum.detach(),
        initial_state: initial_state.map(Tensor::detach),
        states: None,
        layout,
    };
    let ChunkStateOutput { h, v_new, final_state } = match k.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, &saved)?,
        Device::Gpu(gpu) => gpu::forward(gpu, &saved)?,
    };
    saved.states = Some((h.clone(), v_new.clone()));
    let inputs = [Some(k), Some(w), Some(u), Some(g_cum), initial_state];
    let [h, v_new, final_state] = tape::record_many(inputs, [h, v_new, final_state], || saved)?;
    Ok(ChunkStateOutput { h, v_new, final_state })
}

/// From the last chunk, with `dS` the gradient of the state at its end and `d_i = dv_new_i + e^{g_last − g_i} dS k_i`:
/// `du_i = d_i`, `dw_i = −hᵀ d_i`, `dk_i = e^{g_last − g_i} dSᵀ v_new_i`, `dg_i = −dk_i · k_i`,
/// `dg_last += e^{g_last} Σ h ⊙ dS + Σ_i dk_i · k_i`, and `dS ← e^{g_last} dS − Σ d_i w_iᵀ + dh`.
struct Grad {
    k: Tensor,
    w: Tensor,
    u: Tensor,
    g_cum: Tensor,
    initial_state: Option<Tensor>,
    states: Option<(Tensor, Tensor)>,
    layout: HeadLayout,
}

impl BackwardMany<5, 3> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: [Option<Tensor>; 3], need: [bool; 5]) -> Result<[Option<Tensor>; 5]> {
        match self.k.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, dy.each_ref().map(Option::as_ref), need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, dy, need),
        }
    }
}
