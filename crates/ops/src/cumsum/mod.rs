//! Running sums.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Backward, Contract, Device, Result, Tensor, tape};
use gpu::From;

/// What `cumsum` takes.
static CONTRACT: Contract = Contract { op: "cumsum", args: &[Arg::new("x", "R.. D", FLOATS)], rules: &[] };

/// `y[i] = Σ_(j ≤ i) x[j]` along the last axis.
///
/// | tensor | shape   | dtype          | gradient |
/// |--------|---------|----------------|----------|
/// | `x`    | `R.. D` | f32, f16, bf16 | yes      |
/// | result | `R.. D` | that of `x`    |          |
///
/// A row is summed in order, in f64; on a GPU in blocks, in f32 with what carrying loses. `dx[j] = Σ_(i ≥ j) dy[i]`; the backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
pub fn cumsum(x: &Tensor) -> Result<Tensor> {
    CONTRACT.check(&[x])?;
    let y = match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, x)?,
        Device::Gpu(gpu) => gpu::sums(gpu, x, From::Start)?,
    };
    tape::record([x], y, || Grad)
}

/// The running sum from the other end.
struct Grad;

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dx = match dy.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &dy)?,
            Device::Gpu(gpu) => gpu::sums(gpu, &dy, From::End)?,
        };
        Ok([Some(dx)])
    }
}
