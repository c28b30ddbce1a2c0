//! The entry of `silu` in the list.

use super::{CONTRACT, reference, silu};
use crate::common::entries::{UNARY, slope};
use crate::op::{Gradient, Op};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "x·σ(x)",
    run: |t| Ok(vec![silu(&t["x"])?]),
    reference: |t| vec![t["x"].map(reference::value)],
    gradient: Gradient::Of(|t, dy| slope(&t["x"], &dy[0], reference::slope)),
    ..UNARY
};
