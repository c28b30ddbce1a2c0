//! The entry of `concat` in the list.

use super::{CONTRACT, concat, reference};
use crate::op::{Case, Cost, Given, Gradient, Op, Oversize, Tolerance};

fn parts<T>(t: &Given<T>) -> Vec<&T> {
    t.args.iter().filter_map(|(_, part)| part.as_ref()).collect()
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "concatenation along an axis",
    results: &["y"],
    run: |t| Ok(vec![concat(&parts(t), 1)?]),
    reference: |t| vec![reference::forward(&parts(t))],
    gradient: Gradient::Of(|t, dy| {
        let mut dx = reference::gradient(&parts(t), &dy[0]).into_iter();
        t.args.iter().map(|(_, part)| part.as_ref().and_then(|_| dx.next())).collect()
    }),
    tolerance: Tolerance::EXACT,
    oversize: Oversize::CutRows,
    cases: &[
        Case::new("first axis", &[('A', 1), ('N', 3), ('M', 1), ('K', 2), ('C', 17)]),
        Case::new("last axis", &[('A', 5), ('N', 7), ('M', 63), ('C', 1)]).without(&["parts[2]"]),
        Case::new("between two others", &[('A', 3), ('N', 2), ('M', 5), ('K', 1), ('C', 4)]),
        Case::new("more than a thread's share", &[('A', 7), ('N', 64), ('M', 65), ('K', 1), ('C', 300)]),
    ],
    largest: 30,
    bench: &[Case::new("cache of a decode", &[('A', 1), ('N', 4_096), ('M', 1), ('C', 512)]).without(&["parts[2]"])],
    cost: |d| {
        let n = d['A'] * (d['N'] + d['M'] + d.get('K').unwrap_or(0)) * d['C'];
        Cost { bytes: 8 * n, flops: 0, backward_bytes: 8 * n, backward_flops: 0 }
    },
    ..Op::BASE
};
