//! The entry of `newton_schulz` in the list.

use super::{CONTRACT, WHY, newton_schulz, reference};
use crate::op::{Case, Cost, Given, Gradient, Op, Tolerance};

fn steps<T>(t: &Given<T>) -> usize {
    t.option("steps").map_or(5, |steps| steps as usize)
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "orthogonalization for Muon: singular values near 1, by a quintic iteration",
    results: &["y"],
    run: |t| Ok(vec![newton_schulz(&t["x"], steps(t))?]),
    reference: |t| vec![reference::forward(&t["x"], steps(t))],
    gradient: Gradient::None(WHY),
    // five steps make a rounding at a small singular value up to 3.4445⁵ = 485 times larger
    tolerance: Tolerance { relative: 2e-5, worst: 2e-4, matrix_units: 0.0 },
    cases: &[
        Case::new("one number", &[('M', 1), ('N', 1)]),
        Case::new("wide", &[('M', 5), ('N', 33)]),
        Case::new("tall", &[('M', 65), ('N', 17)]),
        Case::new("square", &[('M', 31), ('N', 31)]),
        Case::new("no step", &[('M', 3), ('N', 4)]).options(&[("steps", 0.0)]),
        Case::new("one step of a row", &[('M', 1), ('N', 63)]).options(&[("steps", 1.0)]),
        Case::new("above one thread's work", &[('M', 130), ('N', 65)]),
    ],
    largest: 40,
    bench: &[Case::new("1024 × 1024", &[('M', 1_024), ('N', 1_024)]), Case::new("tall", &[('M', 3_072), ('N', 1_024)])],
    cost: |d| {
        let (short, long) = (d['M'].min(d['N']), d['M'].max(d['N']));
        Cost { bytes: 8 * short * long, flops: 5 * 2 * short * short * (2 * long + short), ..Cost::default() }
    },
    ..Op::BASE
};
