//! The entry of `swiglu` in the list.

use super::{CONTRACT, reference, swiglu};
use crate::common::entries::BINARY;
use crate::op::{Gradient, Op};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "silu(gate)·up",
    run: |t| Ok(vec![swiglu(&t["gate"], &t["up"])?]),
    reference: |t| vec![t["gate"].zip(&t["up"], reference::value)],
    gradient: Gradient::Of(|t, dy| {
        let (a, b) = (&t["gate"], &t["up"]);
        vec![
            Some(a.zip(b, |a, b| reference::slopes(a, b).0).zip(&dy[0], |slope, dy| slope * dy)),
            Some(a.zip(b, |a, b| reference::slopes(a, b).1).zip(&dy[0], |slope, dy| slope * dy)),
        ]
    }),
    ..BINARY
};
