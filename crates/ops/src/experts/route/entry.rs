//! The entry of `route` in the list.

use super::{CONTRACT, RouteOutput, Routing, reference, route};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "the most likely experts of each token and their weights",
    results: &["weights", "experts"],
    run: |t| {
        let top_k = t.option("top_k").unwrap_or(1.0) as usize;
        let routing = Routing { top_k, norm_topk_prob: t.flag("norm_topk_prob") };
        let RouteOutput { weights, experts } = route(&t["logits"], routing)?;
        Ok(vec![weights, experts])
    },
    reference: reference::forward,
    gradient: Gradient::Of(reference::gradient),
    tolerance: Tolerance::F32,
    cases: &[
        Case::new("two of three", &[('N', 1), ('E', 3)]).options(&[("top_k", 2.0), ("norm_topk_prob", 1.0)]),
        Case::new("all of them", &[('N', 3), ('E', 5)]).options(&[("top_k", 5.0), ("norm_topk_prob", 1.0)]),
        Case::new("not normalized", &[('N', 17), ('E', 33)]).options(&[("top_k", 4.0)]),
        Case::new("far apart", &[('N', 5), ('E', 17)])
            .filled(&[("logits", Fill::Normal(5.0))])
            .options(&[("top_k", 3.0), ("norm_topk_prob", 1.0)]),
        Case::new("as many as models have", &[('N', 65), ('E', 512)])
            .options(&[("top_k", 10.0), ("norm_topk_prob", 1.0)]),
        Case::new("more tokens than a thread takes", &[('N', 3_001), ('E', 9)])
            .options(&[("top_k", 2.0), ("norm_topk_prob", 1.0)]),
    ],
    fixed: &['E'],
    largest: 70,
    bench: &[
        Case::new("decode", &[('N', 1), ('E', 512)]).options(&[("top_k", 10.0), ("norm_topk_prob", 1.0)]),
        Case::new("prefill 4k", &[('N', 4_096), ('E', 512)]).options(&[("top_k", 10.0), ("norm_topk_prob", 1.0)]),
    ],
    cost: |d| {
        let n = d['N'] * d['E'];
        Cost { bytes: 4 * n, flops: 2 * n, backward_bytes: 8 * n, backward_flops: 2 * n }
    },
    ..Op::BASE
};
