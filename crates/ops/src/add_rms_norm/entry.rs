//! The entry of `add_rms_norm` in the list.

use super::{AddRmsNorm, CONTRACT, WHY, add_rms_norm, reference};
use crate::op::{Case, Cost, Given, Gradient, Op, Oversize, Tolerance};

fn eps<T>(t: &Given<T>) -> f32 {
    t.option("eps").map_or(1e-6, |eps| eps as f32)
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "the sum of two tensors and its RMSNorm",
    results: &["sum", "y"],
    run: |t| {
        let AddRmsNorm { sum, y } = add_rms_norm(&t["x"], &t["r"], &t["w"], eps(t))?;
        Ok(vec![sum, y])
    },
    reference: |t| reference::forward(t, f64::from(eps(t))),
    gradient: Gradient::None(WHY),
    tolerance: Tolerance::F32,
    oversize: Oversize::CutRows,
    cases: &[
        Case::new("two elements", &[('R', 1), ('D', 2)]),
        Case::new("odd width", &[('R', 3), ('D', 63)]),
        Case::new("one more than a register", &[('R', 5), ('D', 17)]),
        Case::new("an eps as large as the squares", &[('R', 4), ('D', 33)]).options(&[("eps", 0.5)]),
        Case::new("wider than a workgroup", &[('R', 2), ('D', 9_000)]),
        Case::new("more rows than one grid axis", &[('R', 70_000), ('D', 8)]),
    ],
    largest: 70,
    bench: &[Case::new("decode", &[('R', 1), ('D', 2_048)]), Case::new("prefill 4k", &[('R', 4_096), ('D', 2_048)])],
    cost: |d| {
        let n = d['R'] * d['D'];
        Cost { bytes: 16 * n, flops: 5 * n, ..Cost::default() }
    },
    ..Op::BASE
};
