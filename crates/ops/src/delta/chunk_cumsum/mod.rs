//! Running sums of the log decay within chunks.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::delta::gpu::Direction;
use alluvium_core::contract::F32;
use alluvium_core::{Arg, Backward, Contract, Device, Result, Tensor, tape};

/// The contract of `chunk_cumsum`.
static CONTRACT: Contract = Contract { op: "chunk_cumsum", args: &[Arg::new("g", "B T G", F32)], rules: &[] };

/// Running sums along the tokens, from zero at every multiple of 64: `g_cum_i = Σ_{j ≤ i in the chunk} g_j`.
///
/// | tensor | shape   | dtype | gradient |
/// |--------|---------|-------|----------|
/// | `g`    | `B T G` | f32   | yes      |
/// | result | `B T G` | f32   |          |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
///
/// # Source
/// The first stage of the chunked gated delta rule, Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464.
pub fn chunk_cumsum(g: &Tensor) -> Result<Tensor> {
    let dims = CONTRACT.check(&[g])?;
    let sizes = [dims['T'], dims['G']];
    let y = match g.device() {
        Device::Cpu(cpu) => cpu::sums(cpu, g, sizes, cpu::Order::Forward)?,
        Device::Gpu(gpu) => gpu::sums(gpu, g, sizes, Direction::Forward)?,
    };
    tape::record([g], y, || Grad { sizes })
}

/// The sums from the other end of the chunk.
struct Grad {
    sizes: [usize; 2],
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        match dy.device() {
            Device::Cpu(cpu) => Ok([Some(cpu::sums(cpu, &dy, self.sizes, cpu::Order::Backward)?)]),
            Device::Gpu(gpu) => Ok([Some(gpu::sums(gpu, &dy, self.sizes, Direction::Back)?)]),
        }
    }
}
