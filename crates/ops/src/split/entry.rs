//! The entry of `split` in the list.

use super::{CONTRACT, reference, split};
use crate::common::entries::{AXIS_CASES, as_given, seen, seen_array, seen_tensor};
use crate::op::{Case, Cost, Given, Gradient, Op, Oversize, Tolerance};

/// Unequal parts; one where the axis has one place.
fn sizes<T>(t: &Given<T>) -> (usize, Vec<usize>) {
    let (shape, axis) = seen(t);
    let (first, second) = (shape[axis] / 3, shape[axis] / 4);
    let sizes = [first, second, shape[axis] - first - second];
    (axis, sizes.into_iter().filter(|&size| size > 0).collect())
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "an axis cut into parts",
    results: &["first", "second", "third"],
    run: |t| {
        let (axis, sizes) = sizes(t);
        split(&seen_tensor(t)?, &sizes, axis)
    },
    reference: |t| {
        let (axis, sizes) = sizes(t);
        reference::forward(&seen_array(t), &sizes, axis)
    },
    gradient: Gradient::Of(|t, dy| {
        let (axis, sizes) = sizes(t);
        as_given(t, reference::gradient(&seen_array(t), &sizes, axis, dy))
    }),
    tolerance: Tolerance::EXACT,
    oversize: Oversize::CutRows,
    cases: AXIS_CASES,
    largest: 70,
    bench: &[Case::new("prefill 4k", &[('R', 4_096), ('D', 8_192)]).options(&[("axis", 1.0)])],
    cost: |d| {
        let n = d['R'] * d['D'];
        Cost { bytes: 8 * n, flops: 0, backward_bytes: 8 * n, backward_flops: 0 }
    },
    ..Op::BASE
};
