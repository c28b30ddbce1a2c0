//! The sum.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::common::map;
use alluvium_core::contract::{FLOATS, SAME};
use alluvium_core::{Arg, Backward, Contract, Result, Tensor, tape};

/// What `add` takes.
static CONTRACT: Contract =
    Contract { op: "add", args: &[Arg::new("a", "R..", FLOATS), Arg::new("b", "R..", SAME)], rules: &[] };

/// `a + b`, element by element.
///
/// `da = db = dy`: the same memory, nothing is copied.
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `a`    | `R..` | f32, f16, bf16 | yes      |
/// | `b`    | `R..` | that of `a`    | yes      |
/// | result | `R..` | that of `a`    |          |
///
/// The backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    CONTRACT.check(&[a, b])?;
    tape::record([a, b], map::map2(a, b, cpu::Add)?, || Grad)
}

/// `da = db = dy`.
struct Grad;

impl Backward<2> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        Ok([need[0].then(|| dy.clone()), need[1].then_some(dy)])
    }
}
