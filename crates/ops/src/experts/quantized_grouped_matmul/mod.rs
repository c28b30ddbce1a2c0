//! Rows times the transposed packed weights of their experts.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::experts::cpu::check_rows;
use crate::quantized::{Packed, PackedLayout, Quantized, SCALES};
use alluvium_core::contract::{FLOATS, IDS};
use alluvium_core::{Arg, Backward, Contract, Device, Dims, Result, Tensor, tape};

/// The contract of `quantized_grouped_matmul`.
static CONTRACT: Contract = Contract {
    op: "quantized_grouped_matmul",
    args: &[
        Arg::new("x", "R.. I", FLOATS),
        Arg::new("w", "E O W", IDS),
        Arg::new("scales", "E O G", SCALES),
        Arg::new("biases", "E O G", FLOATS).optional(),
        Arg::new("experts", "N K", IDS),
    ],
    rules: &[],
};

/// [`grouped_matmul`](crate::grouped_matmul) with packed weights: `y[n, k] = x · w[experts[n, k]]ᵀ`.
///
/// | tensor    | shape   | dtype                                     | gradient         |
/// |-----------|---------|-------------------------------------------|------------------|
/// | `x`       | `R.. I` | f32, f16, bf16                            | yes              |
/// | `w`       | `E O W` | u32                                       |                  |
/// | `scales`  | `E O G` | f32, f16, bf16; u8 for packings of floats | yes, if floating |
/// | `biases`  | `E O G` | f32, f16, bf16; affine packing only       | yes              |
/// | `experts` | `N K`   | u32                                       |                  |
/// | result    | `N K O` | that of `x`                               |                  |
///
/// `R` is `N`, a row a token, or `N·K`, a row a choice; `I` is `32·W / bits` and `G` is `I / group`. Products are
/// summed in f32. The backward pass keeps `x`, the codes and `experts`.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when an
/// expert is `E` or more, for bits or groups that do not exist, or for biases that are missing or too many. An id that
/// a GPU made is not waited for: where it is `E` or more the row is NaN.
///
/// # Source
/// `mlx.core.gather_qmm(transpose=True)`.
pub fn quantized_grouped_matmul(x: &Tensor, q: &Quantized<'_>, experts: &Tensor) -> Result<Tensor> {
    let dims = CONTRACT.check(&[Some(x), Some(q.w), Some(q.scales), q.biases, Some(experts)])?;
    let layout = q.layout(CONTRACT.op)?;
    layout.fits(CONTRACT.op, "x", x.shape())?;
    check_rows(CONTRACT.op, x.shape(), &dims)?;
    let y = match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, (x, q, layout), experts, &dims)?,
        Device::Gpu(gpu) => gpu::forward(gpu, (x, q, layout), experts, &dims)?,
    };
    let grad = || Grad { x: x.detach(), q: q.detach(), layout, experts: experts.detach(), dims };
    tape::record([Some(x), Some(q.scales), q.biases], y, grad)
}

/// As for dense weights, with `dscale = Σ dw · code` and `dbias = Σ dw` over each group.
struct Grad {
    x: Tensor,
    q: Packed,
    layout: PackedLayout,
    experts: Tensor,
    dims: Dims,
}

impl Backward<3> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        match self.x.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, &dy, need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, &dy, need),
        }
    }
}
