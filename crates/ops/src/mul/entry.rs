//! The entry of `mul` in the list.

use super::{CONTRACT, mul, reference};
use crate::common::entries::BINARY;
use crate::op::{Gradient, Op};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "a·b",
    run: |t| Ok(vec![mul(&t["a"], &t["b"])?]),
    reference: |t| vec![t["a"].zip(&t["b"], reference::value)],
    gradient: Gradient::Of(|t, dy| {
        let (a, b) = (&t["a"], &t["b"]);
        vec![
            Some(a.zip(b, |a, b| reference::slopes(a, b).0).zip(&dy[0], |slope, dy| slope * dy)),
            Some(a.zip(b, |a, b| reference::slopes(a, b).1).zip(&dy[0], |slope, dy| slope * dy)),
        ]
    }),
    ..BINARY
};
