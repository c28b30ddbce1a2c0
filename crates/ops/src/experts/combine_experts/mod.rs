//! The weighted sum of the results of the experts of each token.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::{F32, FLOATS};
use alluvium_core::{Arg, Backward, Contract, Device, Result, Tensor, tape};

/// The contract of `combine_experts`.
static CONTRACT: Contract = Contract {
    op: "combine_experts",
    args: &[Arg::new("y", "N K D", FLOATS), Arg::new("weights", "N K", F32)],
    rules: &[],
};

/// The weighted sum over a token's choices: `z[n] = Σ_k weights[n, k] · y[n, k]`.
///
/// | tensor    | shape   | dtype          | gradient |
/// |-----------|---------|----------------|----------|
/// | `y`       | `N K D` | f32, f16, bf16 | yes      |
/// | `weights` | `N K`   | f32            | yes      |
/// | result    | `N D`   | that of `y`    |          |
///
/// Summed in f32 in the order of the choices, and rounded once. The backward pass keeps the arguments.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold.
pub fn combine_experts(y: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let dims = CONTRACT.check(&[y, weights])?;
    let z = match y.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, y, weights, &dims)?,
        Device::Gpu(gpu) => gpu::forward(gpu, y, weights, &dims)?,
    };
    tape::record([y, weights], z, || Grad { y: y.detach(), weights: weights.detach() })
}

/// `dy[n, k] = weights[n, k] · dz[n]` and `dweights[n, k] = y[n, k] · dz[n]`.
struct Grad {
    y: Tensor,
    weights: Tensor,
}

impl Backward<2> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dz: Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        match dz.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, &dz, need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, &dz, need),
        }
    }
}
