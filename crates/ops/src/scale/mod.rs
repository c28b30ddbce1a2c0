//! The product with a number.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::common::map;
use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Backward, Contract, Result, Tensor, tape};

/// What `scale` takes.
static CONTRACT: Contract = Contract { op: "scale", args: &[Arg::new("x", "R..", FLOATS)], rules: &[] };

/// `factor·x`, element by element.
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `x`    | `R..` | f32, f16, bf16 | yes      |
/// | result | `R..` | that of `x`    |          |
///
/// The product is made in f32 and rounded once. The backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
pub fn scale(x: &Tensor, factor: f32) -> Result<Tensor> {
    CONTRACT.check(&[x])?;
    tape::record([x], map::map(x, cpu::Scale { factor })?, || Grad { factor })
}

/// `dx = factor·dy`.
struct Grad {
    factor: f32,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(scale(&dy, self.factor)?)])
    }
}
