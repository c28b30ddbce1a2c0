//! The mean of all elements or of rows.

mod entry;
mod reference;

pub(crate) use entry::OP;

use crate::common::gpu;
use crate::common::reduce::{Over, spread, sums};
use alluvium_core::contract::{FLOATS, Fill};
use alluvium_core::{Arg, Backward, Contract, Device, Result, Shape, Tensor, tape};

/// What `mean` takes. In tests most numbers have one sign: a sum near zero is all rounding.
static CONTRACT: Contract =
    Contract { op: "mean", args: &[Arg::new("x", "R.. D", FLOATS).filled(Fill::Uniform(-0.5, 1.0))], rules: &[] };

/// `Σ x / n`, over all elements or over the last axis.
///
/// | tensor | shape                   | dtype          | gradient |
/// |--------|-------------------------|----------------|----------|
/// | `x`    | `R.. D`                 | f32, f16, bf16 | yes      |
/// | result | `R..`, or `[]` over all | that of `x`    |          |
///
/// Lanes add up to 1024 numbers in f32, what they leave is added in f64: the same bits whatever the threads. The
/// gradient is that of the mean over `n`, for every element; the backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
pub fn mean(x: &Tensor, over: Over) -> Result<Tensor> {
    let x = &over.axis(x)?;
    let dims = CONTRACT.check(&[x])?;
    let (width, shape) = over.rows(&dims);
    let y = match x.device() {
        Device::Cpu(cpu) => sums(cpu, x, width, 1.0 / width as f64, shape)?,
        Device::Gpu(gpu) => gpu::reduce::sums(gpu, x, width, 1.0 / width as f32, shape)?,
    };
    tape::record([x], y, || Grad { from: x.shape(), width })
}

/// Every element of a row has the gradient of the row's mean, over the row's length.
struct Grad {
    from: Shape,
    width: usize,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dx = match dy.device() {
            Device::Cpu(cpu) => spread(cpu, &dy, self.width, 1.0 / self.width as f32, self.from)?,
            Device::Gpu(gpu) => gpu::reduce::spread(gpu, &dy, self.width, 1.0 / self.width as f32, self.from)?,
        };
        Ok([Some(dx)])
    }
}
