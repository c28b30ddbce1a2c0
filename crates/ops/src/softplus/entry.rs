//! The entry of `softplus` in the list.

use super::{CONTRACT, reference, softplus};
use crate::common::entries::{UNARY, slope};
use crate::op::{Gradient, Op};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "log(1 + eˣ)",
    run: |t| Ok(vec![softplus(&t["x"])?]),
    reference: |t| vec![t["x"].map(reference::value)],
    gradient: Gradient::Of(|t, dy| slope(&t["x"], &dy[0], reference::slope)),
    ..UNARY
};
