//! The WY representation of a chunk: `w` and `u`.

mod cpu;
mod cuda;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

/// The texts of the CUDA kernel, by name.
pub(crate) fn native_sources() -> impl Iterator<Item = (String, String)> {
    cuda::sources()
}

use crate::delta::chunk::HeadLayout;
use alluvium_core::contract::{F32, FLOATS, SAME};
use alluvium_core::{Arg, BackwardMany, Contract, Device, Result, Rule, Tensor, tape};

/// The contract of `recompute_w_u`.
static CONTRACT: Contract = Contract {
    op: "recompute_w_u",
    args: &[
        Arg::new("k", "B T H K", FLOATS),
        Arg::new("v", "B T G V", SAME),
        Arg::new("beta", "B T G", F32),
        Arg::new("g_cum", "B T G", F32),
        Arg::new("a", "B T G 64", F32),
    ],
    rules: &[Rule::MultipleOfAxis('G', 'H')],
};

/// The results of [`recompute_w_u`].
#[derive(Clone, Debug)]
pub struct WyRepr {
    /// The decayed keys of the WY representation, `B T G K`.
    pub w: Tensor,
    /// The values of the WY representation, `B T G V`.
    pub u: Tensor,
}

/// `u = A · round(v β)` and `w = A · round(k β e^{g_cum})` for each chunk of 64 tokens and value head.
///
/// `round` is to the dtype of `k` and `v`, nothing in f32; the sums are in f32 and rounded once. Value head `i` reads
/// key head `i / (G/H)`. Of `a`, rows of a chunk's matrix as [`solve_tril`](crate::solve_tril) gives them, what lies
/// above the diagonal is not read.
///
/// | tensor          | shape      | dtype          | gradient |
/// |-----------------|------------|----------------|----------|
/// | `k`             | `B T H K`  | f32, f16, bf16 | yes      |
/// | `v`             | `B T G V`  | that of `k`    | yes      |
/// | `beta`, `g_cum` | `B T G`    | f32            | yes      |
/// | `a`             | `B T G 64` | f32            | yes      |
/// | `w`             | `B T G K`  | that of `k`    |          |
/// | `u`             | `B T G V`  | that of `k`    |          |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold or `G` is no multiple
/// of `H`.
///
/// # Source
/// Yang et al. 2024, arXiv:2406.06484; with the gate, Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464.
pub fn recompute_w_u(k: &Tensor, v: &Tensor, beta: &Tensor, g_cum: &Tensor, a: &Tensor) -> Result<WyRepr> {
    let dims = CONTRACT.check(&[k, v, beta, g_cum, a])?;
    let layout = HeadLayout { batch: dims['B'], tokens: dims['T'], k_heads: dims['H'], v_heads: dims['G'] };
    let saved =
        Grad { k: k.detach(), v: v.detach(), beta: beta.detach(), g_cum: g_cum.detach(), a: a.detach(), layout };
    let WyRepr { w, u } = match k.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, &saved)?,
        Device::Gpu(gpu) => gpu::forward(gpu, &saved)?,
    };
    let [w, u] = tape::record_many([k, v, beta, g_cum, a], [w, u], || saved)?;
    Ok(WyRepr { w, u })
}

/// With `Z = Aᵀ du` and `Y = Aᵀ dw`: `dv = β Z`, `dk = β e^g Y`, `dβ = Z · v + e^g Y · k`, `dg = β e^g Y · k`, and
/// `dA = du (β v)ᵀ + dw (β e^g k)ᵀ` on and below the diagonal.
struct Grad {
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g_cum: Tensor,
    a: Tensor,
    layout: HeadLayout,
}

impl BackwardMany<5, 2> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: [Option<Tensor>; 2], need: [bool; 5]) -> Result<[Option<Tensor>; 5]> {
        match self.k.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, dy.each_ref().map(Option::as_ref), need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, dy, need),
        }
    }
}
