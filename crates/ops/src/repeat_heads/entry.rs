//! The entry of `repeat_heads` in the list.

use super::{CONTRACT, reference, repeat_heads};
use crate::op::{Case, Cost, Given, Gradient, Op, Oversize, Tolerance};

fn times<T>(t: &Given<T>) -> usize {
    t.option("times").unwrap_or(1.0) as usize
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "key and value heads repeated for grouped queries",
    results: &["y"],
    run: |t| Ok(vec![repeat_heads(&t["x"], times(t))?]),
    reference: |t| vec![reference::forward(&t["x"], times(t))],
    gradient: Gradient::Of(|t, dy| vec![Some(reference::gradient(&t["x"], times(t), &dy[0]))]),
    tolerance: Tolerance::F32,
    oversize: Oversize::CutRows,
    cases: &[
        Case::new("once", &[('B', 1), ('T', 1), ('H', 3), ('D', 5)]).options(&[("times", 1.0)]),
        Case::new("odd", &[('B', 2), ('T', 3), ('H', 1), ('D', 17)]).options(&[("times", 3.0)]),
        Case::new("more than a thread's share", &[('B', 1), ('T', 65), ('H', 5), ('D', 64)]).options(&[("times", 7.0)]),
    ],
    largest: 12,
    bench: &[Case::new("prefill 4k", &[('B', 1), ('T', 4_096), ('H', 4), ('D', 128)]).options(&[("times", 4.0)])],
    // the cases repeat differently; four times is what is timed
    cost: |d| {
        let n = d['B'] * d['T'] * d['H'] * d['D'];
        Cost { bytes: 20 * n, flops: 0, backward_bytes: 20 * n, backward_flops: 4 * n }
    },
    ..Op::BASE
};
