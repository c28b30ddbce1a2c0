//! The exponential.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::common::map;
use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Contract, Result, Tensor};

/// What `exp` takes.
static CONTRACT: Contract = Contract { op: "exp", args: &[Arg::new("x", "R..", FLOATS)], rules: &[] };

/// `eˣ`, element by element.
///
/// `dx = dy · eˣ`. 0 below -104, infinity above 88.73.
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `x`    | `R..` | f32, f16, bf16 | yes      |
/// | result | `R..` | that of `x`    |          |
///
/// The backward pass keeps `x`.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
pub fn exp(x: &Tensor) -> Result<Tensor> {
    map::unary(&CONTRACT, x, cpu::Exp)
}
