//! The entry of `sub` in the list.

use super::{CONTRACT, reference, sub};
use crate::common::entries::BINARY;
use crate::op::{Cost, Gradient, Op};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "a − b",
    run: |t| Ok(vec![sub(&t["a"], &t["b"])?]),
    reference: |t| vec![t["a"].zip(&t["b"], reference::value)],
    gradient: Gradient::Of(|_, dy| reference::gradient(&dy[0]).map(Some).into()),
    cost: |d| Cost { bytes: 12 * d['R'], flops: d['R'], backward_bytes: 8 * d['R'], backward_flops: d['R'] },
    ..BINARY
};
