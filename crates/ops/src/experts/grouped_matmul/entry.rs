//! The entry of `grouped_matmul` in the list.

use super::{CONTRACT, grouped_matmul, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};
use alluvium_core::DType;

/// A case: the name, rows of x, tokens, choices, experts, outputs and inputs.
macro_rules! case {
    ($name:expr, $r:expr, $n:expr, $k:expr, $e:expr, $o:expr, $i:expr) => {
        Case::new($name, &[('R', $r), ('N', $n), ('K', $k), ('E', $e), ('O', $o), ('I', $i)])
    };
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "rows times the weights of the experts chosen for them",
    results: &["y"],
    run: |t| Ok(vec![grouped_matmul(&t["x"], &t["w"], &t["experts"])?]),
    reference: |t| reference::forward(t, &t["w"]),
    gradient: Gradient::Of(|t, dy| {
        let [dx, dw] = reference::gradient(t, &t["w"], &dy[0]);
        vec![Some(dx), Some(dw), None]
    }),
    tolerance: Tolerance::F32_SUMS,
    fills: &[("experts", Fill::Ids('E'))],
    cases: &[
        case!("one token, one expert", 1, 1, 1, 1, 1, 1),
        case!("one token, as in decoding", 1, 1, 3, 7, 17, 65),
        case!("a row a choice", 15, 5, 3, 4, 9, 33),
        case!("few rows for each expert", 6, 6, 2, 5, 31, 67),
        case!("one expert takes all", 40, 20, 2, 1, 5, 63),
        case!("many rows for each expert", 70, 70, 3, 5, 33, 65),
        case!("many rows, a row a choice", 140, 70, 2, 6, 65, 17),
        case!("few rows for each of many experts", 23, 23, 3, 11, 19, 45),
        case!("whole quads, and more rows than a tile", 100, 100, 2, 2, 68, 36),
        case!("weights in half precision", 30, 30, 2, 3, 9, 33).stored(&[("w", DType::BF16)]),
    ],
    fixed: &['R', 'N', 'K'],
    largest: 40,
    bench: &[
        case!("decode", 1, 1, 10, 64, 512, 2_048),
        case!("decode, back to the model's width", 10, 1, 10, 64, 2_048, 512),
        case!("prefill 512", 512, 512, 10, 64, 512, 2_048),
    ],
    // every choice reads its rows, an expert's weights are read once
    cost: |d| {
        let (choices, weights) = (d['N'] * d['K'], d['O'] * d['I']);
        let read = weights * d['E'].min(choices);
        let (bytes, flops) = (4 * (d['R'] * d['I'] + read + choices * d['O']), 2 * choices * weights);
        Cost {
            bytes,
            flops,
            backward_bytes: bytes + 4 * (d['R'] * d['I'] + d['E'] * weights),
            backward_flops: 2 * flops,
        }
    },
    ..Op::BASE
};
