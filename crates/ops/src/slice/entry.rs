//! The entry of `slice` in the list.

use super::{CONTRACT, reference, slice};
use crate::common::entries::{AXIS_CASES, as_given, seen, seen_array, seen_tensor};
use crate::op::{Case, Cost, Given, Gradient, Op, Oversize, Tolerance};
use std::ops::Range;

/// The middle of the axis: something is left out before and after where it is long enough.
fn range<T>(t: &Given<T>) -> (usize, Range<usize>) {
    let (shape, axis) = seen(t);
    (axis, shape[axis] / 3..shape[axis] - shape[axis] / 4)
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "a slice of an axis",
    results: &["y"],
    run: |t| {
        let (axis, range) = range(t);
        Ok(vec![slice(&seen_tensor(t)?, axis, range)?])
    },
    reference: |t| {
        let (axis, range) = range(t);
        vec![reference::forward(&seen_array(t), axis, range)]
    },
    gradient: Gradient::Of(|t, dy| {
        let (axis, range) = range(t);
        as_given(t, reference::gradient(&seen_array(t), axis, range, &dy[0]))
    }),
    tolerance: Tolerance::EXACT,
    oversize: Oversize::CutRows,
    cases: AXIS_CASES,
    largest: 70,
    bench: &[Case::new("prefill 4k", &[('R', 4_096), ('D', 8_192)]).options(&[("axis", 1.0)])],
    cost: |d| {
        let n = d['R'] * d['D'];
        Cost { bytes: 4 * n, flops: 0, backward_bytes: 6 * n, backward_flops: 0 }
    },
    ..Op::BASE
};
