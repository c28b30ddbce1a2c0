//! The entry of `global_norm` in the list.

use super::{CONTRACT, WHY, global_norm, reference};
use crate::op::{Case, Cost, Gradient, Op, Oversize, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "Euclidean norm of all elements of all tensors",
    results: &["norm"],
    run: |t| Ok(vec![global_norm(&[&t["x"]])?]),
    reference: |t| vec![reference::norm(&t["x"])],
    gradient: Gradient::None(WHY),
    tolerance: Tolerance::F32,
    oversize: Oversize::CutElements,
    cases: &[
        Case::new("one element", &[('R', 1)]),
        Case::new("less than a register", &[('R', 7)]),
        Case::new("odd", &[('R', 65)]),
        Case::new("more than one task", &[('R', 200_003)]),
    ],
    largest: 3_000,
    bench: &[Case::new("16 M gradients", &[('R', 1 << 24)])],
    cost: |d| Cost { bytes: 4 * d['R'], flops: 2 * d['R'], ..Cost::default() },
    ..Op::BASE
};
