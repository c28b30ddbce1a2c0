//! The entry of `quantized_matmul_swiglu` in the list.

use super::{CONTRACT, WHY, quantized_matmul_swiglu, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};
use crate::quantized::reference::given;
use alluvium_core::DType;

/// A case of affine packing: the name, `R P I`, bits and group.
macro_rules! affine {
    ($name:expr, $r:expr, $p:expr, $i:expr, $bits:expr, $group:expr) => {
        Case::new($name, &[('R', $r), ('P', $p), ('I', $i), ('W', $i * $bits / 32), ('G', $i / $group)])
            .options(&[("bits", $bits as f64), ("group", $group as f64)])
    };
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "SwiGLU of two quantized projections",
    results: &["y"],
    run: |t| Ok(vec![quantized_matmul_swiglu(&t["x"], &given(t))?]),
    reference: reference::forward,
    gradient: Gradient::None(WHY),
    tolerance: Tolerance::F32_SUMS,
    // small enough for products of two projections to stay within f16
    fills: &[("w", Fill::Whole(0, u32::MAX)), ("x", Fill::Normal(0.05))],
    cases: &[
        affine!("4 bits, one row, as in decoding", 1, 72, 320, 4, 64),
        affine!("3 bits, three rows, odd outputs", 3, 14, 192, 3, 64),
        affine!("8 bits, eight rows", 8, 40, 128, 8, 32),
        affine!("many rows", 33, 24, 96, 4, 32),
        Case::new("mxfp4, one row", &[('R', 1), ('P', 16), ('I', 96), ('W', 12), ('G', 3)])
            .without(&["biases"])
            .filled(&[("w", Fill::Bytes(0x80, 0xfe)), ("scales", Fill::Whole(120, 130))])
            .stored(&[("scales", DType::U8)])
            .options(&[("mxfp4", 1.0)]),
    ],
    fixed: &['I', 'W', 'G', 'P'],
    largest: 40,
    bench: &[affine!("decode, 4 bits", 1, 12_288, 2_048, 4, 64)],
    cost: |d| {
        let (r, p, i) = (d['R'], d['P'], d['I']);
        let stored = 4 * p * d['W'] + 8 * p * d['G'];
        Cost { bytes: 4 * r * (i + p / 2) + stored, flops: 2 * r * p * i, ..Cost::default() }
    },
    ..Op::BASE
};
