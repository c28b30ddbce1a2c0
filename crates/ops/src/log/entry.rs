//! The entry of `log` in the list.

use super::{CONTRACT, log, reference};
use crate::common::entries::{UNARY, slope};
use crate::op::{Gradient, Op};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "log x",
    run: |t| Ok(vec![log(&t["x"])?]),
    reference: |t| vec![t["x"].map(reference::value)],
    gradient: Gradient::Of(|t, dy| slope(&t["x"], &dy[0], reference::slope)),
    ..UNARY
};
