//! Elementwise operations: each element of the result comes from the elements at the same place.
//!
//! An operation is a row of a table in [`unary`] or [`binary`]: name, formula, derivative, the same in WGSL, the
//! definition in f64. Contract, gradient, launches, cases and the table of its documentation come from the family.

pub(crate) mod binary;
pub(crate) mod cast;
mod formulas;
mod gpu;
mod map;
pub(crate) mod scale;
#[cfg(test)]
mod tests;
pub(crate) mod unary;

use crate::op::{Case, Cost, Op, Oversize};

/// The entry of a unary operation; a row sets its contract, summary, `run`, `reference` and `gradient`.
const UNARY: Op = Op {
    oversize: Oversize::CutElements,
    cases: &[
        Case::new("one element", &[('R', 1)]),
        Case::new("one more than a register", &[('R', 17)]),
        Case::new("odd", &[('R', 3 * 63)]),
        Case::new("more than a thread's share", &[('R', 70_001)]),
    ],
    largest: 3_000,
    bench: &[
        Case::new("one token", &[('R', 4_096)]),
        Case::new("8 million", &[('R', 1 << 23)]),
        Case::new("128 million", &[('R', 1 << 27)]),
    ],
    cost: |d| {
        let n = d['R'];
        Cost { bytes: 8 * n, flops: n, backward_bytes: 12 * n, backward_flops: n }
    },
    ..Op::BASE
};

/// The entry of a binary operation.
const BINARY: Op = Op {
    cost: |d| {
        let n = d['R'];
        Cost { bytes: 12 * n, flops: n, backward_bytes: 20 * n, backward_flops: 2 * n }
    },
    ..UNARY
};
