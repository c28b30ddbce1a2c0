//! The entry of `rms_norm` in the list.

use super::{CONTRACT, reference, rms_norm};
use crate::op::{Case, Cost, Given, Gradient, Op, Oversize, Tolerance};

fn eps<T>(t: &Given<T>) -> f32 {
    t.option("eps").map_or(1e-6, |eps| eps as f32)
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "root-mean-square normalization of rows, scaled",
    results: &["y"],
    run: |t| Ok(vec![rms_norm(&t["x"], &t["w"], eps(t))?]),
    reference: |t| vec![reference::forward(&t["x"], &t["w"], f64::from(eps(t)))],
    gradient: Gradient::Of(|t, dy| reference::gradient(&t["x"], &t["w"], f64::from(eps(t)), &dy[0]).map(Some).into()),
    tolerance: Tolerance::F32,
    oversize: Oversize::CutRows,
    cases: &[
        Case::new("two elements", &[('R', 1), ('D', 2)]),
        Case::new("odd width", &[('R', 3), ('D', 63)]),
        Case::new("one more than a register", &[('R', 5), ('D', 17)]),
        Case::new("an eps as large as the squares", &[('R', 4), ('D', 33)]).options(&[("eps", 0.5)]),
        Case::new("wider than a workgroup", &[('R', 2), ('D', 5_000)]),
        Case::new("more rows than one grid axis", &[('R', 70_000), ('D', 8)]),
    ],
    // a row of one element is its own norm: its gradient is what cancelling leaves over
    fixed: &['D'],
    largest: 70,
    bench: &[
        Case::new("decode", &[('R', 1), ('D', 2_048)]),
        Case::new("prefill 4k", &[('R', 4_096), ('D', 2_048)]),
        Case::new("prefill 8k, wide", &[('R', 8_192), ('D', 4_096)]),
        Case::new("prefill 64k", &[('R', 65_536), ('D', 2_048)]),
    ],
    cost: |d| {
        let n = d['R'] * d['D'];
        Cost { bytes: 8 * n, flops: 4 * n, backward_bytes: 12 * n, backward_flops: 9 * n }
    },
    ..Op::BASE
};
