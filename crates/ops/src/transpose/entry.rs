//! The entry of `transpose` in the list.

use super::{CONTRACT, reference, transpose};
use crate::common::entries::{AXIS_CASES, as_given, seen, seen_array, seen_tensor};
use crate::op::{Array, Case, Cost, Given, Gradient, Op, Tolerance};

/// Neighbours, and in three axes the outer two or the outermost and the last.
fn axes<T>(t: &Given<T>) -> [usize; 2] {
    let (shape, _) = seen(t);
    if shape.len() == 3 && shape[1] % 2 == 1 { [2, 0] } else { [0, 1] }
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "two axes swapped",
    results: &["y"],
    run: |t| Ok(vec![transpose(&seen_tensor(t)?, axes(t))?]),
    reference: |t| vec![reference::forward(&seen_array(t), axes(t))],
    gradient: Gradient::Of(|t, dy| {
        let dx: Array = reference::forward(&dy[0], axes(t));
        as_given(t, dx)
    }),
    tolerance: Tolerance::EXACT,
    cases: AXIS_CASES,
    largest: 70,
    bench: &[Case::new("a square", &[('R', 2_048), ('D', 2_048)]).options(&[("axis", 1.0)])],
    cost: |d| {
        let n = d['R'] * d['D'];
        Cost { bytes: 8 * n, flops: 0, backward_bytes: 8 * n, backward_flops: 0 }
    },
    ..Op::BASE
};
