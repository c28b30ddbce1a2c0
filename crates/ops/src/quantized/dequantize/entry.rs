//! The entry of `dequantize` in the list.

use super::{CONTRACT, dequantize, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Oversize, Tolerance};
use crate::quantized::reference::given;
use alluvium_core::DType;

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "packed codes to floats",
    results: &["y"],
    run: |t| {
        let dtype = if t["scales"].dtype().is_float() { t["scales"].dtype() } else { DType::F32 };
        Ok(vec![dequantize(&given(t), dtype)?])
    },
    reference: reference::forward,
    gradient: Gradient::Of(reference::gradient),
    tolerance: Tolerance::F32,
    fills: &[("w", Fill::Whole(0, u32::MAX))],
    oversize: Oversize::CutElements,
    cases: &[
        Case::new("1 bit", &[('R', 3), ('W', 3), ('G', 3)]).options(&[("bits", 1.0), ("group", 32.0)]),
        Case::new("2 bits", &[('R', 1), ('W', 4), ('G', 1)]).options(&[("bits", 2.0), ("group", 64.0)]),
        Case::new("3 bits", &[('R', 5), ('W', 15), ('G', 5)]).options(&[("bits", 3.0), ("group", 32.0)]),
        Case::new("4 bits", &[('R', 7), ('W', 24), ('G', 3)]).options(&[("bits", 4.0), ("group", 64.0)]),
        Case::new("5 bits", &[('R', 2), ('W', 40), ('G', 2)]).options(&[("bits", 5.0), ("group", 128.0)]),
        Case::new("6 bits", &[('R', 3), ('W', 36), ('G', 3)]).options(&[("bits", 6.0), ("group", 64.0)]),
        Case::new("8 bits", &[('R', 7), ('W', 32), ('G', 4)]).options(&[("bits", 8.0), ("group", 32.0)]),
        Case::new("mxfp4", &[('R', 3), ('W', 12), ('G', 3)])
            .without(&["biases"])
            .filled(&[("scales", Fill::Whole(120, 130))])
            .stored(&[("scales", DType::U8)])
            .options(&[("mxfp4", 1.0)]),
        Case::new("mxfp8, positive", &[('R', 3), ('W', 24), ('G', 3)])
            .without(&["biases"])
            .filled(&[("w", Fill::Bytes(0, 0x7e)), ("scales", Fill::Whole(120, 130))])
            .stored(&[("scales", DType::U8)])
            .options(&[("mxfp8", 1.0)]),
        Case::new("mxfp8, negative", &[('R', 2), ('W', 8), ('G', 1)])
            .without(&["biases"])
            .filled(&[("w", Fill::Bytes(0x80, 0xfe)), ("scales", Fill::Whole(120, 130))])
            .stored(&[("scales", DType::U8)])
            .options(&[("mxfp8", 1.0)]),
        Case::new("nvfp4", &[('R', 3), ('W', 6), ('G', 3)])
            .without(&["biases"])
            .filled(&[("scales", Fill::Whole(1, 0x70))])
            .stored(&[("scales", DType::U8)])
            .options(&[("nvfp4", 1.0)]),
        Case::new("more rows than a thread takes", &[('R', 700), ('W', 32), ('G', 4)])
            .options(&[("bits", 4.0), ("group", 64.0)]),
    ],
    fixed: &['W', 'G'],
    largest: 70,
    bench: &[
        Case::new("4 bits", &[('R', 4_096), ('W', 512), ('G', 64)]).options(&[("bits", 4.0), ("group", 64.0)]),
        Case::new("6 bits", &[('R', 4_096), ('W', 768), ('G', 64)]).options(&[("bits", 6.0), ("group", 64.0)]),
    ],
    // as 4 bits would have it
    cost: |d| {
        let elements = 8 * d['R'] * d['W'];
        let stored = 4 * d['R'] * d['W'] + 8 * d['R'] * d['G'];
        Cost {
            bytes: 4 * elements + stored,
            flops: 2 * elements,
            backward_bytes: 4 * elements + stored,
            backward_flops: 3 * elements,
        }
    },
};
