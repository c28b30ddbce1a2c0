//! The entry of `relu` in the list.

use super::{CONTRACT, reference, relu};
use crate::common::entries::{UNARY, slope};
use crate::op::{Case, Gradient, Op};
use alluvium_core::contract::Fill;

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "max(x, 0)",
    run: |t| Ok(vec![relu(&t["x"])?]),
    reference: |t| vec![t["x"].map(reference::value)],
    gradient: Gradient::Of(|t, dy| slope(&t["x"], &dy[0], reference::slope)),
    cases: &[
        Case::new("one element", &[('R', 1)]).filled(&[("x", Fill::Uniform(0.5, 1.5))]),
        Case::new("one more than a register", &[('R', 17)]),
        Case::new("odd", &[('R', 3 * 63)]),
        Case::new("more than a thread's share", &[('R', 70_001)]),
    ],
    ..UNARY
};
