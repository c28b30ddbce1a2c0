//! The entry of `cumsum` in the list.

use super::{CONTRACT, cumsum, reference};
use crate::common::entries::REDUCTION;
use crate::op::{Case, Cost, Gradient, Op};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "running sums of rows",
    run: |t| Ok(vec![cumsum(&t["x"])?]),
    reference: |t| vec![reference::forward(&t["x"])],
    gradient: Gradient::Of(|t, dy| vec![Some(reference::gradient(&t["x"], &dy[0]))]),
    cases: &[
        Case::new("one element", &[('R', 1), ('D', 1)]),
        Case::new("odd rows", &[('R', 3), ('D', 63)]),
        Case::new("a long row", &[('R', 1), ('D', 70_001)]),
        Case::new("many rows", &[('R', 7_001), ('D', 17)]),
    ],
    bench: &[Case::new("rows", &[('R', 4_096), ('D', 2_048)])],
    cost: |d| {
        let n = d['R'] * d['D'];
        Cost { bytes: 8 * n, flops: n, backward_bytes: 8 * n, backward_flops: n }
    },
    ..REDUCTION
};
