//! The entry of `combine_experts` in the list.

use super::{CONTRACT, combine_experts, reference};
use crate::op::{Case, Cost, Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "the weighted sum of the results of each token's experts",
    results: &["z"],
    run: |t| Ok(vec![combine_experts(&t["y"], &t["weights"])?]),
    reference: reference::forward,
    gradient: Gradient::Of(reference::gradient),
    tolerance: Tolerance::F32,
    cases: &[
        Case::new("one element", &[('N', 1), ('K', 1), ('D', 1)]),
        Case::new("odd width", &[('N', 3), ('K', 2), ('D', 63)]),
        Case::new("a width of quads", &[('N', 3), ('K', 3), ('D', 68)]),
        Case::new("many choices", &[('N', 5), ('K', 10), ('D', 129)]),
        Case::new("more tokens than a thread takes", &[('N', 1_001), ('K', 3), ('D', 65)]),
    ],
    largest: 40,
    bench: &[
        Case::new("decode", &[('N', 1), ('K', 10), ('D', 2_048)]),
        Case::new("prefill 512", &[('N', 512), ('K', 10), ('D', 2_048)]),
    ],
    cost: |d| {
        let (n, out) = (d['N'] * d['K'] * d['D'], d['N'] * d['D']);
        let bytes = 4 * (n + out);
        Cost { bytes, flops: 2 * n, backward_bytes: 4 * (2 * n + out), backward_flops: 3 * n }
    },
    ..Op::BASE
};
