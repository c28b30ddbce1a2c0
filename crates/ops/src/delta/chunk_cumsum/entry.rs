//! The entry of `chunk_cumsum` in the list.

use super::{CONTRACT, chunk_cumsum, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "cumulative sums of the log decay in chunks",
    results: &["g_cum"],
    run: |t| Ok(vec![chunk_cumsum(&t["g"])?]),
    reference: |t| vec![reference::forward(&t["g"])],
    gradient: Gradient::Of(|_, dy| vec![Some(reference::gradient(&dy[0]))]),
    tolerance: Tolerance::F32_SUMS,
    fills: &[("g", Fill::Uniform(-1.0, 0.0))],
    cases: &[
        Case::new("one token", &[('B', 1), ('T', 1), ('G', 1)]),
        Case::new("one less than a chunk", &[('B', 2), ('T', 63), ('G', 3)]),
        Case::new("one more than two chunks", &[('B', 3), ('T', 129), ('G', 5)]),
    ],
    fixed: &['B', 'H', 'G'],
    largest: 200,
    bench: &[Case::new("prefill 4k", &[('B', 1), ('T', 4_096), ('G', 32)])],
    cost: |d| {
        let n = d['B'] * d['T'] * d['G'];
        Cost { bytes: 8 * n, flops: n, backward_bytes: 8 * n, backward_flops: n }
    },
    ..Op::BASE
};
