//! The entry of `gelu_approx` in the list.

use super::{CONTRACT, gelu_approx, reference};
use crate::common::entries::{UNARY, slope};
use crate::op::{Gradient, Op};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "x·σ(2u), u = √(2/π)·(x + 0.044715·x³)",
    run: |t| Ok(vec![gelu_approx(&t["x"])?]),
    reference: |t| vec![t["x"].map(reference::value)],
    gradient: Gradient::Of(|t, dy| slope(&t["x"], &dy[0], reference::slope)),
    ..UNARY
};
