//! The entry of `quantized_grouped_matmul` in the list.

use super::{CONTRACT, quantized_grouped_matmul, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};
use crate::quantized::reference::given;
use alluvium_core::DType;

/// A case of affine packing: the name, rows of x, tokens, choices, experts, outputs, inputs, bits and group.
macro_rules! case {
    ($name:expr, $r:expr, $n:expr, $k:expr, $e:expr, $o:expr, $i:expr, $bits:expr, $group:expr) => {
        Case::new(
            $name,
            &[
                ('R', $r),
                ('N', $n),
                ('K', $k),
                ('E', $e),
                ('O', $o),
                ('I', $i),
                ('W', $i * $bits / 32),
                ('G', $i / $group),
            ],
        )
        .options(&[("bits", $bits as f64), ("group", $group as f64)])
    };
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "rows times the quantized weights of the experts chosen for them",
    results: &["y"],
    run: |t| Ok(vec![quantized_grouped_matmul(&t["x"], &given(t), &t["experts"])?]),
    reference: reference::forward,
    gradient: Gradient::Of(reference::gradient),
    tolerance: Tolerance::F32_SUMS,
    fills: &[("w", Fill::Whole(0, u32::MAX)), ("experts", Fill::Ids('E'))],
    cases: &[
        case!("one token, as in decoding", 1, 1, 3, 7, 17, 64, 4, 64),
        case!("a row a choice, 3 bits", 15, 5, 3, 4, 9, 96, 3, 32),
        case!("many rows, 6 bits", 60, 30, 2, 3, 7, 64, 6, 32),
        case!("many rows for each expert", 70, 70, 3, 5, 33, 128, 4, 32),
        case!("few rows for each of many experts, 5 bits", 23, 23, 3, 11, 19, 64, 5, 64),
        case!("whole quads, more rows than a tile, 8 bits", 100, 100, 2, 2, 68, 128, 8, 128),
        Case::new("mxfp4", &[('R', 5), ('N', 5), ('K', 2), ('E', 3), ('O', 5), ('I', 64), ('W', 8), ('G', 2)])
            .without(&["biases"])
            .filled(&[("scales", Fill::Whole(120, 130))])
            .stored(&[("scales", DType::U8)])
            .options(&[("mxfp4", 1.0)]),
        Case::new(
            "nvfp4, many rows",
            &[('R', 60), ('N', 30), ('K', 2), ('E', 3), ('O', 5), ('I', 64), ('W', 8), ('G', 4)],
        )
        .without(&["biases"])
        .filled(&[("scales", Fill::Whole(40, 60))])
        .stored(&[("scales", DType::U8)])
        .options(&[("nvfp4", 1.0)]),
    ],
    fixed: &['R', 'N', 'K', 'I', 'W', 'G'],
    largest: 30,
    bench: &[
        case!("decode", 1, 1, 10, 64, 512, 2_048, 4, 64),
        case!("decode, back to the model's width", 10, 1, 10, 64, 2_048, 512, 4, 64),
        case!("prefill 512", 512, 512, 10, 64, 512, 2_048, 4, 64),
    ],
    // every choice reads its rows, an expert's weights are read once
    cost: |d| {
        let choices = d['N'] * d['K'];
        let read = d['O'] * (4 * d['W'] + 8 * d['G']) * d['E'].min(choices);
        let flops = 2 * choices * d['O'] * d['I'];
        let bytes = 4 * (d['R'] * d['I'] + choices * d['O']) + read;
        let grads = 4 * d['R'] * d['I'] + 8 * d['E'] * d['O'] * d['G'];
        Cost { bytes, flops, backward_bytes: bytes + grads, backward_flops: 2 * flops }
    },
    ..Op::BASE
};
