//! The gated activation of the MLPs.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::common::map;
use alluvium_core::contract::{FLOATS, SAME};
use alluvium_core::{Arg, Contract, Result, Tensor};

/// What `swiglu` takes.
static CONTRACT: Contract =
    Contract { op: "swiglu", args: &[Arg::new("gate", "R..", FLOATS), Arg::new("up", "R..", SAME)], rules: &[] };

/// `silu(gate)·up`, element by element, in one pass.
///
/// With `s = silu(gate)`: `d gate = dy·up·s′` and `d up = dy·s`. The limits at the infinities are those of
/// [`silu`](crate::silu()).
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `gate` | `R..` | f32, f16, bf16 | yes      |
/// | `up`   | `R..` | that of `gate` | yes      |
/// | result | `R..` | that of `gate` |          |
///
/// The backward pass keeps `gate` and `up`.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold.
///
/// # Source
/// Shazeer 2020, arXiv:2002.05202. Same as `swiglu` of mlx-lm.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    map::binary(&CONTRACT, gate, up, cpu::Swiglu)
}
