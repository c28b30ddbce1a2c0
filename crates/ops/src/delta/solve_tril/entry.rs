//! The entry of `solve_tril` in the list.

use super::{CONTRACT, reference, solve_tril};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "inverse of a chunk's unit triangular matrix",
    results: &["a"],
    run: |t| Ok(vec![solve_tril(&t["l"])?]),
    reference: |t| vec![reference::forward(&t["l"])],
    gradient: Gradient::Of(|t, dy| vec![Some(reference::gradient(&t["l"], &dy[0]))]),
    tolerance: Tolerance::F32_SUMS,
    fills: &[("l", Fill::StrictLower(0.1))],
    cases: &[
        Case::new("two tokens", &[('B', 1), ('T', 2), ('G', 1)]),
        Case::new("odd heads", &[('B', 2), ('T', 17), ('G', 3)]),
        Case::new("one less than two chunks", &[('B', 1), ('T', 127), ('G', 2)]),
        Case::new("one more than a chunk", &[('B', 1), ('T', 65), ('G', 1)]),
    ],
    fixed: &['B', 'H', 'G'],
    largest: 130,
    bench: &[Case::new("T 4096, 8 heads", &[('B', 1), ('T', 4_096), ('G', 8)])],
    cost: |d| {
        let (rows, c) = (d['B'] * d['T'] * d['G'], d['T'].min(64));
        Cost { bytes: 512 * rows, flops: rows * c * c / 3, backward_bytes: 768 * rows, backward_flops: rows * c * c }
    },
    ..Op::BASE
};
