//! `β K Kᵀ` of each chunk with decays: the strictly lower triangular matrix of the WY form.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::delta::chunk::HeadLayout;
use alluvium_core::contract::{F32, FLOATS};
use alluvium_core::{Arg, Backward, Contract, Device, Result, Rule, Tensor, tape};

/// The contract of `chunk_kkt`.
static CONTRACT: Contract = Contract {
    op: "chunk_kkt",
    args: &[Arg::new("k", "B T H K", FLOATS), Arg::new("beta", "B T G", F32), Arg::new("g_cum", "B T G", F32)],
    rules: &[Rule::MultipleOfAxis('G', 'H')],
};

/// `L_ij = β_i e^{g_cum_i − g_cum_j} (k_i · k_j)` for tokens i > j of the same chunk of 64, 0 elsewhere.
///
/// Row i of the result is token i, the column is j's place in its chunk. Value head `i` reads key head `i / (G/H)`.
///
/// | tensor          | shape      | dtype          | gradient |
/// |-----------------|------------|----------------|----------|
/// | `k`             | `B T H K`  | f32, f16, bf16 | yes      |
/// | `beta`, `g_cum` | `B T G`    | f32            | yes      |
/// | result          | `B T G 64` | f32            |          |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold or `G` is no multiple
/// of `H`.
///
/// # Source
/// Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464.
pub fn chunk_kkt(k: &Tensor, beta: &Tensor, g_cum: &Tensor) -> Result<Tensor> {
    let dims = CONTRACT.check(&[k, beta, g_cum])?;
    let layout = HeadLayout { batch: dims['B'], tokens: dims['T'], k_heads: dims['H'], v_heads: dims['G'] };
    let saved = Grad { k: k.detach(), beta: beta.detach(), g_cum: g_cum.detach(), layout };
    let l = match k.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, &saved)?,
        Device::Gpu(gpu) => gpu::forward(gpu, &saved)?,
    };
    tape::record([k, beta, g_cum], l, || saved)
}

/// With `M_ij = e^{g_i − g_j} dL_ij` below the diagonal and `E_ij = β_i M_ij (k_i · k_j)`: `dβ_i = Σ_j M_ij (k_i ·
/// k_j)`, `dk_i = Σ_j β_i M_ij k_j + Σ_j β_j M_ji k_j`, `dg_i = Σ_j E_ij − Σ_j E_ji`.
struct Grad {
    k: Tensor,
    beta: Tensor,
    g_cum: Tensor,
    layout: HeadLayout,
}

impl Backward<3> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        match dy.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, &dy, need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, &dy, need),
        }
    }
}
