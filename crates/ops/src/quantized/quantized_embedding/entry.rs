//! The entry of `quantized_embedding` in the list.

use super::{CONTRACT, quantized_embedding, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};
use crate::quantized::reference::given;
use alluvium_core::DType;

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "rows of a quantized table, by their ids",
    results: &["y"],
    run: |t| {
        let dtype = if t["scales"].dtype().is_float() { t["scales"].dtype() } else { DType::F32 };
        Ok(vec![quantized_embedding(&given(t), &t["ids"], dtype)?])
    },
    reference: reference::forward,
    gradient: Gradient::Of(reference::gradient),
    tolerance: Tolerance::F32_SUMS,
    fills: &[("w", Fill::Whole(0, u32::MAX)), ("ids", Fill::Ids('V'))],
    cases: &[
        Case::new("one id", &[('V', 1), ('W', 4), ('G', 1), ('R', 1)]).options(&[("bits", 4.0), ("group", 32.0)]),
        Case::new("few rows, each used often", &[('V', 3), ('W', 9), ('G', 3), ('R', 50)])
            .options(&[("bits", 3.0), ("group", 32.0)]),
        Case::new("many rows, few used", &[('V', 301), ('W', 16), ('G', 1), ('R', 7)])
            .options(&[("bits", 8.0), ("group", 64.0)]),
        Case::new("mxfp4", &[('V', 5), ('W', 8), ('G', 2), ('R', 3)])
            .without(&["biases"])
            .filled(&[("scales", Fill::Whole(120, 130))])
            .stored(&[("scales", DType::U8)])
            .options(&[("mxfp4", 1.0)]),
        Case::new("more than one thread's share", &[('V', 1_000), ('W', 24), ('G', 3), ('R', 1_025)])
            .options(&[("bits", 4.0), ("group", 64.0)]),
    ],
    fixed: &['W', 'G'],
    largest: 70,
    bench: &[
        Case::new("decode", &[('V', 32_768), ('W', 256), ('G', 32), ('R', 1)])
            .options(&[("bits", 4.0), ("group", 64.0)]),
        Case::new("prefill 4k", &[('V', 32_768), ('W', 256), ('G', 32), ('R', 4_096)])
            .options(&[("bits", 4.0), ("group", 64.0)]),
    ],
    // as 4 bits would have it
    cost: |d| {
        let (elements, read) = (8 * d['R'] * d['W'], d['R'] * (4 * d['W'] + 8 * d['G']));
        let table = d['V'] * 8 * d['G'];
        Cost {
            bytes: 4 * elements + read,
            flops: 2 * elements,
            backward_bytes: 4 * elements + read + table,
            backward_flops: 3 * elements,
        }
    },
    ..Op::BASE
};
