//! The entry of `add` in the list.

use super::{CONTRACT, add, reference};
use crate::common::entries::BINARY;
use crate::op::{Cost, Gradient, Op};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "a + b",
    run: |t| Ok(vec![add(&t["a"], &t["b"])?]),
    reference: |t| vec![t["a"].zip(&t["b"], reference::value)],
    gradient: Gradient::Of(|_, dy| reference::gradient(&dy[0]).map(Some).into()),
    cost: |d| Cost { bytes: 12 * d['R'], flops: d['R'], backward_bytes: 0, backward_flops: 0 },
    ..BINARY
};
