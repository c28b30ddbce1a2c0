//! The entry of `gdn_gate` in the list.

use super::{CONTRACT, gdn_gate, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "decay and beta of the gated delta rule",
    results: &["g", "beta"],
    run: |t| {
        let gates = gdn_gate(&t["a"], &t["b"], &t["a_log"], &t["dt_bias"])?;
        Ok(vec![gates.g, gates.beta])
    },
    reference: reference::forward,
    gradient: Gradient::Of(reference::gradient),
    // the gradients to a_log and dt_bias are sums over all rows
    tolerance: Tolerance::F32_SUMS,
    fills: &[("a_log", Fill::Uniform(-2.0, 2.7))],
    cases: &[
        Case::new("one gate", &[('R', 1), ('G', 1)]),
        Case::new("odd heads", &[('R', 65), ('G', 17)]),
        Case::new("more rows than one thread takes", &[('R', 3_001), ('G', 3)]),
    ],
    largest: 70,
    bench: &[Case::new("decode", &[('R', 1), ('G', 32)]), Case::new("prefill 4k", &[('R', 4_096), ('G', 32)])],
    cost: |d| {
        let n = d['R'] * d['G'];
        Cost { bytes: 16 * n, flops: 10 * n, backward_bytes: 28 * n, backward_flops: 12 * n }
    },
    ..Op::BASE
};
