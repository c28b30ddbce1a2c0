//! Reductions: sums, means, maxima and running sums, of rows or of all elements.

mod cpu;
mod cumsum;
mod gpu;
mod max;
mod sums;

pub(crate) use cumsum::OP as CUMSUM;
pub use cumsum::cumsum;
pub(crate) use max::{ARGMAX, MAX};
pub use max::{argmax, max};
pub(crate) use sums::{MEAN, SUM};
pub use sums::{mean, sum};

use crate::op::{Array, Case, Cost, Given, Op};
use alluvium_core::{Dims, Result, Shape, Tensor};

/// The axes of a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// All elements: the result has the shape `[]`.
    All,
    /// The last axis, which the result lacks.
    Last,
}

/// The end of a row that a running sum begins at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Start,
    End,
}

impl Over {
    /// The length of what is reduced to one element, and the shape of the result.
    fn rows(self, dims: &Dims) -> (usize, Shape) {
        match self {
            Over::All => (dims['R'] * dims['D'], Shape::from([])),
            Over::Last => (dims['D'], dims.leading()),
        }
    }

    /// The tensor that is reduced. A tensor without axes has one element along an axis if all elements are reduced.
    fn axis(self, x: &Tensor) -> Result<Tensor> {
        if self == Over::All && x.shape().rank() == 0 { x.reshape([1]) } else { Ok(x.clone()) }
    }
}

/// The entry of a reduction; an operation sets its contract, summary, `run`, `reference` and `gradient`.
const REDUCTION: Op = Op {
    cases: &[
        Case::new("one element", &[('R', 1), ('D', 1)]).options(&[("last", 1.0)]),
        Case::new("odd rows", &[('R', 3), ('D', 63)]).options(&[("last", 1.0)]),
        Case::new("everything", &[('R', 5), ('D', 17)]),
        Case::new("rows longer than a part", &[('R', 3), ('D', 70_001)]).options(&[("last", 1.0)]),
        Case::new("more than a thread's share", &[('R', 700), ('D', 301)]),
    ],
    bench: &[
        Case::new("rows", &[('R', 4_096), ('D', 2_048)]).options(&[("last", 1.0)]),
        Case::new("everything", &[('R', 4_096), ('D', 2_048)]),
    ],
    cost: |d| {
        let n = d['R'] * d['D'];
        Cost { bytes: 4 * n, flops: n, backward_bytes: 4 * n, backward_flops: 0 }
    },
    ..Op::BASE
};

/// The axes of a case.
fn over<T>(t: &Given<T>) -> Over {
    if t.flag("last") { Over::Last } else { Over::All }
}

/// The reference of a reduction to one element a row, from the function of a row.
fn by_row(t: &Given<Array>, f: impl Fn(&[f64]) -> f64) -> Vec<Array> {
    let (x, shape) = reduced(t);
    vec![Array::new(shape, x.rows().map(f).collect())]
}

/// The gradient of such a reference: `f(row, dy, dx)` writes that of a row.
fn gradient_by_row(t: &Given<Array>, dy: &Array, f: impl Fn(&[f64], f64, &mut [f64])) -> Vec<Option<Array>> {
    let x = reduced(t).0;
    let mut dx = Array::zeros(t["x"].shape.clone());
    for ((row, dy), dx) in x.rows().zip(&dy.data).zip(dx.data.chunks_exact_mut(x.width())) {
        f(row, *dy, dx);
    }
    vec![Some(dx)]
}

/// The rows of `x` that a case reduces, as an array of two axes, and the shape of the result.
fn reduced(t: &Given<Array>) -> (Array, Vec<usize>) {
    let (x, rows) = (&t["x"], t.dims['R']);
    match over(t) {
        Over::All => (Array::new([1, x.data.len()], x.data.clone()), Vec::new()),
        Over::Last => (Array::new([rows, t.dims['D']], x.data.clone()), vec![rows]),
    }
}
