//! SwiGLU of two projections whose quantized weights lie one after the other.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::quantized::{Quantized, SCALES};
use alluvium_core::contract::{FLOATS, IDS};
use alluvium_core::{Arg, Contract, Device, Result, Rule, Tensor, tape};

/// The contract of `quantized_matmul_swiglu`.
static CONTRACT: Contract = Contract {
    op: "quantized_matmul_swiglu",
    args: &[
        Arg::new("x", "R.. I", FLOATS),
        Arg::new("w", "P W", IDS),
        Arg::new("scales", "P G", SCALES),
        Arg::new("biases", "P G", FLOATS).optional(),
    ],
    rules: &[Rule::MultipleOfNumber('P', 2)],
};

/// `silu(x · gᵀ) · (x · uᵀ)` with a quantized `[g; u]`, as many rows each: [`quantized_matmul`](crate::quantized_matmul)
/// and [`swiglu`](crate::swiglu) of its halves. A few rows take one launch on a GPU, and the projections are never stored.
///
/// | tensor   | shape     | dtype                                     | gradient |
/// |----------|-----------|-------------------------------------------|----------|
/// | `x`      | `R.. I`   | f32, f16, bf16                            | no       |
/// | `w`      | `P W`     | u32                                       |          |
/// | `scales` | `P G`     | f32, f16, bf16; u8 for packings of floats | no       |
/// | `biases` | `P G`     | f32, f16, bf16; affine packing only       | no       |
/// | result   | `R.. P/2` | that of `x`                               |          |
///
/// # Errors
/// As [`quantized_matmul`](crate::quantized_matmul), and where `P` is odd; `NoGradient` when an argument is traced.
///
/// # Source
/// Shazeer 2020, arXiv:2002.05202.
pub fn quantized_matmul_swiglu(x: &Tensor, q: &Quantized<'_>) -> Result<Tensor> {
    let all = [Some(x), Some(q.w), Some(q.scales), q.biases];
    CONTRACT.check(&all)?;
    let layout = q.layout(CONTRACT.op)?;
    layout.fits(CONTRACT.op, "x", x.shape())?;
    tape::no_gradient(CONTRACT.op, WHY, all)?;
    match x.device() {
        Device::Cpu(_) => cpu::forward(x, q),
        Device::Gpu(gpu) => gpu::forward(gpu, x, q, layout),
    }
}

/// Why there is no gradient.
const WHY: &str = "it is for generation; quantized_matmul and swiglu have gradients";
