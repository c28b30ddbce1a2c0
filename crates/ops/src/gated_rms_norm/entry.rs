//! The entry of `gated_rms_norm` in the list.

use super::{CONTRACT, gated_rms_norm, reference};
use crate::op::{Case, Cost, Fill, Given, Gradient, Op, Oversize, Tolerance};

fn eps<T>(t: &Given<T>) -> f32 {
    t.option("eps").map_or(1e-6, |eps| eps as f32)
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "RMSNorm with a SiLU gate",
    results: &["y"],
    run: |t| Ok(vec![gated_rms_norm(&t["x"], &t["z"], &t["w"], eps(t))?]),
    reference: |t| vec![reference::forward(t, f64::from(eps(t)))],
    gradient: Gradient::Of(|t, dy| reference::gradient(t, f64::from(eps(t)), &dy[0]).map(Some).into()),
    // the sum behind dw is as long as there are rows
    tolerance: Tolerance::F32_SUMS,
    oversize: Oversize::CutRows,
    cases: &[
        Case::new("two elements", &[('R', 1), ('D', 2)]),
        Case::new("odd width", &[('R', 3), ('D', 63)]),
        Case::new("one more than a register", &[('R', 5), ('D', 17)]),
        Case::new("an eps as large as the squares", &[('R', 4), ('D', 33)]).options(&[("eps", 0.5)]),
        Case::new("wide gates", &[('R', 7), ('D', 33)]).filled(&[("z", Fill::Uniform(-30.0, 30.0))]),
        Case::new("heads", &[('R', 1_030), ('D', 128)]),
        Case::new("wider than a workgroup", &[('R', 2), ('D', 5_000)]),
        Case::new("more rows than one grid axis", &[('R', 70_000), ('D', 8)]),
    ],
    // a row of one element is its own norm: its gradient is what cancelling leaves over
    fixed: &['D'],
    largest: 70,
    bench: &[
        Case::new("decode", &[('R', 32), ('D', 128)]),
        Case::new("prefill 4k", &[('R', 131_072), ('D', 128)]),
        Case::new("prefill 16k", &[('R', 524_288), ('D', 128)]),
    ],
    cost: |d| {
        let n = d['R'] * d['D'];
        Cost { bytes: 12 * n, flops: 9 * n, backward_bytes: 20 * n, backward_flops: 20 * n }
    },
    ..Op::BASE
};
