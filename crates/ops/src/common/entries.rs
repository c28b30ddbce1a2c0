//! What entries of small operations share: cases, benchmark and cost.

use crate::common::reduce::Over;
use crate::op::{Array, Case, Cost, Given, Gradient, Op, Tolerance};
use alluvium_core::{Contract, Result, Shape, Tensor};

/// What an entry replaces.
const NONE: Contract = Contract { op: "", args: &[], rules: &[] };

/// A map of one argument. An entry names its contract, summary, `run`, `reference` and `gradient`, and takes the rest.
pub(crate) const UNARY: Op = Op {
    contract: &NONE,
    summary: "",
    results: &["y"],
    run: |_| Ok(Vec::new()),
    reference: |_| Vec::new(),
    gradient: Gradient::None(""),
    tolerance: Tolerance::F32,
    cases: &[
        Case::new("one element", &[('R', 1)]),
        Case::new("one more than a register", &[('R', 17)]),
        Case::new("odd", &[('R', 3 * 63)]),
        Case::new("more than a thread's share", &[('R', 70_001)]),
    ],
    fixed: &[],
    largest: 3_000,
    bench: &[
        Case::new("one token", &[('R', 4_096)]),
        Case::new("8 million", &[('R', 1 << 23)]),
        Case::new("128 million", &[('R', 1 << 27)]),
    ],
    cost: |d| {
        let n = d['R'];
        Cost { bytes: 8 * n, flops: n, backward_bytes: 12 * n, backward_flops: n }
    },
};

/// A map of two arguments.
pub(crate) const BINARY: Op = Op {
    cost: |d| {
        let n = d['R'];
        Cost { bytes: 12 * n, flops: n, backward_bytes: 20 * n, backward_flops: 2 * n }
    },
    ..UNARY
};

/// The gradient of a map of one argument, from its derivative.
pub(crate) fn slope(x: &Array, dy: &Array, f: impl Fn(f64) -> f64) -> Vec<Option<Array>> {
    vec![Some(x.zip(dy, |x, dy| f(x) * dy))]
}

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

/// What a reduction's case runs over.
pub(crate) fn over<T>(t: &Given<T>) -> Over {
    if t.flag("last") { Over::Last } else { Over::All }
}

/// The rows of `x` that such a case reduces, as an array of two axes, and the shape of the result.
pub(crate) fn reduced(t: &Given<Array>) -> (Array, Vec<usize>) {
    let (x, rows) = (&t["x"], t.dims['R']);
    match over(t) {
        Over::All => (Array::new([1, x.data.len()], x.data.clone()), Vec::new()),
        Over::Last => (Array::new([rows, t.dims['D']], x.data.clone()), vec![rows]),
    }
}

/// A reduction. An entry names its contract, summary, `run`, `reference` and `gradient`, and takes the rest.
pub(crate) const REDUCTION: Op = Op {
    cases: &[
        Case::new("one element", &[('R', 1), ('D', 1)]).options(&[("last", 1.0)]),
        Case::new("odd rows", &[('R', 3), ('D', 63)]).options(&[("last", 1.0)]),
        Case::new("everything", &[('R', 5), ('D', 17)]),
        Case::new("rows longer than a part", &[('R', 3), ('D', 70_001)]).options(&[("last", 1.0)]),
        Case::new("more than a thread's share", &[('R', 700), ('D', 301)]),
    ],
    largest: 70,
    bench: &[
        Case::new("rows", &[('R', 4_096), ('D', 2_048)]).options(&[("last", 1.0)]),
        Case::new("everything", &[('R', 4_096), ('D', 2_048)]),
    ],
    cost: |d| {
        let n = d['R'] * d['D'];
        Cost { bytes: 4 * n, flops: n, backward_bytes: 4 * n, backward_flops: 0 }
    },
    ..UNARY
};
