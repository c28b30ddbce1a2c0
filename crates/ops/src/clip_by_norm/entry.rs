//! The entry of `clip_by_norm` in the list.

use super::{CONTRACT, WHY, clip_by_norm, reference};
use crate::op::{Case, Cost, Fill, Given, Gradient, Op, Tolerance};

fn most<T>(t: &Given<T>) -> f32 {
    t.option("most").map_or(1.0, |most| most as f32)
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "a tensor scaled so that a norm stays below a bound",
    results: &["clipped"],
    run: |t| Ok(vec![clip_by_norm(t["x"].clone(), &t["norm"], most(t))?]),
    reference: |t| vec![reference::clip(&t["x"], &t["norm"], f64::from(most(t)))],
    gradient: Gradient::None(WHY),
    tolerance: Tolerance::F32,
    fills: &[("norm", Fill::Uniform(2.0, 3.0))],
    cases: &[
        Case::new("one number", &[('R', 1)]),
        Case::new("odd, shortened", &[('R', 65)]),
        Case::new("short enough", &[('R', 63)]).options(&[("most", 7.0)]),
        Case::new("above one thread's work", &[('R', 100_003)]),
    ],
    largest: 2_000,
    bench: &[Case::new("16 M numbers", &[('R', 1 << 24)])],
    cost: |d| Cost { bytes: 8 * d['R'], flops: d['R'], ..Cost::default() },
    ..Op::BASE
};
