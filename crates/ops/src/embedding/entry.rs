//! The entry of `embedding` in the list.

use super::{CONTRACT, embedding, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "rows of a table, by their ids",
    results: &["y"],
    run: |t| Ok(vec![embedding(&t["table"], &t["ids"])?]),
    reference: |t| vec![reference::forward(&t["table"], &t["ids"])],
    gradient: Gradient::Of(|t, dy| vec![Some(reference::gradient(&t["table"], &t["ids"], &dy[0])), None]),
    tolerance: Tolerance::F32,
    fills: &[("ids", Fill::Ids('V'))],
    cases: &[
        Case::new("one row, one id", &[('V', 1), ('D', 1), ('R', 1)]),
        Case::new("odd width", &[('V', 7), ('D', 63), ('R', 17)]),
        Case::new("a width of quads", &[('V', 7), ('D', 68), ('R', 17)]),
        Case::new("few rows, each used often", &[('V', 3), ('D', 17), ('R', 500)]),
        Case::new("many rows, few used", &[('V', 3_001), ('D', 65), ('R', 64)]),
        Case::new("more than one thread's share", &[('V', 1_000), ('D', 129), ('R', 1_025)]),
    ],
    largest: 70,
    bench: &[
        Case::new("decode", &[('V', 32_768), ('D', 2_048), ('R', 1)]),
        Case::new("prefill 4k", &[('V', 32_768), ('D', 2_048), ('R', 4_096)]),
        Case::new("prefill 64k", &[('V', 32_768), ('D', 2_048), ('R', 65_536)]),
    ],
    cost: |d| {
        let moved = 4 * d['R'] * d['D'];
        Cost {
            bytes: 2 * moved,
            flops: 0,
            backward_bytes: moved + 4 * d['V'] * d['D'],
            backward_flops: d['R'] * d['D'],
        }
    },
    ..Op::BASE
};
