//! The entry of `sigmoid` in the list.

use super::{CONTRACT, reference, sigmoid};
use crate::common::entries::{UNARY, slope};
use crate::op::{Gradient, Op};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "1 / (1 + e⁻ˣ)",
    run: |t| Ok(vec![sigmoid(&t["x"])?]),
    reference: |t| vec![t["x"].map(reference::value)],
    gradient: Gradient::Of(|t, dy| slope(&t["x"], &dy[0], reference::slope)),
    ..UNARY
};
