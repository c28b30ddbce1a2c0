//! The entry of `matmul` in the list.

use super::{CONTRACT, Transpose, matmul, reference};
use crate::op::{Case, Cost, Given, Gradient, Op, Oversize, Tolerance};
use crate::transpose;
use alluvium_core::{Backward, Result, Tensor, tape};

/// The contract's shapes are those of untransposed sides: a case for another way of storing swaps the axes first.
fn run(t: &mut Given<Tensor>) -> Result<Vec<Tensor>> {
    let transpose = match (t.flag("left"), t.flag("right")) {
        (false, false) => Transpose::Neither,
        (true, false) => Transpose::Left,
        (false, true) => Transpose::Right,
        (true, true) => Transpose::Both,
    };
    let (mut a, mut b) = (t["a"].clone(), t["b"].clone());
    CONTRACT.check(&[&a, &b])?;
    if transpose.left() {
        a = swapped(&a)?;
    }
    if transpose.right() {
        b = swapped(&b)?;
    }
    Ok(vec![matmul(&a, &b, transpose)?])
}

/// The last two axes change places.
fn swapped(x: &Tensor) -> Result<Tensor> {
    let rank = x.shape().rank();
    let y = transpose(&x.detach(), [rank - 2, rank - 1])?;
    tape::record([x], y, || Swap)
}

struct Swap;

impl Backward<1> for Swap {
    fn op(&self) -> &'static str {
        "swap"
    }

    fn moves(&self) -> bool {
        true
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(swapped(&dy)?)])
    }
}

const LEFT: &[(&str, f64)] = &[("left", 1.0)];
const RIGHT: &[(&str, f64)] = &[("right", 1.0)];
const HALF: &[(&str, f64)] = &[("f16", 1.0)];
const BOTH: &[(&str, f64)] = &[("left", 1.0), ("right", 1.0)];

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "products of matrices, either side stored transposed",
    results: &["c"],
    run,
    reference: |t| vec![reference::forward(&t["a"], &t["b"])],
    gradient: Gradient::Of(|t, dc| reference::gradient(&t["a"], &t["b"], &dc[0]).map(Some).into()),
    tolerance: Tolerance::F32_SUMS,
    oversize: Oversize::CutElements,
    cases: &[
        Case::new("one element", &[('R', 1), ('M', 1), ('K', 1), ('N', 1)]),
        Case::new("odd everywhere", &[('R', 3), ('M', 17), ('K', 7), ('N', 65)]),
        Case::new("left transposed", &[('R', 2), ('M', 19), ('K', 33), ('N', 5)]).options(LEFT),
        Case::new("right transposed", &[('R', 2), ('M', 5), ('K', 63), ('N', 17)]).options(RIGHT),
        Case::new("both transposed", &[('R', 2), ('M', 9), ('K', 21), ('N', 31)]).options(BOTH),
        Case::new("one row", &[('R', 2), ('M', 1), ('K', 129), ('N', 300)]),
        Case::new("one row, right transposed", &[('R', 3), ('M', 1), ('K', 130), ('N', 67)]).options(RIGHT),
        Case::new("one column, left transposed", &[('R', 3), ('M', 130), ('K', 67), ('N', 1)]).options(LEFT),
        Case::new("larger than a thread's share", &[('R', 2), ('M', 129), ('K', 65), ('N', 130)]).options(BOTH),
        Case::new("few rows, a long sum", &[('R', 1), ('M', 3), ('K', 2_500), ('N', 257)]),
    ],
    largest: 40,
    bench: &[
        // as they are stored: `run` would time the swap of a transposed side, too
        Case::new("heads", &[('R', 16), ('M', 256), ('K', 128), ('N', 256)]),
        Case::new("square", &[('R', 1), ('M', 1_024), ('K', 1_024), ('N', 1_024)]),
        Case::new("large", &[('R', 1), ('M', 4_096), ('K', 4_096), ('N', 4_096)]),
        Case::new("large, f16", &[('R', 1), ('M', 4_096), ('K', 4_096), ('N', 4_096)]).options(HALF),
        Case::new("huge", &[('R', 1), ('M', 8_192), ('K', 8_192), ('N', 8_192)]),
        Case::new("huge, f16", &[('R', 1), ('M', 8_192), ('K', 8_192), ('N', 8_192)]).options(HALF),
    ],
    cost: |d| {
        let (r, m, k, n) = (d['R'], d['M'], d['K'], d['N']);
        let (flops, sides) = (2 * r * m * k * n, r * (m * k + k * n));
        let bytes = 4 * (sides + r * m * n);
        Cost { bytes, flops, backward_bytes: bytes + 4 * sides, backward_flops: 2 * flops }
    },
    ..Op::BASE
};
