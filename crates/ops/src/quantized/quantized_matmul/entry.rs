//! The entry of `quantized_matmul` in the list.

use super::{CONTRACT, quantized_matmul, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};
use crate::quantized::reference::given;
use alluvium_core::DType;

/// A case of affine packing: the name, `R O I`, bits and group.
macro_rules! affine {
    ($name:expr, $r:expr, $o:expr, $i:expr, $bits:expr, $group:expr) => {
        Case::new($name, &[('R', $r), ('O', $o), ('I', $i), ('W', $i * $bits / 32), ('G', $i / $group)])
            .options(&[("bits", $bits as f64), ("group", $group as f64)])
    };
}

/// A case of float packing: the name, `R O I`, bits, group, the option's name and the scales.
macro_rules! floats {
    ($name:expr, $r:expr, $o:expr, $i:expr, $bits:expr, $group:expr, $option:expr, $scales:expr) => {
        Case::new($name, &[('R', $r), ('O', $o), ('I', $i), ('W', $i * $bits / 32), ('G', $i / $group)])
            .without(&["biases"])
            .filled(&[("w", Fill::Bytes(0x80, 0xfe)), ("scales", $scales)])
            .stored(&[("scales", DType::U8)])
            .options(&[($option, 1.0)])
    };
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "rows times a quantized weight matrix",
    results: &["y"],
    run: |t| Ok(vec![quantized_matmul(&t["x"], &given(t))?]),
    reference: reference::forward,
    gradient: Gradient::Of(reference::gradient),
    tolerance: Tolerance::F32_SUMS,
    fills: &[("w", Fill::Whole(0, u32::MAX))],
    cases: &[
        affine!("1 bit, one row", 1, 3, 160, 1, 32),
        affine!("2 bits, two rows", 2, 5, 96, 2, 32),
        affine!("3 bits, three rows", 3, 7, 192, 3, 64),
        affine!("4 bits, one row, as in decoding", 1, 67, 320, 4, 64),
        affine!("4 bits, less than a register of words", 5, 6, 32, 4, 32),
        affine!("4 bits, three rows of a thousand numbers", 3, 9, 1_088, 4, 64),
        affine!("5 bits", 2, 9, 128, 5, 128),
        affine!("6 bits", 4, 5, 192, 6, 64),
        affine!("8 bits, one output", 1, 1, 384, 8, 128),
        affine!("many rows, odd outputs", 33, 65, 128, 4, 32),
        affine!("many rows, 3 bits", 17, 33, 96, 3, 32),
        affine!("several blocks", 19, 1_100, 1_024, 4, 64),
        affine!("long rows", 1, 131, 4_096, 4, 64),
        floats!("mxfp4, one row", 1, 9, 96, 4, 32, "mxfp4", Fill::Whole(120, 130)),
        floats!("mxfp8, two rows", 2, 5, 160, 8, 32, "mxfp8", Fill::Whole(120, 130)),
        floats!("nvfp4, many rows", 20, 5, 48, 4, 16, "nvfp4", Fill::Whole(1, 0x70)),
        floats!("nvfp4, one row", 1, 5, 208, 4, 16, "nvfp4", Fill::Whole(1, 0x70)),
    ],
    fixed: &['I', 'W', 'G'],
    largest: 40,
    bench: &[
        affine!("decode, 4 bits", 1, 4_096, 4_096, 4, 64),
        affine!("decode, 8 bits", 1, 4_096, 4_096, 8, 64),
        affine!("decode, 6 bits", 1, 4_096, 4_096, 6, 64),
        affine!("decode, 3 bits", 1, 4_096, 4_096, 3, 64),
        floats!("decode, mxfp4", 1, 4_096, 4_096, 4, 32, "mxfp4", Fill::Whole(120, 130)),
        affine!("four rows, 4 bits", 4, 4_096, 4_096, 4, 64),
        affine!("decode, 4 bits, wide", 1, 12_288, 4_096, 4, 64),
        affine!("four rows, 4 bits, wide", 4, 12_288, 4_096, 4, 64),
        affine!("16 rows, 4 bits, wide", 16, 12_288, 4_096, 4, 64),
        affine!("prefill 512, 4 bits, wide", 512, 12_288, 4_096, 4, 64),
        affine!("prefill 512, 4 bits", 512, 2_048, 2_048, 4, 64),
    ],
    cost: |d| {
        let (r, o, i) = (d['R'], d['O'], d['I']);
        let stored = 4 * o * d['W'] + 8 * o * d['G'];
        let (bytes, flops) = (4 * r * (i + o) + stored, 2 * r * o * i);
        Cost { bytes, flops, backward_bytes: bytes + 4 * r * i + 8 * o * d['G'], backward_flops: 2 * flops }
    },
    ..Op::BASE
};
