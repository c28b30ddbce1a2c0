//! The entry of `write_rows` in the list.

use super::{CONTRACT, NO_GRADIENT, reference, write_rows};
use crate::op::{Case, Cost, Given, Gradient, Op, Tolerance};

/// The last place where the rows fit.
fn at<T>(t: &Given<T>) -> usize {
    t.dims['S'] - t.dims['N']
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "rows written into a cache, in place if it is not shared",
    results: &["cache"],
    run: |t| Ok(vec![write_rows(t.take("cache")?, &t["rows"], at(t))?]),
    reference: |t| vec![reference::forward(&t["cache"], &t["rows"], at(t))],
    gradient: Gradient::None(NO_GRADIENT),
    tolerance: Tolerance::EXACT,
    cases: &[
        Case::new("one row of one", &[('S', 1), ('N', 1), ('R', 1)]),
        Case::new("the last row", &[('S', 65), ('N', 1), ('R', 17)]),
        Case::new("several rows", &[('S', 9), ('N', 4), ('R', 63)]),
    ],
    largest: 70,
    bench: &[Case::new("one token in 4k", &[('S', 4_096), ('N', 1), ('R', 512)])],
    cost: |d| Cost { bytes: 8 * d['N'] * d['R'], ..Cost::default() },
    ..Op::BASE
};
