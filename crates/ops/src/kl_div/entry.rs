//! The entry of `kl_div` in the list.

use super::{CONTRACT, kl_div, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};

/// A few tokens take most of a row, as in a trained model; f16 cannot hold the gradients of thousands of equal ones.
const SHARP: &[(&str, Fill)] = &[("logits", Fill::Normal(4.0)), ("teacher", Fill::Normal(4.0))];

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "Kullback-Leibler divergence of a student from a teacher",
    results: &["loss"],
    run: |t| Ok(vec![kl_div(&t["logits"], &t["teacher"])?]),
    reference: |t| vec![reference::forward(&t["logits"], &t["teacher"])],
    gradient: Gradient::Of(|t, dy| reference::gradient(&t["logits"], &t["teacher"], dy[0].data[0]).map(Some).into()),
    tolerance: Tolerance::F32_SUMS,
    cases: &[
        Case::new("two words", &[('R', 1), ('V', 2)]),
        Case::new("odd", &[('R', 3), ('V', 65)]),
        Case::new("a width of quads", &[('R', 3), ('V', 68)]),
        Case::new("many short rows", &[('R', 301), ('V', 17)]),
        Case::new("more words than are summed at once", &[('R', 1), ('V', 4_501)]).filled(SHARP),
        Case::new("above one thread's work", &[('R', 65), ('V', 1_023)]),
    ],
    largest: 70,
    bench: &[Case::new("64 rows of 248 k words", &[('R', 64), ('V', 248_320)])],
    cost: |d| {
        let n = d['R'] * d['V'];
        Cost { bytes: 8 * n, flops: 24 * n, backward_bytes: 16 * n, backward_flops: 30 * n }
    },
    ..Op::BASE
};
