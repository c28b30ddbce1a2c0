//! The inverse of a chunk's unit lower triangular matrix.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::delta::chunk::HeadLayout;
use alluvium_core::contract::F32;
use alluvium_core::{Arg, Backward, Contract, Device, Result, Tensor, tape};

/// The contract of `solve_tril`.
static CONTRACT: Contract = Contract { op: "solve_tril", args: &[Arg::new("l", "B T G 64", F32)], rules: &[] };

/// `A = (I + L)⁻¹` for each chunk of 64 tokens and head, where L is what `l` holds below the diagonal.
///
/// Row i is token i, the column is a place in its chunk, as [`chunk_kkt`](crate::chunk_kkt) writes them. What `l` holds
/// on and above the diagonal is not read and has no gradient. The rows of a shorter last chunk end in zeros.
///
/// | tensor | shape      | dtype | gradient |
/// |--------|------------|-------|----------|
/// | `l`    | `B T G 64` | f32   | yes      |
/// | result | `B T G 64` | f32   |          |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
///
/// # Source
/// The WY form of Yang et al. 2024, arXiv:2406.06484; forward substitution.
pub fn solve_tril(l: &Tensor) -> Result<Tensor> {
    let dims = CONTRACT.check(&[l])?;
    let layout = HeadLayout { batch: dims['B'], tokens: dims['T'], k_heads: dims['G'], v_heads: dims['G'] };
    let a = match l.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, l, layout)?,
        Device::Gpu(gpu) => gpu::forward(gpu, l, layout)?,
    };
    tape::record([l], a.clone(), || Grad { a, layout })
}

/// `dL = −Aᵀ dA Aᵀ`, below the diagonal.
struct Grad {
    a: Tensor,
    layout: HeadLayout,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        match dy.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, &dy),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, &dy),
        }
    }
}
