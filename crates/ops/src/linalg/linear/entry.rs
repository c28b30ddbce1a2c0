//! The entry of `linear` in the list.

use super::{CONTRACT, linear, reference};
use crate::op::{Case, Cost, Gradient, Op, Oversize, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "rows times a weight matrix",
    results: &["y"],
    run: |t| Ok(vec![linear(&t["x"], &t["w"])?]),
    reference: |t| vec![reference::forward(&t["x"], &t["w"])],
    gradient: Gradient::Of(|t, dy| reference::gradient(&t["x"], &t["w"], &dy[0]).map(Some).into()),
    tolerance: Tolerance::F32_SUMS,
    oversize: Oversize::CutElements,
    cases: &[
        Case::new("one element", &[('R', 1), ('I', 1), ('O', 1)]),
        Case::new("one row, as in decoding", &[('R', 1), ('I', 130), ('O', 67)]),
        Case::new("odd everywhere", &[('R', 17), ('I', 63), ('O', 65)]),
        Case::new("one output", &[('R', 33), ('I', 70), ('O', 1)]),
        Case::new("few rows, wide", &[('R', 3), ('I', 257), ('O', 1_001)]),
        Case::new("long sums both ways", &[('R', 2_049), ('I', 1_031), ('O', 9)]),
        Case::new("several tiles on every axis", &[('R', 129), ('I', 200), ('O', 193)]),
    ],
    largest: 70,
    bench: &[
        Case::new("decode", &[('R', 1), ('I', 2_048), ('O', 8_192)]),
        Case::new("decode, f16", &[('R', 1), ('I', 2_048), ('O', 8_192)]).options(&[("f16", 1.0)]),
        Case::new("prefill 1k", &[('R', 1_024), ('I', 2_048), ('O', 2_048)]),
        Case::new("prefill 8k, f16", &[('R', 8_192), ('I', 2_048), ('O', 8_192)]).options(&[("f16", 1.0)]),
    ],
    cost: |d| {
        let (r, i, o) = (d['R'], d['I'], d['O']);
        let flops = 2 * r * i * o;
        let bytes = 4 * (r * i + i * o + r * o);
        Cost { bytes, flops, backward_bytes: bytes + 4 * (r * i + i * o), backward_flops: 2 * flops }
    },
    ..Op::BASE
};
