//! Cases that the entries of operations along an axis share.

use crate::op::{Array, Case, Given};
use alluvium_core::{Result, Shape, Tensor};

/// Cases of an operation along an axis: `x` is `[R, D]`, and [`seen`] says what is made of it.
pub(crate) const AXIS_CASES: &[Case] = &[
    Case::new("first axis", &[('R', 7), ('D', 5)]).options(&[("axis", 0.0)]),
    Case::new("last axis", &[('R', 3), ('D', 17)]).options(&[("axis", 1.0)]),
    Case::new("between two others", &[('R', 10), ('D', 3)]).options(&[("axis", 2.0)]),
    Case::new("between two others, both even", &[('R', 8), ('D', 7)]).options(&[("axis", 2.0)]),
    Case::new("between two others, both even, by quads", &[('R', 8), ('D', 12)]).options(&[("axis", 2.0)]),
    Case::new("one place", &[('R', 1), ('D', 63)]).options(&[("axis", 0.0)]),
    Case::new("more than a thread's share", &[('R', 70), ('D', 1_001)]).options(&[("axis", 2.0)]),
];

/// The shape and the axis that a case of [`AXIS_CASES`] is about: rows, columns, or an axis between two others.
pub(crate) fn seen<T>(t: &Given<T>) -> (Vec<usize>, usize) {
    let (rows, width) = (t.dims['R'], t.dims['D']);
    match t.option("axis") {
        Some(2.0) if rows % 2 == 0 => (vec![2, rows / 2, width], 1),
        Some(1.0) => (vec![rows, width], 1),
        _ => (vec![rows, width], 0),
    }
}

/// `x` of such a case, seen so.
pub(crate) fn seen_array(t: &Given<Array>) -> Array {
    Array::new(seen(t).0, t["x"].data.clone())
}

/// As [`seen_array`], a view; a tensor that the check has broken stays as it is.
pub(crate) fn seen_tensor(t: &Given<Tensor>) -> Result<Tensor> {
    let (x, shape) = (&t["x"], Shape::new(&seen(t).0)?);
    if x.elements() == shape.elements() { x.reshape(shape) } else { Ok(x.clone()) }
}

/// The gradient of such a case in the shape of its argument.
pub(crate) fn as_given(t: &Given<Array>, dx: Array) -> Vec<Option<Array>> {
    vec![Some(Array::new(t["x"].shape.clone(), dx.data))]
}
