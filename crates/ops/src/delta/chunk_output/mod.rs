//! Outputs of the gated delta rule from the states at the starts of the chunks.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::delta::chunk::{CHUNK, HeadLayout};
use alluvium_core::contract::{F32, FLOATS, SAME};
use alluvium_core::{Arg, Backward, Contract, Device, Error, Kind, Result, Rule, Tensor, tape};

/// The contract of `chunk_output`.
static CONTRACT: Contract = Contract {
    op: "chunk_output",
    args: &[
        Arg::new("q", "B T H K", FLOATS),
        Arg::new("k", "B T H K", SAME),
        Arg::new("v_new", "B T G V", SAME),
        Arg::new("h", "B N G V K", F32),
        Arg::new("g_cum", "B T G", F32),
    ],
    rules: &[Rule::MultipleOfAxis('G', 'H')],
};

/// The arguments of [`chunk_output`].
#[derive(Clone, Copy, Debug)]
pub struct ChunkOutputArgs<'a> {
    /// Queries, `B T H K`.
    pub q: &'a Tensor,
    /// Keys, `B T H K`.
    pub k: &'a Tensor,
    /// The corrected values, `B T G V`: `u − w Sᵀ`.
    pub v_new: &'a Tensor,
    /// The state at the start of each chunk, `B N G V K`.
    pub h: &'a Tensor,
    /// Running sums of the log decay in chunks, `B T G`.
    pub g_cum: &'a Tensor,
    /// The factor of the output.
    pub scale: f32,
}

/// `o_i = scale · (e^{g_i} h q_i + Σ_{j ≤ i} e^{g_i − g_j} (q_i · k_j) v_new_j)`, j over the tokens of i's chunk of 64.
///
/// | tensor   | shape       | dtype          | gradient |
/// |----------|-------------|----------------|----------|
/// | `q`, `k` | `B T H K`   | f32, f16, bf16 | yes      |
/// | `v_new`  | `B T G V`   | that of `q`    | yes      |
/// | `h`      | `B N G V K` | f32            | yes      |
/// | `g_cum`  | `B T G`     | f32            | yes      |
/// | result   | `B T G V`   | that of `q`    |          |
///
/// N is the number of chunks, `⌈T / 64⌉`. Value head `i` reads key head `i / (G/H)`.
///
/// # Errors
/// [`Kind::Shape`], `Dtype` or `Device` where the table does not hold or `G` is no multiple of `H`; `Value` when
/// `scale` is not finite.
///
/// # Source
/// Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464.
pub fn chunk_output(args: ChunkOutputArgs<'_>) -> Result<Tensor> {
    let ChunkOutputArgs { q, k, v_new, h, g_cum, scale } = args;
    let dims = CONTRACT.check(&[q, k, v_new, h, g_cum])?;
    if dims['N'] != dims['T'].div_ceil(CHUNK) {
        let want = format!("[B, N, G, V, K] with N = {}, the chunks of T", dims['T'].div_ceil(CHUNK));
        return Err(Kind::Shape { op: CONTRACT.op, arg: "h", got: h.shape(), want }.into());
    }
    if !scale.is_finite() {
        return Err(Error::value(CONTRACT.op, format!("scale is {scale}, expected a finite number")));
    }
    let saved = Grad {
        q: q.detach(),
        k: k.detach(),
        v_new: v_new.detach(),
        h: h.detach(),
        g_cum: g_cum.detach(),
        layout: HeadLayout { batch: dims['B'], tokens: dims['T'], k_heads: dims['H'], v_heads: dims['G'] },
        scale,
    };
    let o = match q.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, &saved)?,
        Device::Gpu(gpu) => gpu::forward(gpu, &saved)?,
    };
    tape::record([q, k, v_new, h, g_cum], o, || saved)
}

/// With `P_ij = s e^{g_i − g_j} (q_i · k_j)` and `dP_ij = s e^{g_i − g_j} (do_i · v_j)` for i ≥ j, and
/// `x_i = s e^{g_i} hᵀ do_i`: `dq = x + dP k`, `dk = dPᵀ q`, `dv = Pᵀ do`, `dh = Σ s e^{g_i} do_i q_iᵀ`, and
/// `dg_i = q_i · x_i + Σ_j E_ij − Σ_j E_ji` with `E_ij = P_ij (do_i · v_j)`.
struct Grad {
    q: Tensor,
    k: Tensor,
    v_new: Tensor,
    h: Tensor,
    g_cum: Tensor,
    layout: HeadLayout,
    scale: f32,
}

impl Backward<5> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 5]) -> Result<[Option<Tensor>; 5]> {
        match dy.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, &dy, need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, &dy, need),
        }
    }
}
