//! The entry of `l2_norm` in the list.

use super::{CONTRACT, l2_norm, reference};
use crate::op::{Case, Cost, Fill, Given, Gradient, Op, Oversize, Tolerance};

fn eps<T>(t: &Given<T>) -> f32 {
    t.option("eps").unwrap_or(1e-6) as f32
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "L2 normalization of rows",
    results: &["y"],
    run: |t| Ok(vec![l2_norm(&t["x"], eps(t))?]),
    reference: |t| vec![reference::forward(&t["x"], f64::from(eps(t)))],
    gradient: Gradient::Of(|t, dy| vec![Some(reference::gradient(&t["x"], f64::from(eps(t)), &dy[0]))]),
    tolerance: Tolerance::F32,
    oversize: Oversize::CutRows,
    cases: &[
        Case::new("two elements", &[('R', 1), ('D', 2)]),
        Case::new("odd width", &[('R', 3), ('D', 63)]),
        Case::new("one more than a register", &[('R', 5), ('D', 17)]),
        Case::new("heads", &[('R', 130), ('D', 128)]),
        Case::new("eps as large as the rows", &[('R', 9), ('D', 65)])
            .filled(&[("x", Fill::Normal(0.01))])
            .options(&[("eps", 0.01)]),
        Case::new("wider than a workgroup", &[('R', 2), ('D', 5_000)]),
        Case::new("more rows than one grid axis", &[('R', 70_000), ('D', 8)]),
    ],
    // a row of one element is its own norm: its gradient is what cancelling leaves over
    fixed: &['D'],
    largest: 70,
    bench: &[Case::new("decode", &[('R', 32), ('D', 128)]), Case::new("prefill 4k", &[('R', 131_072), ('D', 128)])],
    cost: |d| {
        let n = d['R'] * d['D'];
        Cost { bytes: 8 * n, flops: 3 * n, backward_bytes: 12 * n, backward_flops: 5 * n }
    },
    ..Op::BASE
};
