//! The product.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::common::map;
use alluvium_core::contract::{FLOATS, SAME};
use alluvium_core::{Arg, Contract, Result, Tensor};

/// What `mul` takes.
static CONTRACT: Contract =
    Contract { op: "mul", args: &[Arg::new("a", "R..", FLOATS), Arg::new("b", "R..", SAME)], rules: &[] };

/// `a·b`, element by element.
///
/// `da = dy·b` and `db = dy·a`.
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `a`    | `R..` | f32, f16, bf16 | yes      |
/// | `b`    | `R..` | that of `a`    | yes      |
/// | result | `R..` | that of `a`    |          |
///
/// The backward pass keeps `a` and `b`.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold.
pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    map::binary(&CONTRACT, a, b, cpu::Mul)
}
